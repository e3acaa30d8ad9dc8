"""Procedures: simple things drawn part after part, each step leaving the earlier ones in place.

The first step draws the main part, in the named colour, so that noun and colour can be read from every step; each
later step adds a part of at least 3 % of the picture, so that the step can be read as well.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m2m.world.canvas import OVERSAMPLING, RGB, SIDE, mix
from m2m.world.variation import Variation
from m2m.world.vocabulary import COLOURS

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


class _Pen:
    """Draws in a square of unit side (y downwards) that lies in the picture where a variation puts it."""

    def __init__(self, colour: RGB, variation: Variation) -> None:
        self.colour = variation.shaded(colour)
        self._side = 0.5 + 0.6 * variation.size
        slack = 1 - self._side
        # x and y of a variation lie around the middle; the whole slack is used.
        self._left = slack * min(1.0, max(0.0, 2 * variation.x - 0.5))
        self._top = slack * min(1.0, max(0.0, 2 * variation.y - 0.5))
        self.image = Image.new("RGB", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, colour: RGB, *points: tuple[float, float]) -> None:
        self._draw.polygon([self._place(x, y) for x, y in points], fill=colour)

    def box(self, colour: RGB, left: float, top: float, right: float, bottom: float, *, corner: float = 0) -> None:
        radius = corner * self._side * SIDE * OVERSAMPLING
        self._draw.rounded_rectangle((*self._place(left, top), *self._place(right, bottom)), radius, fill=colour)

    def disc(self, colour: RGB, x: float, y: float, radius: float) -> None:
        corners = (*self._place(x - radius, y - radius), *self._place(x + radius, y + radius))
        self._draw.ellipse(corners, fill=colour)

    def floor(self, colour: RGB, top: float) -> None:
        """Everything below `top`, over the whole width of the picture."""
        end = SIDE * OVERSAMPLING
        self._draw.rectangle((0, self._place(0, top)[1], end, end), fill=colour)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        scale = SIDE * OVERSAMPLING
        return (self._left + x * self._side) * scale, (self._top + y * self._side) * scale


Part = Callable[[_Pen], None]
GROUND_LINE = 0.9


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
    pen.floor(GROUND, GROUND_LINE)
    for draw in parts[:step]:
        draw(pen)
    return np.asarray(pen.image.reduce(OVERSAMPLING))


def _walls(pen: _Pen) -> None:
    pen.box(pen.colour, 0.12, 0.46, 0.76, 0.92)


def _roof(pen: _Pen) -> None:
    pen.polygon(INK, (0.03, 0.47), (0.44, 0.1), (0.85, 0.47))


def _door(pen: _Pen) -> None:
    pen.box(WOOD, 0.35, 0.6, 0.53, 0.92)
    pen.disc(SUN, 0.49, 0.76, 0.02)


def _windows(pen: _Pen) -> None:
    for left in (0.15, 0.57):
        pen.box(CREAM, left, 0.54, left + 0.16, 0.74)


def _high_sun(pen: _Pen) -> None:
    pen.disc(SUN, 0.84, 0.14, 0.14)


def _petals(pen: _Pen) -> None:
    for angle in np.radians(np.arange(6) * 60.0):
        pen.disc(pen.colour, 0.5 + 0.19 * np.cos(angle), 0.3 + 0.19 * np.sin(angle), 0.12)


def _centre(pen: _Pen) -> None:
    pen.disc(WOOD, 0.5, 0.3, 0.14)


def _stem(pen: _Pen) -> None:
    pen.box(LEAF, 0.44, 0.6, 0.56, 0.98)


def _leaves(pen: _Pen) -> None:
    pen.polygon(LEAF, (0.46, 0.78), (0.3, 0.76), (0.12, 0.58), (0.34, 0.6))
    pen.polygon(LEAF, (0.54, 0.78), (0.7, 0.76), (0.88, 0.58), (0.66, 0.6))


def _pot(pen: _Pen) -> None:
    pen.polygon(INK, (0.28, 0.8), (0.72, 0.8), (0.65, 1.0), (0.35, 1.0))


def _body(pen: _Pen) -> None:
    pen.box(pen.colour, 0.27, 0.36, 0.73, 0.74, corner=0.08)
    pen.box(mix(pen.colour, (255, 255, 255), 0.6), 0.38, 0.46, 0.62, 0.6, corner=0.03)


def _head(pen: _Pen) -> None:
    pen.box(STEEL, 0.31, 0.06, 0.69, 0.33, corner=0.06)


def _legs(pen: _Pen) -> None:
    for left in (0.32, 0.54):
        pen.box(INK, left, 0.74, left + 0.14, 0.96, corner=0.02)


def _arms(pen: _Pen) -> None:
    for left in (0.1, 0.77):
        pen.box(STEEL, left, 0.38, left + 0.13, 0.72, corner=0.06)


def _face(pen: _Pen) -> None:
    pen.box(INK, 0.35, 0.1, 0.65, 0.29, corner=0.04)
    for x in (0.43, 0.57):
        pen.disc(SUN, x, 0.19, 0.045)


def _crown(pen: _Pen) -> None:
    for x, y, radius in ((0.3, 0.4, 0.2), (0.7, 0.4, 0.2), (0.5, 0.24, 0.22), (0.5, 0.44, 0.2)):
        pen.disc(pen.colour, x, y, radius)


def _trunk(pen: _Pen) -> None:
    pen.polygon(WOOD, (0.43, 0.6), (0.57, 0.6), (0.62, 0.9), (0.38, 0.9))


def _fruit(pen: _Pen) -> None:
    for x, y in ((0.28, 0.4), (0.5, 0.2), (0.72, 0.4), (0.5, 0.46)):
        pen.disc(CREAM, x, y, 0.075)


def _meadow(pen: _Pen) -> None:
    pen.floor(LEAF, 0.9)


def _cloud(pen: _Pen) -> None:
    for x, y, radius in ((0.1, 0.12, 0.1), (0.22, 0.09, 0.1)):
        pen.disc(STEEL, x, y, radius)


def _hull(pen: _Pen) -> None:
    pen.polygon(pen.colour, (0.06, 0.64), (0.94, 0.64), (0.8, 0.88), (0.2, 0.88))


def _sea(pen: _Pen) -> None:
    pen.floor(SEA, 0.88)


def _mast(pen: _Pen) -> None:
    pen.box(WOOD, 0.45, 0.02, 0.54, 0.64)


def _sail(pen: _Pen) -> None:
    pen.polygon(CANVAS, (0.56, 0.06), (0.9, 0.58), (0.56, 0.58))


def _jib(pen: _Pen) -> None:
    pen.polygon(INK, (0.43, 0.12), (0.43, 0.58), (0.14, 0.58))


def _low_sun(pen: _Pen) -> None:
    pen.disc(SUN, 0.14, 0.16, 0.14)


def _hulk(pen: _Pen) -> None:
    pen.polygon(pen.colour, (0.36, 0.28), (0.64, 0.28), (0.7, 0.48), (0.67, 0.76), (0.33, 0.76), (0.3, 0.48))


def _nose(pen: _Pen) -> None:
    pen.polygon(INK, (0.33, 0.29), (0.5, 0.0), (0.67, 0.29))


def _fins(pen: _Pen) -> None:
    pen.polygon(STEEL, (0.31, 0.52), (0.1, 0.82), (0.34, 0.78))
    pen.polygon(STEEL, (0.69, 0.52), (0.9, 0.82), (0.66, 0.78))


def _porthole(pen: _Pen) -> None:
    pen.disc(CREAM, 0.5, 0.48, 0.14)
    pen.disc(INK, 0.5, 0.48, 0.08)


def _flame(pen: _Pen) -> None:
    pen.polygon(SUN, (0.32, 0.77), (0.68, 0.77), (0.6, 0.9), (0.5, 1.02), (0.4, 0.9))


def _tier(pen: _Pen) -> None:
    pen.box(pen.colour, 0.1, 0.64, 0.9, 0.88, corner=0.03)
    pen.box(pen.colour, 0.26, 0.44, 0.74, 0.66, corner=0.03)


def _icing(pen: _Pen) -> None:
    pen.box(CREAM, 0.23, 0.38, 0.77, 0.5, corner=0.06)
    for x in (0.31, 0.5, 0.69):
        pen.disc(CREAM, x, 0.51, 0.075)


def _plate(pen: _Pen) -> None:
    pen.box(STEEL, 0.02, 0.86, 0.98, 0.95, corner=0.04)


def _candles(pen: _Pen) -> None:
    for x in (0.3, 0.46, 0.62):
        pen.box(INK, x, 0.16, x + 0.08, 0.39)
        pen.disc(SUN, x + 0.04, 0.1, 0.055)


def _balloon(pen: _Pen) -> None:
    pen.disc(LEAF, 0.88, 0.14, 0.13)


def _chassis(pen: _Pen) -> None:
    pen.box(pen.colour, 0.04, 0.5, 0.96, 0.76, corner=0.07)
    pen.polygon(pen.colour, (0.2, 0.52), (0.32, 0.26), (0.68, 0.26), (0.82, 0.52))


def _wheels(pen: _Pen) -> None:
    for x in (0.26, 0.74):
        pen.disc(INK, x, 0.77, 0.13)
        pen.disc(STEEL, x, 0.77, 0.05)


def _panes(pen: _Pen) -> None:
    pen.polygon(CREAM, (0.28, 0.5), (0.36, 0.31), (0.48, 0.31), (0.48, 0.5))
    pen.polygon(CREAM, (0.53, 0.5), (0.53, 0.31), (0.65, 0.31), (0.74, 0.5))


def _road(pen: _Pen) -> None:
    pen.floor(STEEL, GROUND_LINE)


PARTS: Mapping[str, tuple[Part, ...]] = MappingProxyType(
    {
        "house": (_walls, _roof, _door, _windows, _high_sun),
        "flower": (_petals, _centre, _stem, _leaves, _pot),
        "robot": (_body, _head, _legs, _arms, _face),
        "tree": (_crown, _trunk, _fruit, _meadow, _cloud),
        "boat": (_hull, _sea, _mast, _sail, _jib, _low_sun),
        "rocket": (_hulk, _nose, _fins, _porthole, _flame),
        "cake": (_tier, _icing, _plate, _candles, _balloon),
        "car": (_chassis, _wheels, _panes, _road, _cloud),
    }
)
"""Procedure to the painters of its steps, in the order of `STEP_TEXTS`."""
