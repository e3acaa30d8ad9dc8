"""The sets of both tasks: cameras that tell the truth, things that stay where they are, even rounds."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from m2m.manifest import Split
from m2m.world.cameras import TO_OPENCV, intrinsics
from m2m.world.grammar import parse, procedure_captions, view_captions
from m2m.world.rounds import rounds
from m2m.world.sets import draw_procedure, draw_views
from m2m.world.solids import SolidObject
from m2m.world.vocabulary import COLOURS


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


def test_rounds_take_every_combination_before_any_comes_again() -> None:
    taken = list(rounds(0, "train", 5, 12))
    for turn in range(2):
        assert sorted(index for at, index in taken if at == turn) == list(range(5))
    assert [index for _, index in taken[:5]] != [index for _, index in taken[5:10]]
    assert taken[:7] == list(rounds(0, "train", 5, 7))
    assert taken != list(rounds(0, "test", 5, 12))
