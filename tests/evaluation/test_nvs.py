"""How drawn views are measured: against known pictures and known cameras."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.data.sets import ImageSet
from m2m.errors import UserError
from m2m.evaluation.networks import Networks
from m2m.evaluation.nvs import (
    ANGLES,
    FRAMES,
    METRICS,
    MOST_PSNR,
    beside_baselines,
    compare_views,
    more_given,
    nearest_given,
    numbers_of,
    orbit,
    require,
)
from m2m.params import EvaluateNvs, GateParams
from m2m.world.cameras import Camera

cameras = st.builds(Camera, azimuth=st.floats(0, 360), elevation=st.floats(-80, 80), distance=st.floats(1.5, 3))
PARAMS = EvaluateNvs(
    seed=0,
    sets=3,
    validation_sets=1,
    given=(1, 2),
    solver="ddim",
    num_inference_steps=1,
    guidance_scale=1.0,
    context_timestep=0,
    drawn_context=None,
    sets_per_batch=1,
    precision="float32",
    gallery_sets=1,
    gate=GateParams(metric="validation/psnr/given=1/mean", better="higher", require={}),
    bootstrap=20,
)


@pytest.fixture(scope="module")
def members() -> list[ImageSet]:
    """Three objects, coarse noise, from five cameras each."""
    rng = np.random.default_rng(0)
    return [
        ImageSet(
            id=f"object-{number}",
            caption="",
            images=rng.integers(0, 256, size=(5, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2),
            extras={"poses": [Camera(rng.uniform(0, 360), rng.uniform(-10, 50)).matrix().tolist() for _ in range(5)]},
        )
        for number in range(3)
    ]


def test_a_picture_is_perfectly_like_itself_and_less_so_the_more_noise_is_on_it(
    committed: Networks, members: list[ImageSet]
) -> None:
    real = np.stack([one.images for one in members])
    same = compare_views(real, real, committed)
    assert {name: tuple(values.shape) for name, values in same.items()} == dict.fromkeys(METRICS, (3, 5))
    assert (same["psnr"] == MOST_PSNR).all()
    torch.testing.assert_close(same["ssim"], torch.ones(3, 5).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(same["perceptual"], torch.zeros(3, 5).double(), atol=1e-6, rtol=0)
    noise = np.random.default_rng(1).normal(size=real.shape)
    little, much = (
        compare_views((real + amount * noise).clip(0, 255).astype(np.uint8), real, committed) for amount in (10, 40)
    )
    for name, sign in (("psnr", 1), ("ssim", 1), ("perceptual", -1)):
        assert (sign * same[name] > sign * little[name]).all()
        assert (sign * little[name] > sign * much[name]).all()


def test_psnr_is_that_of_its_definition_picture_by_picture(committed: Networks, members: list[ImageSet]) -> None:
    real = np.stack([one.images for one in members])
    drawn = real[::-1].copy()
    found = compare_views(drawn, real, committed)["psnr"]
    errors = ((drawn.astype(float) - real) ** 2).mean(axis=(2, 3, 4))
    expected = np.where(errors == 0, MOST_PSNR, 10 * np.log10(255**2 / np.maximum(errors, 1e-9)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@settings(max_examples=50, deadline=None)
@given(given_cameras=st.lists(cameras, min_size=1, max_size=3), target=cameras)
def test_the_nearest_view_is_the_one_in_whose_direction_least_is_to_turn(
    given_cameras: list[Camera], target: Camera
) -> None:
    every = np.stack([camera.matrix() for camera in [*given_cameras, target]])
    index, angle = nearest_given(every[None], len(given_cameras))
    assert index.shape == angle.shape == (1, 1)
    unit = [camera.position / np.linalg.norm(camera.position) for camera in [*given_cameras, target]]
    angles = [np.degrees(np.arctan2(np.linalg.norm(np.cross(one, unit[-1])), one @ unit[-1])) for one in unit[:-1]]
    assert angle[0, 0] == pytest.approx(min(angles), abs=1e-4)
    assert angles[index[0, 0]] == pytest.approx(min(angles), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(camera=cameras)
def test_an_orbit_goes_around_the_world_s_axis_counter_clockwise(camera: Camera) -> None:
    around = orbit(camera.matrix())
    assert len(around) == FRAMES
    for frame, matrix in enumerate(around):
        there = Camera(camera.azimuth + 360 * frame / FRAMES, camera.elevation, camera.distance)
        np.testing.assert_allclose(matrix, there.matrix(), atol=1e-9)


def test_numbers_by_view_and_by_angle_make_up_the_mean() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(20, 3)))
    angle = rng.choice([0.0, 10.0, 30.0, 45.0, 89.9, 90.0, 150.0], size=(20, 3))
    numbers = numbers_of({"psnr": values}, angle, given=2, prefix="p/")
    assert numbers["p/psnr/given=2/mean"] == pytest.approx(values.mean().item())
    views = [numbers[f"p/psnr/given=2/view/{view:02}"] for view in (3, 4, 5)]
    np.testing.assert_allclose(views, values.mean(dim=0))
    assert numbers["p/psnr/given=2/std"] == pytest.approx(np.std(views))
    bins = {key.rpartition("/")[2]: value for key, value in numbers.items() if "/angle/" in key}
    counts = {name: ((angle >= int(name[:3])) & (angle < int(name[4:]))).sum() for name in bins}
    assert sum(counts.values()) == angle.size
    total = sum(counts[name] * value for name, value in bins.items())
    assert total / angle.size == pytest.approx(values.mean().item())


def test_an_angle_at_the_edge_and_one_of_half_a_turn_are_in_a_bin() -> None:
    angle = np.array([[float(edge) for edge in ANGLES]])
    values = torch.arange(len(ANGLES), dtype=torch.float64)[None]
    numbers = numbers_of({"psnr": values}, angle, given=1)
    assert {key[-7:]: value for key, value in numbers.items() if "/angle/" in key} == {
        "000-030": 0.0,
        "030-060": 1.0,
        "060-090": 2.0,
        "090-180": 3.5,
    }


def test_more_given_views_are_compared_over_the_views_that_both_draw() -> None:
    rng = np.random.default_rng(0)
    few = torch.from_numpy(rng.normal(size=(8, 4)))
    params = PARAMS.model_copy(update={"given": (1, 3), "bootstrap": 500})
    steady = more_given(params, {"psnr": few}, {"psnr": few[:, 2:] + 1.5})
    assert list(steady.values()) == pytest.approx([1.5] * 3)
    assert set(steady) == {f"paired/psnr/given=3-minus-1/{part}" for part in ("mean", "low", "high")}
    many = torch.from_numpy(rng.normal(size=(8, 2)))
    numbers = more_given(params, {"psnr": few}, {"psnr": many})
    mean, low, high = (numbers[f"paired/psnr/given=3-minus-1/{part}"] for part in ("mean", "low", "high"))
    assert mean == pytest.approx((many - few[:, 2:]).mean().item())
    assert low < mean < high


def test_true_views_score_best_and_copies_as_the_nearest_given_ones(
    committed: Networks, members: list[ImageSet]
) -> None:
    true = {count: [one.images[count:] for one in members] for count in (1, 2)}
    untuned = [one.images[:1].repeat(4, axis=0) for one in members]
    numbers = beside_baselines(PARAMS, members, true, untuned, committed)
    assert numbers["psnr/given=1/mean"] == numbers["psnr/given=2/mean"] == MOST_PSNR
    assert numbers["perceptual/given=1/mean"] == pytest.approx(0, abs=1e-6)
    assert numbers["paired/psnr/given=2-minus-1/mean"] == 0
    for name in METRICS:  # with one given view the nearest is that one, which is what was said to be drawn untuned
        untuned, nearest = (numbers[f"baseline/{which}/{name}/given=1/mean"] for which in ("untuned", "nearest"))
        assert untuned == pytest.approx(nearest)


def test_sets_of_other_lengths_or_without_cameras_are_refused(members: list[ImageSet]) -> None:
    def of(sets: list[ImageSet]) -> Any:
        params = PARAMS.model_copy(update={"sets": len(sets)})
        return SimpleNamespace(params=params, sets={"test": sets, "validation": members})

    require(of(members))
    short = replace(members[0], images=members[0].images[:4], extras={"poses": members[0].extras["poses"][:4]})
    with pytest.raises(UserError, match=r"of sets that all have as many views"):
        require(of([*members, short]))
    with pytest.raises(UserError, match=r"set object-0 has no poses"):
        require(of([replace(members[0], extras={})]))
