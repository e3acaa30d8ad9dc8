"""Galleries in the paper's manner: a row a set, the preceding images framed, then the generated ones."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CAPTIONS = "captions"
"""The PNG's text entry with the rows' captions, as a JSON list."""

GAP = 4
FRAME = 3
FRAME_COLOUR = (214, 96, 30)
LEAST_SIDE = 96
"""Pixels; smaller pictures are enlarged by a whole factor, so that pixels stay pixels."""


def draw_gallery(given: Sequence[NDArray[np.uint8]], generated: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """One picture of all rows, on a transparent ground so that it suits any page.

    Args:
        given, generated: a row each, (images, H, W, 3).
    """
    side = given[0].shape[1]
    factor = -(-LEAST_SIDE // side)
    cell = side * factor + 2 * FRAME
    columns = len(given[0]) + len(generated[0])
    width = columns * cell + (columns - 1) * GAP + 2 * GAP  # a wider gap between given and generated
    sheet = Image.new("RGBA", (width, len(given) * (cell + GAP) - GAP), (0, 0, 0, 0))
    for row, (before, after) in enumerate(zip(given, generated, strict=True)):
        for column, pixels in enumerate([*before, *after]):
            is_given = column < len(before)
            left = column * (cell + GAP) + (0 if is_given else 2 * GAP)
            top = row * (cell + GAP)
            if is_given:
                sheet.paste(FRAME_COLOUR, (left, top, left + cell, top + cell))
            picture = Image.fromarray(pixels).resize((side * factor, side * factor), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + FRAME, top + FRAME))
    return sheet


def to_png(gallery: Image.Image, captions: Sequence[str]) -> bytes:
    """The PNG file of a gallery; it carries its rows' captions."""
    notes = PngInfo()
    notes.add_itxt(CAPTIONS, json.dumps(list(captions), ensure_ascii=False))
    buffer = io.BytesIO()
    gallery.save(buffer, "PNG", pnginfo=notes, optimize=True)
    return buffer.getvalue()
