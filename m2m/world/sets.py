"""Sets of pictures for the two tasks: an object from several sides, a thing drawn step after step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2m.world.cameras import CORPUS_DISTANCES, CORPUS_ELEVATIONS, Camera
from m2m.world.grammar import Caption
from m2m.world.procedures import paint_step
from m2m.world.variation import Variation


def orbit(views: int, *, front: float, start_within: float, rng: np.random.Generator) -> list[Camera]:
    """Cameras at one height and distance, evenly spaced, counter-clockwise.

    Args:
        front: azimuth of the object's front.
        start_within: degrees from there, either way, within which the first one stands.
    """
    start = front + rng.uniform(-start_within, start_within)
    elevation, distance = rng.uniform(*CORPUS_ELEVATIONS), rng.uniform(*CORPUS_DISTANCES)
    return [Camera((start + 360 * step / views) % 360, elevation, distance) for step in range(views)]


def draw_views(
    caption: Caption, *, on_orbit: int, at_random: int, start_within: float, seed: int, size: int
) -> tuple[NDArray[np.uint8], dict[str, list[list[list[float]]]]]:
    """One object of a view caption, first from an orbit, then from random cameras; a function of its arguments.

    Returns:
        pictures (n, size, size, 3), and as ``poses`` their world-to-camera matrices, each 3x4, as `cameras` has them.
    """
    from m2m.world.solids import SolidObject, render_views  # PyVista takes a while to import

    assert caption.second is not None  # it is a caption of a view
    rng = np.random.default_rng(seed)
    solid = SolidObject.draw(*caption.meaning[:2], *caption.second, rng)
    around = orbit(on_orbit, front=solid.front, start_within=start_within, rng=rng)
    cameras = [*around, *(Camera.draw(rng) for _ in range(at_random))]
    return render_views(solid, cameras, size), {"poses": [camera.matrix().tolist() for camera in cameras]}


def draw_procedure(captions: Sequence[Caption], *, seed: int) -> tuple[NDArray[np.uint8], dict[str, list[str]]]:
    """One thing step after step, in one place and size; a function of its arguments.

    Args:
        captions: those of all its steps.

    Returns:
        pictures (n, 64, 64, 3), and as ``steps`` their captions.
    """
    variation = Variation.draw(np.random.default_rng(seed))
    images = np.stack([paint_step(*one.meaning[:2], one.step or 0, variation) for one in captions])
    return images, {"steps": [one.text() for one in captions]}
