"""Where points of the world land in a picture, from the convention of `m2m.world.cameras` alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m2m.manifest import FIELD_OF_VIEW
from m2m.world.cameras import Camera


def intrinsics(size: int) -> NDArray[np.float64]:
    """(3, 3): the pinhole matrix of a square picture of `size` pixels."""
    focal = size / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def project(points: ArrayLike, camera: Camera, size: int) -> NDArray[np.float64]:
    """Where world points (n, 3) lie in a picture of `size` pixels: (n, 2), u and v. They must be before the camera."""
    matrix = camera.matrix()
    homogeneous = (np.asarray(points, dtype=float) @ matrix[:, :3].T + matrix[:, 3]) @ intrinsics(size).T  # (n, 3)
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:])
