"""Cameras that look at an object in the middle of the world.

The convention, for every camera of this project:

- World: right-handed, z up, the object at the origin. Azimuth is counted in degrees from +x towards +y
  (counter-clockwise seen from above), elevation in degrees above the xy plane.
- Camera (OpenCV): x to the right, y down, z forward into the picture. `Camera.matrix` is world-to-camera, 3x4:
  ``x_camera = R @ x_world + t``.
- Files that others made may have Blender's camera instead (x right, y up, z backward, out of the picture), as Zero123's
  renderings do: `m2m.data.folder_sets.TO_OPENCV` turns such a matrix into one of ours.
- The lens: a pinhole with `m2m.manifest.FIELD_OF_VIEW` across the whole square picture, both ways.
- Pixels: u to the right, v down, (0, 0) the outer corner of the top left pixel, so that the centre of the pixel in row
  i and column j is (j + 0.5, i + 0.5).

::

            z                                u
            |    camera at azimuth 0      +----->
            |    ,-'                      |  picture
            |,-'  elevation             v |
            o-------- x                   v
           /
          y   azimuth 90
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from m2m.errors import UserError

CORPUS_ELEVATIONS: Final = (-10.0, 50.0)
CORPUS_DISTANCES: Final = (2.25, 2.5)


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera on a sphere about the origin, looking at it, upright.

    Raises:
        UserError: a number is out of its range or not finite.
    """

    azimuth: float
    """Degrees from +x towards +y; any number, 360 is a full turn."""

    elevation: float
    """Degrees above the xy plane, -90 to 90."""

    distance: float = 2.25
    """From the origin, in world units; objects of the world stay within 1 unit of it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.azimuth) and -90 <= self.elevation <= 90 and 0 < self.distance < math.inf):
            raise UserError(f"{self}: expected a finite azimuth, an elevation from -90 to 90 and a distance above 0")

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A random camera as the corpus has them: from any side, from a little below the object to well above it."""
        azimuth = rng.uniform(0, 360)
        elevation = rng.uniform(*CORPUS_ELEVATIONS)
        return cls(azimuth=azimuth, elevation=elevation, distance=rng.uniform(*CORPUS_DISTANCES))

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3): the camera's right, down and forward axes in the world, one a row; defined at the poles too."""
        azimuth, elevation = math.radians(self.azimuth), math.radians(self.elevation)
        sin_a, cos_a, sin_e, cos_e = math.sin(azimuth), math.cos(azimuth), math.sin(elevation), math.cos(elevation)
        return np.array(
            [
                [-sin_a, cos_a, 0.0],
                [sin_e * cos_a, sin_e * sin_a, -cos_e],
                [-cos_e * cos_a, -cos_e * sin_a, -sin_e],
            ]
        )

    @property
    def position(self) -> NDArray[np.float64]:
        """(3,): the camera's centre in the world."""
        return np.asarray(-self.distance * self.rotation[2])

    def matrix(self) -> NDArray[np.float64]:
        """(3, 4): world to camera, [R | t]; t is (0, 0, distance) because the camera looks at the origin."""
        return np.column_stack([self.rotation, (0.0, 0.0, self.distance)])
