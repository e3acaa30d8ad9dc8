"""What the world shows is labelled rightly, cameras tell the truth, things stay where they are."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest

from m2m.data.folder_sets import TO_OPENCV
from m2m.manifest import Split
from m2m.world import corpus as module
from m2m.world.corpus import OPEN, Corpus, draw_procedure, draw_views, make_corpus, make_looks
from m2m.world.grammar import (
    ALL_STYLES,
    COLOUR_NAMES,
    COLOURS,
    CONSTRUCTION,
    KINDS,
    NOUNS,
    RENDERED,
    STYLES,
    Caption,
    parse,
    procedure_captions,
    split_of,
    view_captions,
)
from m2m.world.studio import SolidObject
from tests.projection import intrinsics

PICTURES, VIEWS, STEPS = 700, 12, 100


@pytest.fixture(scope="module", params=get_args(Split))
def corpus(request: pytest.FixtureRequest) -> tuple[Corpus, Split]:
    return make_corpus(pictures=PICTURES, views=VIEWS, steps=STEPS, seed=7, split=request.param), request.param


def shown_in(made: Corpus, row: int) -> tuple[str, str, str]:
    noun, colour, style = made.shown[row, 1:4]
    return NOUNS[noun], COLOUR_NAMES[colour], ALL_STYLES[style]


def equal(one: Corpus, other: Corpus) -> bool:
    arrays = ("images", "shown", "said", "geometry")
    same = [np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays]
    return one.captions == other.captions and all(same)


def test_captions_say_nothing_but_what_is_shown(corpus: tuple[Corpus, Split]) -> None:
    made, _ = corpus
    assert len(made) == len(made.images) == PICTURES + VIEWS + STEPS
    for row, text in enumerate(made.captions):
        caption, shown = parse(text), dict(zip(("noun", "colour", "style"), shown_in(made, row), strict=True))
        assert {name: shown[name] for name in caption.named} == {name: getattr(caption, name) for name in caption.named}
        assert made.labels["step"][row] == (caption.step or 0)
        assert made.has_geometry[row] == (shown["style"] in STYLES) == (row < PICTURES)
        assert not caption.open or row < PICTURES


def test_it_shows_only_combinations_of_its_split(corpus: tuple[Corpus, Split]) -> None:
    made, split = corpus
    for row, text in enumerate(made.captions):
        caption = parse(text)
        if caption.second is None:
            assert split_of(*shown_in(made, row)) == split, "also where the caption leaves it open"
        else:
            assert caption.split == split


def test_each_kind_of_caption_and_each_wording_comes_equally_often(corpus: tuple[Corpus, Split]) -> None:
    captions = list(map(parse, corpus[0].captions[:PICTURES]))
    kinds = Counter(caption.named for caption in captions)
    assert kinds.keys() == {*KINDS}
    assert max(abs(count - PICTURES / 7) for count in kinds.values()) < 37, "four standard deviations"
    for named in KINDS:
        said = [(one, text) for one, text in zip(captions, corpus[0].captions, strict=False) if one.named == named]
        wordings = Counter(
            next(number for number in range(one.templates) if one.text(number) == text) for one, text in said
        )
        assert len(wordings) == said[0][0].templates
        assert min(wordings.values()) > 0.4 * len(said) / len(wordings)


def test_traits_tell_what_is_shown_and_what_of_it_is_said(corpus: tuple[Corpus, Split]) -> None:
    made, _ = corpus
    assert made.shown.shape == made.said.shape == (len(made), 7)
    for name, column in (("noun", 1), ("colour", 2), ("style", 3)):
        assert np.array_equal(made.shown[:, column], made.labels[name])
    for row, text in enumerate(made.captions):
        caption = parse(text)
        assert np.array_equal(made.said[row], traits(caption))
        named = made.said[row] != OPEN
        assert np.array_equal(made.said[row][named], made.shown[row][named])
        if not caption.open:
            assert np.array_equal(made.said[row], made.shown[row])
    of_a_kind = Counter(zip(made.shown[:, 0].tolist(), made.labels["style"] >= len(STYLES), strict=True))
    assert of_a_kind == {(0, False): PICTURES, (2, True): VIEWS, (1, True): STEPS}


def traits(caption: Caption) -> list[int]:
    """By hand: 0 shapes, 1 procedures, 2 solids; then each word's number, or `OPEN`."""

    def number(words: tuple[str, ...], word: str | None) -> int:
        return words.index(word) if word else OPEN

    noun, colour = caption.second or (None, None)
    return [
        {RENDERED: 2, CONSTRUCTION: 1}.get(caption.style or "", 0),
        number(NOUNS, caption.noun),
        number(COLOUR_NAMES, caption.colour),
        number(ALL_STYLES, caption.style),
        caption.step or OPEN,
        number(NOUNS, noun),
        number(COLOUR_NAMES, colour),
    ]


