"""Sets continued: each to its own end, in order, once, never all in memory; kept pictures are the drawn ones."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, write_shard
from m2m.engines import Engine, LocalEngine
from m2m.evaluation import continuations, networks, nvs, vpg
from m2m.evaluation.continuations import (
    Continuations,
    Drawer,
    continue_sets,
    folder_of,
    keep_drawn,
    note_run,
    run_before,
)
from m2m.evaluation.networks import Networks, observe
from m2m.manifest import Manifest
from m2m.models.classifier import Readings as ClassifierReadings
from m2m.params import EvaluateVpg, GateParams, TrainCommon
from m2m.params_file import load_params
from m2m.pipeline import M2MPipeline
from m2m.progress import Advance
from m2m.store import LocalStore
from m2m.training.start import from_stable_diffusion
from m2m.workers import ALONE, Workers
from m2m.world.cameras import Camera
from tests.memory import peak_bytes

LENGTHS = (4, 3, 5, 3, 4)
HERE = LocalEngine(ALONE, "cpu")
PARAMS = EvaluateVpg(
    seed=0,
    sets=5,
    validation_sets=1,
    solver="ddim",
    num_inference_steps=1,
    guidance_scale=1.0,
    context_timestep=0,
    drawn_context=None,
    sets_per_batch=2,
    precision="float32",
    gallery_sets=1,
    bootstrap=5,
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


def draws(members: list[ImageSet], folder: Path, **changes: Any) -> Continuations:
    options: dict[str, Any] = {"name": "lot", "given": 1, "params": PARAMS, **changes}
    return Continuations(starts=members, count=len(members), folder=folder, **options)


def draw(pipeline: Any, lot: Continuations, advance: Advance, engine: Engine = HERE) -> int:
    """How many pictures were drawn: the others were kept."""
    drawer = Drawer(load=lambda: (pipeline, pipeline))
    return sum(job.images for job, seconds in keep_drawn(engine, drawer, lot.jobs(), advance) if seconds is not None)


def nothing(count: int = 1, *, skipped: bool = False) -> None:
    """Advances nothing."""


def test_each_set_is_continued_to_its_own_end_and_in_its_place(
    pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path
) -> None:
    lot = draws(members, tmp_path)
    draw(pipeline, lot, nothing)
    drawn = list(lot.by_set())
    assert [len(one) for one in drawn] == [length - 1 for length in LENGTHS]
    for one, pictures in zip(members, drawn, strict=True):
        (alone,) = continue_sets(pipeline, [one], given=1, images=len(one.images) - 1, params=PARAMS)
        assert np.abs(pictures.astype(int) - alone).max() <= 2  # another batch may round otherwise
    for (caption, given, pictures), one, other in zip(lot.rows(3), members, drawn, strict=False):
        assert caption == one.caption
        assert np.array_equal(given, one.images[:1])
        assert np.array_equal(pictures, other)
    assert [len(lot.rows(count)) for count in (3, 9)] == [3, 5]


def test_what_was_drawn_is_kept(pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path) -> None:
    heard: list[tuple[int, bool]] = []

    def advance(count: int = 1, *, skipped: bool = False) -> None:
        heard.append((count, skipped))

    lot, shared = draws(members, tmp_path, given=2), draws(members, tmp_path / "shared", given=2)
    assert draw(pipeline, lot, advance) == lot.pictures == sum(LENGTHS) - 2 * len(LENGTHS)
    assert heard == [(2, False), (4, False), (3, False)], "two sets of each length but the longest, one of that"
    (tmp_path / "from-nowhere.npy").write_bytes(b"")
    first = [*lot.by_set()]
    assert draw(pipeline, lot, advance) == 0
    assert heard[3:] == [(2, True), (4, True), (3, True)]
    draw(pipeline, shared, nothing, LocalEngine(Workers(2), "cpu"))
    for one, other, another in zip(first, lot.by_set(), shared.by_set(), strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, another)


def test_models_and_numbers_of_given_pictures_are_kept_apart(
    pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path
) -> None:
    made = [
        draws(members[:2], tmp_path, name=f"{model}-given-{given}", given=given)
        for model, given in (("tuned", 1), ("untuned", 1), ("tuned", 2))
    ]
    for one in made:
        assert draw(pipeline, one, nothing) == one.pictures


class Reading:
    """Sets that are read anew each time, as those of a dataset that does not fit into memory."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.read = lengths, 0

    def __getitem__(self, index: int, /) -> ImageSet:
        self.read += 1
        images = np.full((self.lengths[index], 64, 64, 3), index, np.uint8)
        poses = [Camera(30.0 * place + index, 20.0).matrix().tolist() for place in range(len(images))]
        return ImageSet(id=str(index), caption="a star", images=images, extras={"poses": poses})


