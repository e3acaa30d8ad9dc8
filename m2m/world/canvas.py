"""Anti-aliased masks and layers: Pillow draws at four times the size, the mean of 4 x 4 pixels is the coverage."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 64
"""Side of every picture of the world, in pixels."""

OVERSAMPLING = 4

RGB = tuple[int, int, int]
Mask = NDArray[np.float32]
"""Coverage in 0..1, (64, 64)."""
Layer = NDArray[np.float32]
"""Colour in 0..255, (64, 64, 3)."""


def coverage(draw: Callable[[ImageDraw.ImageDraw], None]) -> Mask:
    """What `draw` paints with `fill=255` on a canvas of 256 x 256, as coverage of the 64 x 64 pixels."""
    image = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING))
    draw(ImageDraw.Draw(image))
    return np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) / np.float32(255)


def fill(points: NDArray[np.float64]) -> Mask:
    """The inside of the polygon `points` ((n, 2), pixels)."""
    corners = _on_canvas(points)
    return coverage(lambda pen: pen.polygon(corners, fill=255))


def stroke(points: NDArray[np.float64], *, width: float) -> Mask:
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


def to_pixels(layer: Layer) -> NDArray[np.uint8]:
    """The finished picture, uint8 (64, 64, 3)."""
    return layer.round().clip(0, 255).astype(np.uint8)


def _on_canvas(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points * OVERSAMPLING]
