"""The report's galleries: pictures small enough to be part of the page."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from m2m.errors import UserError
from m2m.evaluation.gallery import CAPTIONS
from m2m.page.tables import NAMES
from m2m.params import Variant

WIDEST = 1600
"""Pixels; twice what the page shows."""
QUALITY = 88
ROWS_OF_OTHERS = 4
"""Sets shown where more pictures are given: enough to compare, the page stays short."""

CONSISTENCY_GIVEN = 4


@dataclass(frozen=True)
class Gallery:
    """Sets in rows, as a picture in the page's own text."""

    variant: Variant
    name: str
    given: int
    about: str
    """what follows the name above it"""
    captions: list[str]
    source: str
    """a data URI"""
    width: int
    height: int


def galleries(variant: Variant, plots: Path) -> list[Gallery]:
    """The galleries ``given-N.png`` of an evaluation, by number of given pictures.

    Raises:
        UserError: there is none, or one is damaged.
    """
    found = {
        int(match[1]): path
        for path in plots.glob("given-*.png")
        if (match := re.search(r"given-(\d+)\.png", path.name))
    }
    if not found:
        raise UserError(f"{plots}: no galleries in it; the evaluate stage must run first")
    fewest = min(found)
    return [
        _load(variant, given, path, about=f"{given} given", rows=None if given == fewest else ROWS_OF_OTHERS)
        for given, path in sorted(found.items())
    ]


def consistency(variant: Variant, plots: Path) -> list[Gallery]:
    """The figure after the paper's, ``consistency.png``; none where no such pictures were found among the sets.

    Raises:
        UserError: it is damaged.
    """
    path = plots / "consistency.png"
    return [_load(variant, CONSISTENCY_GIVEN, path, about="what is consistent")] if path.exists() else []


def _load(variant: Variant, given: int, path: Path, *, about: str, rows: int | None = None) -> Gallery:
    try:
        with Image.open(path, formats=["PNG"]) as file:
            captions = json.loads(file.info[CAPTIONS])
            picture = file.convert("RGB")
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: not a gallery that the evaluate stage wrote ({error}); run it again") from error
    if rows is not None and rows < len(captions):
        picture = picture.crop((0, 0, picture.width, round(picture.height * rows / len(captions))))
        captions = captions[:rows]
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Gallery(variant, NAMES[variant], given, about, captions, source, picture.width, picture.height)