def follow(_: object, members: Any, *, given: int, images: int, params: object, place: int = 0) -> np.ndarray:
    """As if a model drew: what it gives has the numbers of the set."""
    return np.stack([np.repeat(member.images[:1], images, axis=0) for member in members])


COUNT = 96


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mis", "nvs", "vpg"])
def test_neither_sets_nor_drawn_pictures_are_ever_in_memory_as_a_whole(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuations, "continue_sets", follow)
    monkeypatch.setattr(networks, "PICTURES_AT_ONCE", 16)
    inception = type("Mean", (), {"classes": {"step": ("1", "2")}, "__call__": staticmethod(_mean)})()
    clip = SimpleNamespace(embed=lambda images: torch.nn.functional.normalize(_flat(images), dim=1), embed_texts=_texts)
    judges = Networks(inception=cast(Any, inception), clip=cast(Any, clip), names={}, device=torch.device("cpu"))
    monkeypatch.setattr(Networks, "perceptual", lambda _, first, second: _flat(first)[:, 0] - _flat(second)[:, 0])
    sets = Reading([4 + (task == "vpg" and place % 3) for place in range(COUNT)])

    def evaluate(count: int, folder: Path) -> None:
        def lot(name: str, given: int, generated: int | None = None) -> Continuations:
            options: dict[str, Any] = {"name": name, "given": given, "generated": generated, "params": PARAMS}
            made = Continuations(starts=sets, count=count, folder=folder, **options)
            draw(None, made, nothing)
            return made

        if task == "mis":
            seen = observe(lot("given-1", 1, 3).batches(), judges)
            assert torch.equal(seen.features[:, 2, 0], torch.arange(count).float())
            return
        ours, theirs, two = lot("tuned", 1), lot("untuned", 1), lot("more", 2)
        assert [int(pictures[0, 0, 0, 0]) for pictures in ours.by_set()] == list(range(count))
        params: Any = SimpleNamespace(given=(1, 2), sets=count, bootstrap=5, seed=0)
        if task == "nvs":
            drawn = {1: ours.by_set(), 2: two.by_set()}
            numbers = nvs.beside_baselines(params, sets, drawn, theirs.by_set(), judges)
            assert numbers["psnr/given=1/mean"] == nvs.MOST_PSNR
        else:
            numbers = vpg.beside_baselines(params, sets, ours.by_set(), theirs.by_set(), judges)
            assert numbers["fid/mean"] == pytest.approx(0, abs=1e-3)

    peak = peak_bytes(lambda number: evaluate(COUNT, tmp_path / str(number)))
    whole = 64 * 64 * 3 * sum(sets.lengths)
    assert peak < whole / 2, f"{peak / whole:.2f} of the sets' pictures were in memory at once"


def _flat(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(dim=(2, 3))


def _mean(images: torch.Tensor) -> ClassifierReadings:
    features = _flat(images)
    return ClassifierReadings(features, {"step": features[:, :2]}, features.new_empty(len(features), 0))


def _texts(captions: list[str]) -> torch.Tensor:
    return torch.zeros(len(captions), 3)


@dataclass(frozen=True)
class Some:
    """A batch of two pictures."""

    path: Path
    images: int = 2

    def work(self) -> Some:
        return self


class Drawing:
    """Draws the same each time, and counts."""

    pictures = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)

    def __init__(self) -> None:
        self.drawn = 0

    def begin(self, job: Some, advance: Advance) -> int:
        self.drawn += 1
        advance(job.images)
        return self.drawn

    def finish(self, job: Some, begun: int) -> tuple[np.ndarray, float]:
        return self.pictures, float(begun)


