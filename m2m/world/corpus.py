"""What the world shows: captioned pictures with all their labels for the foundation, sets of pictures for the tasks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from m2m.manifest import Split
from m2m.workers import process_pool
from m2m.world.cameras import CORPUS_DISTANCES, CORPUS_ELEVATIONS, Camera
from m2m.world.grammar import (
    ALL_STYLES,
    ATTRIBUTES,
    COLOUR_NAMES,
    KINDS,
    NOUNS,
    Caption,
    picture_captions,
    procedure_captions,
    view_captions,
)
from m2m.world.pictures import SIDE, Variation, paint
from m2m.world.procedures import paint_step

OPEN = -1
"""In place of a trait that a caption does not name."""
SCENES_AT_ONCE = 64
"""That a process is given."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """n captioned pictures: first shapes in styles, then rendered views, then steps of procedures."""

    images: NDArray[np.uint8]
    """(n, 64, 64, 3)"""
    captions: list[str]
    """Of shapes each of the seven kinds alike: what a caption leaves open, its picture shows as it happens to."""
    shown: NDArray[np.int64]
    """(n, 7): all that a picture shows and a caption may name, as numbers (`_traits`)"""
    said: NDArray[np.int64]
    """(n, 7): what of it the caption names; `OPEN` elsewhere"""
    geometry: NDArray[np.float32]
    """(n, 5): x, y, size (fractions of the picture), sine and cosine of the angle; zeros where there is none.
    A circle's angle cannot be seen: it is 0."""

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """(n,) each: numbers of noun, colour (of a view, the main solid's) and style; the step, 0 of no procedure."""
        return dict(zip((*ATTRIBUTES, "step"), np.maximum(self.shown[:, 1:5].T, 0), strict=True))

    @property
    def has_geometry(self) -> NDArray[np.bool_]:
        """(n,), true for shapes."""
        return np.asarray(self.shown[:, 0] == 0)


_Look: TypeAlias = tuple[NDArray[np.uint8], tuple[float, ...]]
"""A picture, and where in it a shape is."""
_NOWHERE = (0.0,) * 5
_Scene: TypeAlias = tuple[Caption, Caption, str, tuple[_Look, ...]]
"""What is shown, what is said of it, in which words; and each time it was looked at, as it happened to be."""


def make_corpus(*, pictures: int, views: int, steps: int, seed: int, split: Split, processes: int = 1) -> Corpus:
    """A corpus of so many pictures of shapes, rendered views and steps of procedures.

    They show combinations of one split alone. The same arguments give the same bytes, in any number of processes; a
    larger number of one kind leaves the other kinds, and the first ones of its own, as they were.
    """
    if min(pictures, views, steps) < 0 or pictures + views + steps == 0:
        raise ValueError(f"a corpus of {pictures} pictures, {views} views and {steps} steps")
    n = pictures + views + steps
    corpus = Corpus(
        images=np.empty((n, SIDE, SIDE, 3), dtype=np.uint8),
        captions=[],
        shown=np.empty((n, 7), dtype=np.int64),
        said=np.empty((n, 7), dtype=np.int64),
        geometry=np.empty((n, 5), dtype=np.float32),
    )
    found = _scenes((pictures, views, steps), seed=seed, split=split, looks=1, processes=processes)
    for row, (shown, said, text, (look,)) in enumerate(found):
        corpus.images[row], corpus.geometry[row] = look
        corpus.captions.append(text)
        corpus.shown[row], corpus.said[row] = _traits(shown), _traits(said)
    return corpus


def make_looks(*, pictures: int, views: int, steps: int, seed: int, processes: int = 1) -> NDArray[np.uint8]:
    """Two looks at each of n scenes, in combinations of training alone: (2, n, 64, 64, 3).

    Between them a shape has moved, turned, grown and changed its shade; a solid is seen by another camera. What is
    shown is not told: this is what a network without labels learns from.
    """
    looks = np.empty((2, pictures + views + steps, SIDE, SIDE, 3), dtype=np.uint8)
    found = _scenes((pictures, views, steps), seed=seed, split="train", looks=2, processes=processes)
    for row, (*_, seen) in enumerate(found):
        looks[:, row] = [image for image, _ in seen]
    return looks


