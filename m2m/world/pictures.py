"""Pictures of shapes: what a caption names is placed, shaded and painted as it leaves open, in one of six styles.

Masks are anti-aliased: Pillow draws at four times the size, the mean of 4 x 4 pixels is the coverage. Shapes are
outlines. A style takes an outline ((n, 2), pixels) and a colour, and gives a layer. Backgrounds have fixed phase and
period, and periods of 8 or 16 pixels that fall on the grid of an f=8 autoencoder; lines are at least 3 pixels wide:
what a small autoencoder blurs must not carry meaning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from m2m.world.grammar import COLOURS, Caption

SIDE = 64
"""Side of every picture of the world, in pixels."""

OVERSAMPLING = 4

RGB = tuple[int, int, int]
Mask = NDArray[np.float32]
"""Coverage in 0..1, (64, 64)."""
Layer = NDArray[np.float32]
"""Colour in 0..255, (64, 64, 3)."""
Outline = NDArray[np.float64]
"""(n, 2): the corners of a polygon."""
_ROUND = 48
"""Corners of a polygon that shall look round."""
SIZES = (0.48, 0.64)
MAX_ANGLE = 25.0
_MARGIN = 0.08
WHITE = (255, 255, 255)
INK = (24, 22, 34)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Where and how large; which shade of the colour."""

    x: float
    """Centre, as a fraction of the picture's width."""
    y: float
    """Centre, as a fraction of the picture's height, downwards."""
    size: float
    """Diameter, as a fraction of the picture's side."""
    angle: float
    """Degrees, clockwise; small enough that no shape turns into another or into itself."""
    shade: float
    """From -1 (darker) to 1 (lighter)."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A random one; the object lies fully inside the picture."""
        size = rng.uniform(*SIZES)
        near, far = size / 2 + _MARGIN, 1 - size / 2 - _MARGIN
        return cls(
            x=rng.uniform(near, far),
            y=rng.uniform(near, far),
            size=size,
            angle=rng.uniform(-MAX_ANGLE, MAX_ANGLE),
            shade=rng.uniform(-1, 1),
        )

    def shaded(self, colour: RGB) -> RGB:
        """`colour`, at most an eighth lighter or darker."""
        return mix(colour, WHITE if self.shade > 0 else (0, 0, 0), abs(self.shade) / 8)


def paint(caption: Caption, variation: Variation) -> NDArray[np.uint8]:
    """The picture, uint8 (64, 64, 3), of a caption of a shape in one of `STYLES`.

    Raises:
        ValueError: the caption leaves something open, or is of a solid or a procedure, which others paint.
    """
    noun, colour, style = caption.meaning
    if noun not in OUTLINES:
        raise ValueError(f"paint draws shapes, not the {noun} of {caption.text()!r}")
    angle = np.radians(variation.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outline = SIDE * (variation.size * OUTLINES[noun] @ turn.T + (variation.x, variation.y))  # in its place, in pixels
    layer = STYLE_PAINTERS[style](outline, variation.shaded(COLOURS[colour]))
    return layer.round().clip(0, 255).astype(np.uint8)


# Masks and layers


def coverage(draw: Callable[[ImageDraw.ImageDraw], None]) -> Mask:
    """What `draw` paints with `fill=255` on a canvas of 256 x 256, as coverage of the 64 x 64 pixels."""
    image = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING))
    draw(ImageDraw.Draw(image))
    return np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) / np.float32(255)


def fill(points: Outline) -> Mask:
    """The inside of the polygon `points` ((n, 2), pixels)."""
    corners = _on_canvas(points)
    return coverage(lambda pen: pen.polygon(corners, fill=255))


def stroke(points: Outline, *, width: float) -> Mask:
    """A line of `width` pixels along the closed polygon `points` ((n, 2), pixels), with round corners."""
    corners = _on_canvas(points)
    radius = width * OVERSAMPLING / 2

    def draw(pen: ImageDraw.ImageDraw) -> None:
        pen.line([*corners, corners[0]], fill=255, width=round(2 * radius))
        for x, y in corners:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    return coverage(draw)


def blur(mask: Mask, *, radius: float) -> Mask:
    """`mask` blurred by a Gaussian of `radius` pixels."""
    image = Image.fromarray((mask * 255).round().astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / np.float32(255)


def over(below: Layer, colour: RGB, mask: Mask) -> Layer:
    """`colour` laid over `below` where `mask` covers."""
    alpha = mask[:, :, None]
    return below * (1 - alpha) + np.asarray(colour, dtype=np.float32) * alpha


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`colour` with `share` (0..1) of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def plain(colour: RGB) -> Layer:
    """A layer of one colour."""
    return np.broadcast_to(np.asarray(colour, dtype=np.float32), (SIDE, SIDE, 3))


def _on_canvas(points: Outline) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points * OVERSAMPLING]


# Outlines of about unit diameter around (0, 0), y pointing down


def _ring(angles: NDArray[np.float64]) -> Outline:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_TURN = np.linspace(0, 2 * np.pi, _ROUND, endpoint=False)


def _heart() -> Outline:
    y = -(13 * np.cos(_TURN) - 5 * np.cos(2 * _TURN) - 2 * np.cos(3 * _TURN) - np.cos(4 * _TURN))
    return np.stack([16 * np.sin(_TURN) ** 3, y - 2.5], axis=1) / 32