def test_pictures_are_drawn_once_and_again_when_they_are_damaged(tmp_path: Path) -> None:
    drawing, path = Drawing(), tmp_path / "new" / "from-000000.npy"

    def seconds() -> float | None:
        ((job, seconds),) = keep_drawn(HERE, drawing, [Some(path)], nothing)
        assert job.path == path
        assert np.array_equal(np.load(path), Drawing.pictures)
        return seconds

    assert [seconds() for _ in range(3)] == [1.0, None, None]
    good = path.read_bytes()
    for time, place in enumerate(range(0, len(good), 37), start=2):
        content = bytearray(good)
        content[place] ^= 4
        path.write_bytes(content)
        assert seconds() == time
    path.with_name("from-000000.npy.sha256").unlink()
    assert seconds() == drawing.drawn > 2


def test_nothing_is_read_of_sets_whose_pictures_are_kept(
    pipeline: M2MPipeline, members: list[ImageSet], tmp_path: Path
) -> None:
    class Counting(list[ImageSet]):
        read = 0

        def __getitem__(self, index: Any) -> Any:
            self.read += 1
            return super().__getitem__(index)

    counting = Counting(members)
    lot = draws(counting, tmp_path, generated=1)
    assert draw(pipeline, lot, nothing) == 5
    assert counting.read == 5
    assert draw(pipeline, lot, nothing) == 0
    assert counting.read == 5


def test_of_a_stored_set_that_alone_is_decoded_which_is_given(tmp_path: Path, members: list[ImageSet]) -> None:
    store, draft = LocalStore(tmp_path / "store"), tmp_path / "shard.tar"
    entry = write_shard([members[0]], draft, "test")
    store.put(entry.key, draft, entry.sha256)
    manifest = Manifest(schema_version=1, kind="vpg", made_by={}, images_per_set=5, redrawn=0, shards=(entry,))
    lot = Continuations(
        name="lot", starts=ImageSets(store, manifest, "test"), count=1, given=2, params=PARAMS, folder=tmp_path
    )
    (planned,) = lot.jobs()
    (one,) = planned.work().members
    assert planned.images == LENGTHS[0] - 2
    np.testing.assert_array_equal(one.images, members[0].images[:2])
    assert len(pickle.dumps(planned.work())) < 2.5 * members[0].images[0].nbytes


def test_kept_and_drawn_batches_come_in_order_and_only_whole_ones_are_kept(tmp_path: Path) -> None:
    class Failing(Drawing):
        def finish(self, job: Some, begun: int) -> tuple[np.ndarray, float]:
            if begun == 3:
                raise KeyError(job.path)
            return super().finish(job, begun)

    jobs = [Some(tmp_path / f"{number}.npy") for number in range(6)]
    assert len([*keep_drawn(HERE, Drawing(), jobs[2:3], nothing)]) == 1
    made = keep_drawn(HERE, Failing(), jobs, nothing)
    assert [(job, seconds is None) for job, seconds in islice(made, 3)] == [
        (jobs[0], False),
        (jobs[1], False),
        (jobs[2], True),
    ]
    with pytest.raises(KeyError):
        next(made)
    assert {path.name for path in tmp_path.glob("*.npy")} == {"0.npy", "1.npy", "2.npy"}
    told = [(job, seconds is None) for job, seconds in keep_drawn(HERE, Drawing(), jobs, nothing)]
    assert told == [*((job, True) for job in jobs[:3]), *((job, False) for job in jobs[3:])]


def test_pictures_of_other_things_are_not_taken_and_it_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = folder_of(tmp_path, {"model": "a", "code": "1"})
    assert run_before(first) is None
    note_run(first, "run-1")
    assert run_before(first) == "run-1"
    assert not caplog.text
    assert run_before(folder_of(tmp_path, {"model": "a", "code": "2"})) is None
    assert "starts afresh" in caplog.text
