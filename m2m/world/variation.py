"""The free variation of a picture: what no caption names."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from m2m.world.canvas import RGB, mix

SIZES = (0.48, 0.64)
MAX_ANGLE = 25.0
_MARGIN = 0.08


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
        return mix(colour, (255, 255, 255) if self.shade > 0 else (0, 0, 0), abs(self.shade) / 8)
