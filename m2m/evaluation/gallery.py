"""Galleries in the paper's manner: a row a set, the preceding images framed, then the generated ones."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from m2m.contact_sheet import contact_sheet

CAPTIONS = "captions"
"""The PNG's text entry with the rows' captions, a JSON list."""


def draw_gallery(rows: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Image.Image:
    """One picture of all rows, each the given and the generated pictures of a set, (images, H, W, 3)."""
    sets = [([*map(Image.fromarray, given)], [*map(Image.fromarray, generated)]) for given, generated in rows]
    return contact_sheet(sets, columns=max(len(given) + len(generated) for given, generated in sets))


def to_png(gallery: Image.Image, captions: Sequence[str]) -> bytes:
    """The PNG file of a gallery; it carries its rows' captions."""
    notes = PngInfo()
    notes.add_itxt(CAPTIONS, json.dumps(list(captions), ensure_ascii=False))
    buffer = io.BytesIO()
    gallery.save(buffer, "PNG", pnginfo=notes, optimize=True)
    return buffer.getvalue()
