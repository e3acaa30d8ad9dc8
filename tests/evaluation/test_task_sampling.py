"""Test sets of different lengths, continued: each to its own end, in order, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2m.data.shards import ImageSet
from m2m.evaluation.sampling import continue_sets
from m2m.evaluation.task_sampling import TaskDraws
from m2m.params import EvaluateVpg, GateParams, TrainCommon
from m2m.params_file import load_params
from m2m.pipeline import M2MPipeline
from m2m.training.start import from_stable_diffusion
from m2m.workers import Workers

LENGTHS = (4, 3, 5, 3, 4)
PARAMS = EvaluateVpg(
    seed=0,
    sets=5,
    validation_sets=1,
    solver="ddim",
    num_inference_steps=1,
    guidance_scale=1.0,
    context_timestep=0,
    sets_per_batch=2,
    precision="float32",
    gallery_sets=1,
    gate=GateParams(metric="validation/fid/mean", better="lower", require={}),
)


@pytest.fixture(scope="module")
def members() -> list[ImageSet]:
    rng = np.random.default_rng(0)
    sets = [rng.integers(0, 256, size=(length, 64, 64, 3), dtype=np.uint8) for length in LENGTHS]
    return [ImageSet(id=f"set-{number}", caption="", images=images) for number, images in enumerate(sets)]


@pytest.fixture(scope="module")
def pipeline(tiny_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> M2MPipeline:
    common: TrainCommon = load_params(Path(__file__).parents[2] / "profiles" / "smoke.yaml").train.common
    folder = tmp_path_factory.mktemp("foundation")
    (folder / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    return from_stable_diffusion(folder, "self", common)


def draws(pipeline: M2MPipeline, members: list[ImageSet], folder: Path, **changes: Any) -> TaskDraws:
    return TaskDraws(tuned=pipeline, untuned=pipeline, members=members, params=PARAMS, folder=folder, **changes)


def nothing(count: int = 1, *, skipped: bool = False) -> None:
    """Advances nothing."""


def test_each_set_is_continued_to_its_own_end_and_in_its_place(
    pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path
) -> None:
    drawn = draws(pipeline, members, tmp_path).by("tuned", 1, nothing)
    assert [len(one) for one in drawn] == [length - 1 for length in LENGTHS]
    for one, pictures in zip(members, drawn, strict=True):
        (alone,) = continue_sets(pipeline, [one], given=1, total=len(one.images), params=PARAMS)
        assert np.abs(pictures.astype(int) - alone).max() <= 2  # another batch may round otherwise


def test_what_was_drawn_is_kept(pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path) -> None:
    heard: list[tuple[int, bool]] = []

    def advance(count: int = 1, *, skipped: bool = False) -> None:
        heard.append((count, skipped))

    first, again, shared = (
        draws(pipeline, members, tmp_path),
        draws(pipeline, members, tmp_path),
        draws(pipeline, members, tmp_path / "shared", workers=Workers(2)),
    )
    drawn = first.by("tuned", 2, advance)
    assert first.stopwatch.pictures == first.pictures(2) == sum(LENGTHS) - 2 * len(LENGTHS)
    assert heard == [(2, False), (4, False), (3, False)], "two sets of each length but the longest, one of that"
    (tmp_path / "from-nowhere.npy").write_bytes(b"")
    kept = again.by("tuned", 2, advance)
    assert again.stopwatch.pictures == 0
    assert heard[3:] == [(2, True), (4, True), (3, True)]
    side_by_side = shared.by("tuned", 2, nothing)
    for one, other, another in zip(drawn, kept, side_by_side, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, another)


def test_models_and_numbers_of_given_pictures_are_kept_apart(
    pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path
) -> None:
    made = draws(pipeline, members[:2], tmp_path)
    for model, given in (("tuned", 1), ("untuned", 1), ("tuned", 2)):
        made.by(model, given, nothing)  # type: ignore[arg-type]
    assert made.stopwatch.pictures == 2 * made.pictures(1) + made.pictures(2)
