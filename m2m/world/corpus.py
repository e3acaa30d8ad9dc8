"""Captioned pictures with all their labels, in memory: what the foundation is trained on."""

from collections.abc import Iterator
from dataclasses import dataclass

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
class _Example:
    image: NDArray[np.uint8]
    caption: Caption
    text: str
    geometry: tuple[float, ...] | None = None


def make_corpus(*, pictures: int, views: int, steps: int, seed: int, held_out: bool) -> Corpus:
    """A corpus of so many pictures of shapes, rendered views and steps of procedures.

    All of its captions are held out of training, or (`held_out=False`) none is. The same arguments give the same
    bytes; a larger number of one kind leaves the other kinds, and the first ones of its own, as they were.
    """
    if min(pictures, views, steps) < 0 or pictures + views + steps == 0:
        raise ValueError(f"a corpus of {pictures} pictures, {views} views and {steps} steps")
    sources = (
        _pictures(pictures, _stream(seed, 0, held_out), held_out),
        _views(views, _stream(seed, 1, held_out), held_out),
        _steps(steps, _stream(seed, 2, held_out), held_out),
    )
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
    for row, example in enumerate(example for source in sources for example in source):
        caption = example.caption
        corpus.images[row] = example.image
        corpus.captions.append(example.text)
        corpus.noun[row] = NOUNS.index(caption.noun)
        corpus.colour[row] = COLOUR_NAMES.index(caption.colour)
        corpus.style[row] = ALL_STYLES.index(caption.style)
        corpus.step[row] = caption.step or 0
        if example.geometry is not None:
            corpus.geometry[row] = example.geometry
            corpus.has_geometry[row] = True
    return corpus


def make_looks(*, pictures: int, views: int, steps: int, seed: int) -> NDArray[np.uint8]:
    """Two looks at each of n scenes in no caption that is held out of training: (2, n, 64, 64, 3).

    Between them a shape has moved, turned, grown and changed its shade; a solid is seen by another camera. What is
    shown is not told: this is what a network without labels learns from.
    """
    sources = (
        _scenes(pictures, _stream(seed, 3, held_out=False)),
        _solids(views, _stream(seed, 4, held_out=False)),
        _half_built(steps, _stream(seed, 5, held_out=False)),
    )
    looks = np.empty((2, pictures + views + steps, SIDE, SIDE, 3), dtype=np.uint8)
    for row, pair in enumerate(pair for source in sources for pair in source):
        looks[:, row] = pair
    return looks


_Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _scenes(count: int, rng: np.random.Generator) -> Iterator[_Pair]:
    captions = picture_captions(held_out=False)
    for _ in range(count):
        caption = captions[rng.integers(len(captions))]
        yield paint(caption, Variation.draw(rng)), paint(caption, Variation.draw(rng))


def _solids(count: int, rng: np.random.Generator) -> Iterator[_Pair]:
    if count == 0:
        return
    from m2m.world.cameras import Camera
    from m2m.world.solids import SolidObject, render_views

    captions = view_captions(held_out=False)
    for _ in range(count):
        caption = captions[rng.integers(len(captions))]
        assert caption.second is not None
        solid = SolidObject.draw(caption.noun, caption.colour, *caption.second, rng)
        first, second = render_views(solid, [Camera.draw(rng), Camera.draw(rng)])
        yield first, second


def _half_built(count: int, rng: np.random.Generator) -> Iterator[_Pair]:
    procedures = procedure_captions(held_out=False)
    for _ in range(count):
        captions = procedures[rng.integers(len(procedures))]
        caption = captions[rng.integers(len(captions))]
        assert caption.step is not None
        first, second = (paint_step(caption.noun, caption.colour, caption.step, Variation.draw(rng)) for _ in range(2))
        yield first, second


def _stream(seed: int, kind: int, held_out: bool) -> np.random.Generator:
    return np.random.default_rng([seed, kind, int(held_out)])


def _pictures(count: int, rng: np.random.Generator, held_out: bool) -> Iterator[_Example]:
    captions = picture_captions(held_out=held_out)
    for _ in range(count):
        caption = captions[rng.integers(len(captions))]
        variation = Variation.draw(rng)
        angle = 0.0 if caption.noun == "circle" else np.radians(variation.angle)
        geometry = (variation.x, variation.y, variation.size, np.sin(angle), np.cos(angle))
        yield _Example(paint(caption, variation), caption, _worded(caption, rng), geometry)


def _views(count: int, rng: np.random.Generator, held_out: bool) -> Iterator[_Example]:
    if count == 0:
        return
    # PyVista takes a while to import, and most corpora have no views.
    from m2m.world.cameras import Camera
    from m2m.world.solids import SolidObject, render_views

    captions = view_captions(held_out=held_out)
    for _ in range(count):
        caption = captions[rng.integers(len(captions))]
        assert caption.second is not None
        solid = SolidObject.draw(caption.noun, caption.colour, *caption.second, rng)
        image = render_views(solid, [Camera.draw(rng)])[0]
        yield _Example(image, caption, _worded(caption, rng))


def _steps(count: int, rng: np.random.Generator, held_out: bool) -> Iterator[_Example]:
    procedures = procedure_captions(held_out=held_out)
    for _ in range(count):
        captions = procedures[rng.integers(len(procedures))]
        step = int(rng.integers(1, len(captions) + 1))
        caption = captions[step - 1]
        image = paint_step(caption.noun, caption.colour, step, Variation.draw(rng))
        yield _Example(image, caption, _worded(caption, rng))


def _worded(caption: Caption, rng: np.random.Generator) -> str:
    return caption.text(int(rng.integers(caption.templates)))