def test_geometry_is_where_the_object_is() -> None:
    made = make_corpus(pictures=300, views=0, steps=0, seed=2, split="train")
    flat = made.labels["style"] == ALL_STYLES.index("flat")
    for image, geometry in zip(made.images[flat].astype(int), made.geometry[flat], strict=True):
        rows, columns = np.nonzero(np.abs(image - image[0, 0]).sum(axis=-1) > 60)
        assert abs(columns.mean() / 64 - geometry[0]) < 0.09
        assert abs(rows.mean() / 64 - geometry[1]) < 0.09
        assert 0.6 < max(np.ptp(rows), np.ptp(columns)) / 64 / geometry[2] < 1.2
    np.testing.assert_allclose(np.hypot(made.geometry[:, 3], made.geometry[:, 4]), 1, rtol=1e-6)
    circles = made.labels["noun"] == NOUNS.index("circle")
    assert (made.geometry[circles, 3] == 0).all()


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes_in_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCENES_AT_ONCE", 4)  # or one process alone would draw them all
    counts = {"pictures": 40, "views": 3, "steps": 9}
    alone = make_corpus(**counts, seed=7, split="test")
    assert equal(alone, make_corpus(**counts, seed=7, split="test"))
    assert equal(alone, make_corpus(**counts, seed=7, split="test", processes=2))
    looks = make_looks(**counts, seed=7)
    assert np.array_equal(looks, make_looks(**counts, seed=7, processes=2))


def test_another_seed_or_split_gives_others() -> None:
    made, other, held_out = (
        make_corpus(pictures=40, views=0, steps=0, seed=seed, split=split)
        for seed, split in ((7, "train"), (8, "train"), (7, "test"))
    )
    pictures = np.concatenate([made.images, other.images, held_out.images]).reshape(120, -1)
    assert len(np.unique(pictures, axis=0)) == 120
    assert made.captions != other.captions


def test_one_kind_does_not_change_another() -> None:
    both = make_corpus(pictures=20, views=0, steps=10, seed=3, split="train")
    fewer = make_corpus(pictures=5, views=0, steps=10, seed=3, split="train")
    assert fewer.captions == both.captions[:5] + both.captions[20:]
    assert np.array_equal(fewer.images[5:], both.images[20:])
    assert np.array_equal(fewer.images[:5], both.images[:5])


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        make_corpus(pictures=0, views=0, steps=0, seed=0, split="train")


def test_two_looks_show_one_scene_that_has_moved() -> None:
    looks = make_looks(pictures=30, views=4, steps=10, seed=5)
    assert looks.shape == (2, 44, 64, 64, 3)
    assert looks.dtype == np.uint8
    between, others = (
        np.abs(looks[0].astype(int) - other.astype(int)).mean(axis=(1, 2, 3)) for other in (looks[1], looks[1][::-1])
    )
    assert (between > 0).all()  # it has moved,
    assert between[:30].mean() < 0.7 * others[:30].mean()  # and is the same thing in the same style