def _cross() -> Outline:
    corners = np.array([(0.17, -0.5), (0.17, -0.17), (0.5, -0.17)])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.concatenate([corners @ np.linalg.matrix_power(quarter, turns).T for turns in range(4)])


def _moon() -> Outline:
    # The disc of radius 0.5 without the disc of radius 0.42 around (bite, 0): two arcs that meet in the horns.
    outer, inner, bite = 0.5, 0.42, 0.26
    x = (bite**2 + outer**2 - inner**2) / (2 * bite)
    horn, inner_horn = np.arccos(x / outer), np.arccos((x - bite) / inner)
    back = outer * _ring(np.linspace(horn, 2 * np.pi - horn, _ROUND))
    front = inner * _ring(np.linspace(2 * np.pi - inner_horn, inner_horn, _ROUND // 2)) + (bite, 0.0)
    return np.asarray(np.add(np.concatenate([back, front[1:-1]]), (0.1, 0.0)))


OUTLINES: Final[Mapping[str, Outline]] = {
    "circle": 0.47 * _ring(_TURN),
    "square": 0.41 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "triangle": 0.58 * _ring(np.radians([-90.0, 30.0, 150.0])) + (0.0, 0.1),
    "star": np.tile([0.56, 0.25], 5)[:, None] * _ring(np.radians(np.arange(10) * 36.0 - 90)) + (0.0, 0.03),
    "heart": _heart(),
    "cross": _cross(),
    "moon": _moon(),
    "arrow": np.array(
        [(-0.52, -0.15), (0.02, -0.15), (0.02, -0.42), (0.52, 0.0), (0.02, 0.42), (0.02, 0.15), (-0.52, 0.15)]
    ),
}
"""Shape to its outline, (corners, 2)."""


# Backgrounds, (64, 64, 3)

_LINES = np.where(np.isin(np.arange(SIDE) % 8, (0, 7)), 0.8, 0.0).astype(np.float32)
_SQUARED_PAPER = over(plain((250, 250, 246)), (176, 200, 222), np.maximum.outer(_LINES, _LINES))

_ACROSS = np.add.outer(np.arange(SIDE * OVERSAMPLING), np.arange(SIDE * OVERSAMPLING))
_DARK = (_ACROSS // (8 * OVERSAMPLING) % 2).astype(np.float32).reshape(SIDE, OVERSAMPLING, SIDE, OVERSAMPLING)
_STRIPES = over(plain((250, 247, 240)), (172, 180, 196), _DARK.mean(axis=(1, 3)))


def _draw_dots(pen: ImageDraw.ImageDraw) -> None:
    radius, middles = 2.2 * OVERSAMPLING, [OVERSAMPLING * middle for middle in range(4, SIDE, 8)]
    for x, y in product(middles, middles):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


_DOTS = over(plain((255, 250, 225)), (236, 120, 110), coverage(_draw_dots))

_DUSK = np.array([(38, 30, 92), (150, 62, 130), (240, 120, 96), (255, 196, 120)])
_HEIGHTS = np.linspace(0, 1, SIDE)
_SKY = np.stack([np.interp(_HEIGHTS, [0.0, 0.45, 0.75, 1.0], channel) for channel in _DUSK.T], axis=1)  # (64, 3)
_EVENING_SKY = np.broadcast_to(_SKY[:, None].astype(np.float32), (SIDE, SIDE, 3))


# Styles


def _flat(outline: Outline, colour: RGB) -> Layer:
    """Solid, on pale paper."""
    return over(plain((243, 238, 228)), colour, fill(outline))


def _sketch(outline: Outline, colour: RGB) -> Layer:
    """A thick line with a light wash inside, on squared paper."""
    washed = over(_SQUARED_PAPER, mix(colour, WHITE, 0.72), fill(outline))
    return over(washed, colour, stroke(outline, width=4))


def _neon(outline: Outline, colour: RGB) -> Layer:
    """A glowing tube in the dark."""
    tube = stroke(outline, width=4)
    glow = np.minimum(1, blur(tube, radius=4.5) * 1.25) * 0.75
    lit = over(over(plain((13, 11, 22)), colour, glow), mix(colour, INK, 0.45), fill(outline) * 0.7)
    return over(over(lit, colour, tube), mix(colour, WHITE, 0.55), stroke(outline, width=1.5))


def _striped(outline: Outline, colour: RGB) -> Layer:
    """Solid with a darker rim, on wide diagonal stripes."""
    return over(over(_STRIPES, colour, fill(outline)), mix(colour, INK, 0.5), stroke(outline, width=3))


def _comic(outline: Outline, colour: RGB) -> Layer:
    """Solid with a thick ink line and a hard shadow, on a grid of dots."""
    shadowed = over(_DOTS, INK, fill(outline + 3))
    return over(over(shadowed, colour, fill(outline)), INK, stroke(outline, width=3.5))


def _sunset(outline: Outline, colour: RGB) -> Layer:
    """A sticker with a white edge and a soft shadow, before an evening sky."""
    sticker = np.maximum(fill(outline), stroke(outline, width=6))
    shadowed = over(_EVENING_SKY, INK, blur(sticker, radius=3) * 0.55)
    return over(over(shadowed, WHITE, sticker), colour, fill(outline))


STYLE_PAINTERS: Final[Mapping[str, Callable[[Outline, RGB], Layer]]] = {
    "flat": _flat,
    "sketch": _sketch,
    "neon": _neon,
    "striped": _striped,
    "comic": _comic,
    "sunset": _sunset,
}
