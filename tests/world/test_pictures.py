from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from m2m.manifest import Split
from m2m.world.grammar import COLOURS, SHAPES, STYLES, Caption, picture_captions
from m2m.world.pictures import OUTLINES, Variation, paint

MIDDLE = Variation(x=0.5, y=0.5, size=0.6, angle=0.0, shade=0.0)


def test_all_combinations_are_painted_and_differ() -> None:
    captions = [caption for split in get_args(Split) for caption in picture_captions(split)]
    pictures = [paint(caption, MIDDLE) for caption in captions]
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(captions) == 384


def test_variations_keep_every_shape_inside() -> None:
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for _ in range(50):
            variation = Variation.draw(rng)
            picture = paint(Caption(shape, "blue", "flat"), variation).astype(int)
            paper = picture[0, 0]
            edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert (edge == paper).all()


@pytest.mark.parametrize("style", STYLES)
def test_the_background_has_no_randomness(style: str) -> None:
    rng = np.random.default_rng(1)
    pictures = [paint(Caption(shape, "red", style), Variation.draw(rng)) for shape in SHAPES for _ in range(20)]
    common = np.median(np.stack(pictures), axis=0)
    corner = np.stack(pictures)[:, :3, :3].astype(int) - common[:3, :3]
    assert np.abs(corner).max() <= 12  # shadows and glows may reach there, faintly


@pytest.mark.parametrize("style", STYLES)
def test_the_colour_of_the_object_is_the_one_named(style: str) -> None:
    """The pixels a colour changes are nearer to that colour's hue than to any other's."""
    palette = np.array(list(COLOURS.values()), dtype=float)
    for shape in SHAPES:
        pictures = np.stack([paint(Caption(shape, colour, style), MIDDLE) for colour in COLOURS]).astype(float)
        object_pixels = np.ptp(pictures, axis=0).max(axis=-1) > 60
        assert object_pixels.mean() > 0.05
        for index in range(len(COLOURS)):
            mean = pictures[index][object_pixels].mean(axis=0)
            assert np.argmax(_chroma(palette) @ _chroma(mean)) == index


def test_shade_and_place_change_the_picture_but_little_else_does() -> None:
    caption = Caption("heart", "green", "striped")
    assert (paint(caption, MIDDLE) == paint(caption, MIDDLE)).all()
    for change in ({"x": 0.45}, {"y": 0.45}, {"size": 0.5}, {"angle": 20.0}, {"shade": 1.0}):
        assert (paint(caption, replace(MIDDLE, **change)) != paint(caption, MIDDLE)).any()


def test_a_positive_angle_turns_clockwise() -> None:
    ahead = paint(Caption("arrow", "blue", "flat"), replace(MIDDLE, angle=25.0)).astype(int)
    rows, columns = np.nonzero(np.abs(ahead - ahead[0, 0]).sum(axis=-1) > 100)
    assert rows[columns.argmax()] > 36  # the tip points to the right and now also down


def test_no_shape_is_another_one_turned() -> None:
    masks = {}
    for shape in OUTLINES:
        for angle in (-25.0, 0.0, 25.0):
            picture = paint(Caption(shape, "blue", "flat"), replace(MIDDLE, angle=angle)).astype(int)
            masks[shape, angle] = np.abs(picture - picture[0, 0]).sum(axis=-1) > 150
    for (shape, _), mask in masks.items():
        for (other, _), other_mask in masks.items():
            if shape != other:
                assert (mask & other_mask).sum() / (mask | other_mask).sum() < 0.9


def test_other_nouns_are_refused() -> None:
    with pytest.raises(ValueError, match="house"):
        paint(Caption("house", "red", "construction", step=1), MIDDLE)


def test_what_leaves_something_open_cannot_be_painted() -> None:
    with pytest.raises(ValueError, match="'a red star' leaves the style open"):
        paint(Caption("star", "red", None), MIDDLE)


def _chroma(colour: np.ndarray) -> np.ndarray:
    grey = colour - colour.mean(axis=-1, keepdims=True)
    return grey / np.linalg.norm(grey, axis=-1, keepdims=True)
