"""Procedures: simple things drawn part after part, each step leaving the earlier ones in place.

The first step draws the main part, in the named colour, so that noun and colour can be read from every step; each
later step adds a part of at least 3 % of the picture, so that the step can be read as well.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m2m.world.grammar import COLOURS
from m2m.world.pictures import OVERSAMPLING, RGB, SIDE, WHITE, Variation, mix

PAPER = (233, 239, 242)
GROUND = (205, 196, 180)
INK = (52, 50, 66)
WOOD = (120, 82, 56)
CREAM = (255, 248, 230)
CANVAS = (226, 196, 146)
STEEL = (138, 148, 162)
LEAF = (84, 140, 84)
SEA = (96, 142, 176)
SUN = (255, 208, 84)
NAMED: Final = 0.0
"""In place of a colour: the one that the caption names. A larger share of white in it: paler."""
GROUND_LINE = 0.9


class _Pen:
    """Draws in a square of unit side (y downwards) that lies in the picture where a variation puts it."""

    def __init__(self, colour: RGB, variation: Variation) -> None:
        self._named = variation.shaded(colour)
        self._side = 0.5 + 0.6 * variation.size
        slack = 1 - self._side
        # x and y of a variation lie around the middle; the whole slack is used.
        self._left = slack * min(1.0, max(0.0, 2 * variation.x - 0.5))
        self._top = slack * min(1.0, max(0.0, 2 * variation.y - 0.5))
        self.image = Image.new("RGB", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def ink(self, colour: RGB | float) -> RGB:
        return mix(self._named, WHITE, colour) if isinstance(colour, float) else colour

    def place(self, *numbers: float) -> list[float]:
        """Of x, y, x, y … in the square: those of the canvas."""
        scale = SIDE * OVERSAMPLING
        starts = (self._left, self._top) * (len(numbers) // 2)
        return [(start + number * self._side) * scale for start, number in zip(starts, numbers, strict=True)]

    def length(self, share: float) -> float:
        return share * self._side * SIDE * OVERSAMPLING


Mark: TypeAlias = Callable[[_Pen], None]


def _polygon(colour: RGB | float, *points: float) -> Mark:
    return lambda pen: pen.draw.polygon(pen.place(*points), fill=pen.ink(colour))


def _box(colour: RGB | float, left: float, top: float, right: float, bottom: float, *, corner: float = 0) -> Mark:
    return lambda pen: pen.draw.rounded_rectangle(
        pen.place(left, top, right, bottom), pen.length(corner), fill=pen.ink(colour)
    )


def _disc(colour: RGB | float, x: float, y: float, radius: float) -> Mark:
    return lambda pen: pen.draw.ellipse(pen.place(x - radius, y - radius, x + radius, y + radius), fill=pen.ink(colour))


def _floor(colour: RGB, top: float) -> Mark:
    """Everything below `top`, over the whole width of the picture."""
    end = SIDE * OVERSAMPLING
    return lambda pen: pen.draw.rectangle((0, pen.place(0, top)[1], end, end), fill=colour)


def paint_step(kind: str, colour: str, step: int, variation: Variation) -> NDArray[np.uint8]:
    """The picture after the first `step` steps (from 1) of a procedure, uint8 (64, 64, 3).

    The variation's angle is not used: things stand upright.

    Raises:
        ValueError: the procedure has no such step.
    """
    parts = PARTS[kind]
    if not 1 <= step <= len(parts):
        raise ValueError(f"step {step} of a {kind}: expected 1 to {len(parts)}")
    pen = _Pen(COLOURS[colour], variation)
    _floor(GROUND, GROUND_LINE)(pen)
    for part in parts[:step]:
        for mark in part:
            mark(pen)
    return np.asarray(pen.image.reduce(OVERSAMPLING))


_CLOUD = (_disc(STEEL, 0.1, 0.12, 0.1), _disc(STEEL, 0.22, 0.09, 0.1))

PARTS: Final[Mapping[str, tuple[tuple[Mark, ...], ...]]] = {
    "house": (
        (_box(NAMED, 0.12, 0.46, 0.76, 0.92),),
        (_polygon(INK, 0.03, 0.47, 0.44, 0.1, 0.85, 0.47),),
        (_box(WOOD, 0.35, 0.6, 0.53, 0.92), _disc(SUN, 0.49, 0.76, 0.02)),
        tuple(_box(CREAM, left, 0.54, left + 0.16, 0.74) for left in (0.15, 0.57)),
        (_disc(SUN, 0.84, 0.14, 0.14),),
    ),
    "flower": (
        tuple(
            _disc(NAMED, 0.5 + 0.19 * np.cos(angle), 0.3 + 0.19 * np.sin(angle), 0.12)
            for angle in np.radians(np.arange(6) * 60.0)
        ),
        (_disc(WOOD, 0.5, 0.3, 0.14),),
        (_box(LEAF, 0.44, 0.6, 0.56, 0.98),),
        (
            _polygon(LEAF, 0.46, 0.78, 0.3, 0.76, 0.12, 0.58, 0.34, 0.6),
            _polygon(LEAF, 0.54, 0.78, 0.7, 0.76, 0.88, 0.58, 0.66, 0.6),
        ),
        (_polygon(INK, 0.28, 0.8, 0.72, 0.8, 0.65, 1.0, 0.35, 1.0),),
    ),
    "robot": (
        (_box(NAMED, 0.27, 0.36, 0.73, 0.74, corner=0.08), _box(0.6, 0.38, 0.46, 0.62, 0.6, corner=0.03)),
        (_box(STEEL, 0.31, 0.06, 0.69, 0.33, corner=0.06),),
        tuple(_box(INK, left, 0.74, left + 0.14, 0.96, corner=0.02) for left in (0.32, 0.54)),
        tuple(_box(STEEL, left, 0.38, left + 0.13, 0.72, corner=0.06) for left in (0.1, 0.77)),
        (
            _box(INK, 0.35, 0.1, 0.65, 0.29, corner=0.04),
            *(_disc(SUN, x, 0.19, 0.045) for x in (0.43, 0.57)),
        ),
    ),
    "tree": (
        tuple(
            _disc(NAMED, x, y, radius)
            for x, y, radius in ((0.3, 0.4, 0.2), (0.7, 0.4, 0.2), (0.5, 0.24, 0.22), (0.5, 0.44, 0.2))
        ),
        (_polygon(WOOD, 0.43, 0.6, 0.57, 0.6, 0.62, 0.9, 0.38, 0.9),),
        tuple(_disc(CREAM, x, y, 0.075) for x, y in ((0.28, 0.4), (0.5, 0.2), (0.72, 0.4), (0.5, 0.46))),
        (_floor(LEAF, 0.9),),
        _CLOUD,
    ),
    "boat": (
        (_polygon(NAMED, 0.06, 0.64, 0.94, 0.64, 0.8, 0.88, 0.2, 0.88),),
        (_floor(SEA, 0.88),),
        (_box(WOOD, 0.45, 0.02, 0.54, 0.64),),
        (_polygon(CANVAS, 0.56, 0.06, 0.9, 0.58, 0.56, 0.58),),
        (_polygon(INK, 0.43, 0.12, 0.43, 0.58, 0.14, 0.58),),
        (_disc(SUN, 0.14, 0.16, 0.14),),
    ),
    "rocket": (
        (_polygon(NAMED, 0.36, 0.28, 0.64, 0.28, 0.7, 0.48, 0.67, 0.76, 0.33, 0.76, 0.3, 0.48),),
        (_polygon(INK, 0.33, 0.29, 0.5, 0.0, 0.67, 0.29),),
        (
            _polygon(STEEL, 0.31, 0.52, 0.1, 0.82, 0.34, 0.78),
            _polygon(STEEL, 0.69, 0.52, 0.9, 0.82, 0.66, 0.78),
        ),
        (_disc(CREAM, 0.5, 0.48, 0.14), _disc(INK, 0.5, 0.48, 0.08)),
        (_polygon(SUN, 0.32, 0.77, 0.68, 0.77, 0.6, 0.9, 0.5, 1.02, 0.4, 0.9),),
    ),
    "cake": (
        (_box(NAMED, 0.1, 0.64, 0.9, 0.88, corner=0.03), _box(NAMED, 0.26, 0.44, 0.74, 0.66, corner=0.03)),
        (
            _box(CREAM, 0.23, 0.38, 0.77, 0.5, corner=0.06),
            *(_disc(CREAM, x, 0.51, 0.075) for x in (0.31, 0.5, 0.69)),
        ),
        (_box(STEEL, 0.02, 0.86, 0.98, 0.95, corner=0.04),),
        tuple(
            mark
            for x in (0.3, 0.46, 0.62)
            for mark in (_box(INK, x, 0.16, x + 0.08, 0.39), _disc(SUN, x + 0.04, 0.1, 0.055))
        ),
        (_disc(LEAF, 0.88, 0.14, 0.13),),
    ),
    "car": (
        (
            _box(NAMED, 0.04, 0.5, 0.96, 0.76, corner=0.07),
            _polygon(NAMED, 0.2, 0.52, 0.32, 0.26, 0.68, 0.26, 0.82, 0.52),
        ),
        tuple(mark for x in (0.26, 0.74) for mark in (_disc(INK, x, 0.77, 0.13), _disc(STEEL, x, 0.77, 0.05))),
        (
            _polygon(CREAM, 0.28, 0.5, 0.36, 0.31, 0.48, 0.31, 0.48, 0.5),
            _polygon(CREAM, 0.53, 0.5, 0.53, 0.31, 0.65, 0.31, 0.74, 0.5),
        ),
        (_floor(STEEL, GROUND_LINE),),
        _CLOUD,
    ),
}
"""Procedure to the marks of its steps, in the order of `STEP_TEXTS`."""