def test_a_point_lies_where_the_pose_says() -> None:
    caption = parse("a rendered red cube with a cyan sphere")
    pictures, extras = draw_views(caption, on_orbit=8, at_random=4, start_within=180, seed=3, size=64)
    poses = np.array(extras["poses"])
    assert pictures.shape == (12, 64, 64, 3)
    assert poses.shape == (12, 3, 4)
    solid = SolidObject.draw("cube", "red", "sphere", "cyan", np.random.default_rng(3))
    point = np.append(solid.parts()[1].place[:3, 3], 1)  # the middle of the sphere
    cyan, found = np.array(COLOURS["cyan"], float), 0
    for picture, pose in zip(pictures, poses, strict=True):
        seen = pose @ point
        if seen[2] > pose[2, 3] - 0.1:  # behind the middle of the world: the cube may hide it
            continue
        u, v, w = intrinsics(64) @ seen
        colour = picture[int(v / w), int(u / w)].astype(float)
        assert colour @ cyan / np.linalg.norm(colour) / np.linalg.norm(cyan) > 0.97
        found += 1
    assert found >= 3


def test_an_orbit_goes_evenly_around_at_one_height() -> None:
    caption = view_captions("train")[0]
    poses = np.array(draw_views(caption, on_orbit=5, at_random=2, start_within=180, seed=0, size=16)[1]["poses"])
    rotations, places = poses[:, :, :3], -np.einsum("nij,ni->nj", poses[:, :, :3], poses[:, :, 3])
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (7, 3, 3)), atol=1e-9
    )
    azimuths = np.degrees(np.arctan2(places[:5, 1], places[:5, 0]))
    np.testing.assert_allclose(np.diff(azimuths) % 360, 72)
    np.testing.assert_allclose(places[:5, 2], places[0, 2])
    assert len(set(np.round(places[4:, 2], 6))) == 3


@pytest.mark.parametrize("within", [0.0, 20.0])
def test_an_orbit_starts_near_the_front_where_both_solids_are_seen(within: float) -> None:
    caption = parse("a rendered red cube with a cyan sphere")
    offsets = []
    for seed in range(12):
        pictures, extras = draw_views(caption, on_orbit=1, at_random=0, start_within=within, seed=seed, size=32)
        pose = np.array(extras["poses"][0])
        place = -pose[:, :3].T @ pose[:, 3]
        front = SolidObject.draw("cube", "red", "sphere", "cyan", np.random.default_rng(seed)).front
        offsets.append((np.degrees(np.arctan2(place[1], place[0])) - front + 180) % 360 - 180)
        blue_beyond_red = pictures[0][..., 2].astype(int) - pictures[0][..., 0]
        assert (blue_beyond_red > 80).sum() > 30  # the sphere
        assert (blue_beyond_red < -80).sum() > 30  # the cube
    assert np.abs(offsets).max() <= within + 1e-6
    assert within == 0 or np.ptp(offsets) > within


def test_blenders_camera_is_turned_about_its_x_axis() -> None:
    flip = TO_OPENCV["blender"]
    np.testing.assert_array_equal(flip @ [1, 1, -1], [1, -1, 1])  # right, up and before the camera
    np.testing.assert_array_equal(flip @ flip, np.eye(3))


@pytest.mark.parametrize("split", get_args(Split))
def test_a_procedure_stays_in_its_place(split: Split) -> None:
    for captions in procedure_captions(split)[::7]:
        pictures, extras = draw_procedure(captions, seed=1)
        assert extras["steps"] == [caption.text() for caption in captions]
        assert len(pictures) == len(captions) in (5, 6)
        same = (pictures[1:] == pictures[:-1]).all(axis=-1).mean(axis=(1, 2))
        assert (same > 0.6).all()
        assert (same < 1).all()
