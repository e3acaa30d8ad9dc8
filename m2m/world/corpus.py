"""Captioned pictures with all their labels, in memory: what the foundation is trained on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m2m.world.canvas import SIDE
from m2m.world.grammar import Caption, picture_captions, procedure_captions, view_captions
from m2m.world.pictures import paint
from m2m.world.procedures import paint_step
from m2m.world.variation import Variation
from m2m.world.vocabulary import ALL_STYLES, COLOUR_NAMES, NOUNS


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """n captioned pictures: first shapes in styles, then rendered views, then steps of procedures."""

    images: NDArray[np.uint8]
    """(n, 64, 64, 3)"""
    captions: list[str]
    noun: NDArray[np.int64]
    """(n,), indices into `NOUNS`; of a view, the main solid's."""
    colour: NDArray[np.int64]
    """(n,), indices into `COLOUR_NAMES`; of a view, the main solid's."""
    style: NDArray[np.int64]
    """(n,), indices into `ALL_STYLES`"""
    step: NDArray[np.int64]
    """(n,), from 1; 0 where there is no procedure."""
    geometry: NDArray[np.float32]
    """(n, 5): x, y, size (fractions of the picture), sine and cosine of the angle; zeros where there is none."""
    has_geometry: NDArray[np.bool_]
    """(n,), true for shapes. A circle's angle cannot be seen: it is 0."""

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class _Look:
    image: NDArray[np.uint8]
    geometry: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Scene:
    """Something to look at, each time as it happens to be."""

    caption: Caption
    look: Callable[[], _Look]
    rng: np.random.Generator

    def text(self) -> str:
        """The caption in one of its wordings."""
        return self.caption.text(int(self.rng.integers(self.caption.templates)))


def make_corpus(*, pictures: int, views: int, steps: int, seed: int, held_out: bool) -> Corpus:
    """A corpus of so many pictures of shapes, rendered views and steps of procedures.

    All of its captions are held out of training, or (`held_out=False`) none is. The same arguments give the same
    bytes; a larger number of one kind leaves the other kinds, and the first ones of its own, as they were.
    """
    if min(pictures, views, steps) < 0 or pictures + views + steps == 0:
        raise ValueError(f"a corpus of {pictures} pictures, {views} views and {steps} steps")
    scenes = _scenes(pictures, views, steps, seed=seed, kinds=(0, 1, 2), held_out=held_out)
    n = pictures + views + steps
    corpus = Corpus(
        images=np.empty((n, SIDE, SIDE, 3), dtype=np.uint8),
        captions=[],
        noun=np.empty(n, dtype=np.int64),
        colour=np.empty(n, dtype=np.int64),
        style=np.empty(n, dtype=np.int64),
        step=np.zeros(n, dtype=np.int64),
        geometry=np.zeros((n, 5), dtype=np.float32),
        has_geometry=np.zeros(n, dtype=np.bool_),
    )
    for row, scene in enumerate(scenes):
        caption, look = scene.caption, scene.look()
        corpus.images[row] = look.image
        corpus.captions.append(scene.text())
        corpus.noun[row] = NOUNS.index(caption.noun)
        corpus.colour[row] = COLOUR_NAMES.index(caption.colour)
        corpus.style[row] = ALL_STYLES.index(caption.style)
        corpus.step[row] = caption.step or 0
        if look.geometry is not None:
            corpus.geometry[row] = look.geometry
            corpus.has_geometry[row] = True
    return corpus


def make_looks(*, pictures: int, views: int, steps: int, seed: int) -> NDArray[np.uint8]:
    """Two looks at each of n scenes in no caption that is held out of training: (2, n, 64, 64, 3).

    Between them a shape has moved, turned, grown and changed its shade; a solid is seen by another camera. What is
    shown is not told: this is what a network without labels learns from.
    """
    looks = np.empty((2, pictures + views + steps, SIDE, SIDE, 3), dtype=np.uint8)
    for row, scene in enumerate(_scenes(pictures, views, steps, seed=seed, kinds=(3, 4, 5), held_out=False)):
        for looked in looks:
            looked[row] = scene.look().image
    return looks


def _scenes(
    pictures: int, views: int, steps: int, *, seed: int, kinds: tuple[int, int, int], held_out: bool
) -> Iterator[_Scene]:
    """Shapes, then solids, then half-built things, each kind from a stream of its own."""
    shapes, solids, built = (np.random.default_rng([seed, kind, int(held_out)]) for kind in kinds)
    yield from _shapes(pictures, shapes, held_out)
    yield from _solids(views, solids, held_out)
    yield from _half_built(steps, built, held_out)


def _shapes(count: int, rng: np.random.Generator, held_out: bool) -> Iterator[_Scene]:
    captions = picture_captions("test" if held_out else "train")

    def look(caption: Caption) -> _Look:
        variation = Variation.draw(rng)
        angle = 0.0 if caption.noun == "circle" else np.radians(variation.angle)
        geometry = (variation.x, variation.y, variation.size, np.sin(angle), np.cos(angle))
        return _Look(paint(caption, variation), geometry)

    for _ in range(count):
        caption = captions[rng.integers(len(captions))]
        yield _Scene(caption, partial(look, caption), rng)


def _solids(count: int, rng: np.random.Generator, held_out: bool) -> Iterator[_Scene]:
    if count == 0:
        return
    # PyVista takes a while to import, and most corpora have no views.
    from m2m.world.cameras import Camera
    from m2m.world.solids import SolidObject, render_views

    captions = view_captions("test" if held_out else "train")

    def look(solid: SolidObject) -> _Look:
        return _Look(render_views(solid, [Camera.draw(rng)])[0])

    for _ in range(count):
        caption = captions[rng.integers(len(captions))]
        assert caption.second is not None
        solid = SolidObject.draw(caption.noun, caption.colour, *caption.second, rng)
        yield _Scene(caption, partial(look, solid), rng)


def _half_built(count: int, rng: np.random.Generator, held_out: bool) -> Iterator[_Scene]:
    procedures = procedure_captions("test" if held_out else "train")

    def look(caption: Caption, step: int) -> _Look:
        return _Look(paint_step(caption.noun, caption.colour, step, Variation.draw(rng)))

    for _ in range(count):
        captions = procedures[rng.integers(len(procedures))]
        step = int(rng.integers(1, len(captions) + 1))
        yield _Scene(captions[step - 1], partial(look, captions[step - 1], step), rng)
