"""A caption of a shape and what it leaves open, painted."""

import numpy as np
from numpy.typing import NDArray

from m2m.world.canvas import SIDE, to_pixels
from m2m.world.grammar import Caption
from m2m.world.shapes import OUTLINES
from m2m.world.styles import STYLE_PAINTERS
from m2m.world.variation import Variation
from m2m.world.vocabulary import COLOURS


def paint(caption: Caption, variation: Variation) -> NDArray[np.uint8]:
    """The picture, uint8 (64, 64, 3), of a caption of a shape in one of `STYLES`.

    Raises:
        ValueError: the caption leaves something open, or is of a solid or a procedure, which others paint.
    """
    noun, colour, style = caption.meaning
    if noun not in OUTLINES:
        raise ValueError(f"paint draws shapes, not the {noun} of {caption.text()!r}")
    outline = _placed(OUTLINES[noun], variation)
    layer = STYLE_PAINTERS[style](outline, variation.shaded(COLOURS[colour]))
    return to_pixels(layer)


def _placed(outline: NDArray[np.float64], variation: Variation) -> NDArray[np.float64]:
    """`outline` turned, sized and moved to its place, in pixels."""
    angle = np.radians(variation.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    placed: NDArray[np.float64] = SIDE * (variation.size * outline @ turn.T + (variation.x, variation.y))
    return placed
