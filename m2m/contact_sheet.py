"""Many pictures as one: beside each other in the paper's manner, or one after the other."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

GAP = 4
FRAME = 3
FRAME_COLOUR = (214, 96, 30)
SMALLEST, LARGEST = 96, 256
"""Pixels of a picture's side on the sheet. Smaller ones are enlarged by a whole factor, so that pixels stay pixels."""


def contact_sheet(
    sets: Sequence[tuple[Sequence[Image.Image], Sequence[Image.Image]]], *, columns: int = 12
) -> Image.Image:
    """One picture of some sets of square pictures of one size, each set from a new line on.

    Args:
        sets: the given and the generated images of each.
        columns: pictures in a line; a longer set goes on in the next.
    """
    lines: list[list[tuple[Image.Image, bool]]] = []
    for given, generated in sets:
        pictures = [(picture, True) for picture in given] + [(picture, False) for picture in generated]
        lines += [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    side = lines[0][0][0].width
    shown = min(side * -(-SMALLEST // side), LARGEST)
    pitch = shown + 2 * FRAME + GAP
    sheet = Image.new("RGB", (max(map(len, lines)) * pitch + GAP, len(lines) * pitch + GAP), "white")
    for row, line in enumerate(lines):
        for column, (picture, framed) in enumerate(line):
            left, top = GAP + column * pitch, GAP + row * pitch
            if framed:
                sheet.paste(FRAME_COLOUR, (left, top, left + shown + 2 * FRAME, top + shown + 2 * FRAME))
            resampling = Image.Resampling.NEAREST if shown >= side else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((shown, shown), resampling), (left + FRAME, top + FRAME))
    return sheet


def animation(frames: Sequence[Image.Image], *, milliseconds: int = 200) -> bytes:
    """A GIF that shows the pictures in turn, for ever; small ones are enlarged as on a sheet."""
    factor = max(-(-SMALLEST // frames[0].height), 1)
    shown = [ImageOps.scale(frame, factor, Image.Resampling.NEAREST) for frame in frames]
    file = io.BytesIO()
    shown[0].save(file, "GIF", save_all=True, append_images=shown[1:], duration=milliseconds, loop=0)
    return file.getvalue()


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
