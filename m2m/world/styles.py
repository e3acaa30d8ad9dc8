"""The six ways of drawing. Each takes an outline ((n, 2), pixels) and a colour, and gives a layer.

Backgrounds have fixed phase and period, and periods of 8 or 16 pixels that fall on the grid of an f=8 autoencoder;
lines are at least 3 pixels wide: what a small autoencoder blurs must not carry meaning.
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from m2m.world.canvas import OVERSAMPLING, RGB, SIDE, Layer, blur, coverage, fill, mix, over, plain, stroke

WHITE = (255, 255, 255)
INK = (24, 22, 34)


def _flat(outline: NDArray[np.float64], colour: RGB) -> Layer:
    """Solid, on pale paper."""
    return over(plain((243, 238, 228)), colour, fill(outline))


def _sketch(outline: NDArray[np.float64], colour: RGB) -> Layer:
    """A thick line with a light wash inside, on squared paper."""
    washed = over(_squared_paper(), mix(colour, WHITE, 0.72), fill(outline))
    return over(washed, colour, stroke(outline, width=4))


def _neon(outline: NDArray[np.float64], colour: RGB) -> Layer:
    """A glowing tube in the dark."""
    tube = stroke(outline, width=4)
    glow = np.minimum(1, blur(tube, radius=4.5) * 1.25) * 0.75
    lit = over(over(plain((13, 11, 22)), colour, glow), mix(colour, INK, 0.45), fill(outline) * 0.7)
    return over(over(lit, colour, tube), mix(colour, WHITE, 0.55), stroke(outline, width=1.5))


def _striped(outline: NDArray[np.float64], colour: RGB) -> Layer:
    """Solid with a darker rim, on wide diagonal stripes."""
    return over(over(_stripes(), colour, fill(outline)), mix(colour, INK, 0.5), stroke(outline, width=3))


def _comic(outline: NDArray[np.float64], colour: RGB) -> Layer:
    """Solid with a thick ink line and a hard shadow, on a grid of dots."""
    shadowed = over(_dots(), INK, fill(outline + 3))
    return over(over(shadowed, colour, fill(outline)), INK, stroke(outline, width=3.5))


def _sunset(outline: NDArray[np.float64], colour: RGB) -> Layer:
    """A sticker with a white edge and a soft shadow, before an evening sky."""
    sticker = np.maximum(fill(outline), stroke(outline, width=6))
    shadowed = over(_evening_sky(), INK, blur(sticker, radius=3) * 0.55)
    return over(over(shadowed, WHITE, sticker), colour, fill(outline))


STYLE_PAINTERS: Mapping[str, Callable[[NDArray[np.float64], RGB], Layer]] = MappingProxyType(
    {
        "flat": _flat,
        "sketch": _sketch,
        "neon": _neon,
        "striped": _striped,
        "comic": _comic,
        "sunset": _sunset,
    }
)


@cache
def _squared_paper() -> Layer:
    line = np.where(np.isin(np.arange(SIDE) % 8, (0, 7)), 0.8, 0.0).astype(np.float32)
    return over(plain((250, 250, 246)), (176, 200, 222), np.maximum.outer(line, line))


@cache
def _stripes() -> Layer:
    across = np.add.outer(np.arange(SIDE * OVERSAMPLING), np.arange(SIDE * OVERSAMPLING))
    dark = (across // (8 * OVERSAMPLING) % 2).astype(np.float32)
    mask = dark.reshape(SIDE, OVERSAMPLING, SIDE, OVERSAMPLING).mean(axis=(1, 3))
    return over(plain((250, 247, 240)), (172, 180, 196), mask)


@cache
def _dots() -> Layer:
    radius = 2.2 * OVERSAMPLING
    centres = [OVERSAMPLING * middle for middle in range(4, SIDE, 8)]

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for x, y in product(centres, centres):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    return over(plain((255, 250, 225)), (236, 120, 110), coverage(draw))


@cache
def _evening_sky() -> Layer:
    stops = np.array([0.0, 0.45, 0.75, 1.0])
    colours = np.array([(38, 30, 92), (150, 62, 130), (240, 120, 96), (255, 196, 120)])
    heights = np.linspace(0, 1, SIDE)
    column = np.stack([np.interp(heights, stops, channel) for channel in colours.T], axis=1)
    return np.broadcast_to(column[:, None].astype(np.float32), (SIDE, SIDE, 3))