def _scenes(counts: tuple[int, ...], *, seed: int, split: Split, looks: int, processes: int) -> Iterator[_Scene]:
    """Shapes, then solids, then half-built things."""
    with ExitStack() as stack:
        find: Callable[..., Iterator[_Scene]] = map
        if processes > 1:
            pool = stack.enter_context(process_pool(processes))
            find = partial(pool.map, chunksize=SCENES_AT_ONCE)
        for kind, count in enumerate(counts):
            yield from find(partial(_scene, kind, seed, split, looks), range(count))


def _scene(kind: int, seed: int, split: Split, looks: int, number: int) -> _Scene:
    """One scene, whatever others there are."""
    rng = np.random.default_rng([seed, kind, ("train", "validation", "test").index(split), looks, number])
    shown, look = (_shape, _solid, _half_built)[kind](rng, split)
    said = shown.naming(KINDS[rng.integers(len(KINDS))]) if kind == 0 else shown
    text = said.text(int(rng.integers(said.templates)))
    return shown, said, text, tuple(look() for _ in range(looks))


def _shape(rng: np.random.Generator, split: Split) -> tuple[Caption, Callable[[], _Look]]:
    captions = picture_captions(split)
    caption = captions[rng.integers(len(captions))]

    def look() -> _Look:
        variation = Variation.draw(rng)
        angle = 0.0 if caption.noun == "circle" else np.radians(variation.angle)
        geometry = (variation.x, variation.y, variation.size, np.sin(angle), np.cos(angle))
        return paint(caption, variation), geometry

    return caption, look


def _solid(rng: np.random.Generator, split: Split) -> tuple[Caption, Callable[[], _Look]]:
    from m2m.world.studio import SolidObject, render_views  # PyVista takes a while, and most corpora have no views

    captions = view_captions(split)
    caption = captions[rng.integers(len(captions))]
    assert caption.second is not None  # it is a caption of a view
    solid = SolidObject.draw(*caption.meaning[:2], *caption.second, rng)
    return caption, lambda: (render_views(solid, [Camera.draw(rng)])[0], _NOWHERE)


def _half_built(rng: np.random.Generator, split: Split) -> tuple[Caption, Callable[[], _Look]]:
    captions = tuple(chain.from_iterable(procedure_captions(split)))
    caption = captions[rng.integers(len(captions))]
    noun, colour, _ = caption.meaning
    return caption, lambda: (paint_step(noun, colour, caption.step or 0, Variation.draw(rng)), _NOWHERE)


def _traits(caption: Caption) -> tuple[int, ...]:
    """Which kind of picture it tells of, and what it names: noun, colour, style, step, noun and colour of a second."""
    kind = (caption.step is not None) + 2 * (caption.second is not None)
    words = (caption.noun, caption.colour, caption.style, *(caption.second or (None, None)))
    named = zip((NOUNS, COLOUR_NAMES, ALL_STYLES, NOUNS, COLOUR_NAMES), words, strict=True)
    noun, colour, style, *second = (names.index(word) if word else OPEN for names, word in named)
    return kind, noun, colour, style, caption.step or OPEN, *second


# Sets for the tasks: an object from several sides, a thing drawn step after step


def draw_views(
    caption: Caption, *, on_orbit: int, at_random: int, start_within: float, seed: int, size: int
) -> tuple[NDArray[np.uint8], dict[str, list[list[list[float]]]]]:
    """One object of a view caption, first from an orbit, then from random cameras; a function of its arguments.

    On an orbit cameras stand at one height and distance, evenly spaced, counter-clockwise.

    Args:
        start_within: degrees from the object's front, either way, within which the orbit's first one stands.

    Returns:
        pictures (n, size, size, 3), and as ``poses`` their world-to-camera matrices, each 3x4, as `cameras` has them.
    """
    from m2m.world.studio import SolidObject, render_views  # PyVista takes a while to import

    assert caption.second is not None  # it is a caption of a view
    rng = np.random.default_rng(seed)
    solid = SolidObject.draw(*caption.meaning[:2], *caption.second, rng)
    start = solid.front + rng.uniform(-start_within, start_within)
    elevation, distance = rng.uniform(*CORPUS_ELEVATIONS), rng.uniform(*CORPUS_DISTANCES)
    cameras = [Camera((start + 360 * step / on_orbit) % 360, elevation, distance) for step in range(on_orbit)]
    cameras += [Camera.draw(rng) for _ in range(at_random)]
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
