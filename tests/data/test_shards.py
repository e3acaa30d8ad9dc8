"""A shard's job makes, stores and records it by itself, once, wherever it runs."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2m.data.sets import ImageSet, read_shard
from m2m.data.shards import MadeSets, MakeSets, PlannedSet, Records, ShardJob, ShardMaker, shard_jobs
from m2m.errors import UserError
from m2m.progress import Advance
from m2m.runtime import Runtime
from m2m.store import LocalStore

PLANNED = [PlannedSet(id=f"set-{number}", caption=f"a {number}", count=2) for number in range(3)]


def make_sets(planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    advance(sum(one.count for one in planned))
    return MadeSets(sets=[ImageSet(id=one.id, caption=one.caption, images=images) for one in planned], redrawn=1)


def runtime(folder: Path, device: str = "cpu") -> Runtime:
    return Runtime(store=LocalStore(folder / "store"), work=folder / "work", device=device)


def jobs(folder: Path, *, depends: str = "parameters", device: str = "cpu") -> list[ShardJob]:
    sets = {"train": PLANNED[:2], "validation": [], "test": PLANNED[2:]}
    return [*shard_jobs(sets, depends=[depends], sets_per_shard=2, runtime=runtime(folder, device))]


def maker(folder: Path, make_sets: MakeSets = make_sets) -> ShardMaker:
    return ShardMaker(make_sets=make_sets, store=runtime(folder).store, stage="views", work=folder / "work")


def test_a_shard_that_is_made_elsewhere_gives_a_small_record_and_is_known_everywhere(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []

    def advance(count: int = 1, *, skipped: bool = False) -> None:
        told.append((count, skipped))

    first, last = jobs(tmp_path)
    assert (first.split, last.split, first.images, last.images) == ("train", "test", 4, 2)
    assert Records(runtime(tmp_path).store, "views").of(first) is None
    there, job = pickle.loads(pickle.dumps((maker(tmp_path), first)))  # noqa: S301  # what a cluster does with it
    made = there.finish(job, there.begin(job, advance))
    assert made.entry is not None
    assert (made.entry.count, made.entry.split, made.redrawn) == (2, "train", 1)
    assert len(made.model_dump_json()) < 1000
    store = runtime(tmp_path).store
    assert [one.id for one in read_shard(store.get(made.entry.key, made.entry.sha256, made.entry.size))] == [
        "set-0",
        "set-1",
    ]
    records = Records(store, "views")
    assert (records.of(first), records.of(last)) == (made, None)
    assert Records(store, "procedures").of(first) is None
    assert told == [(4, False)]
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    in_validation = records.of(replace(first, split="validation"))
    assert in_validation is not None
    assert in_validation.entry == replace(made.entry, split="validation")
    store.remove(made.entry.key)
    assert Records(store, "views").of(first) is None


@pytest.mark.parametrize("rejected", [0, 2])
def test_how_many_images_were_rejected_is_known_everywhere(rejected: int, tmp_path: Path) -> None:
    def make_some(planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
        return replace(make_sets(planned, advance), redrawn=3, rejected=rejected)

    first, _ = jobs(tmp_path)
    there, store = maker(tmp_path, make_some), runtime(tmp_path).store
    made = there.finish(first, there.begin(first, lambda *_, **__: None))
    assert (made.redrawn, made.rejected) == (3, rejected)
    assert Records(store, "views").of(first) == made
    (key,) = (key for key, _ in store.objects("records/"))
    assert key.endswith(".3.2" if rejected else ".3"), "as it was before anything could be rejected"


@pytest.mark.parametrize("some_are_good", [True, False])
def test_what_was_left_out_of_a_shard_is_known_everywhere(some_are_good: bool, tmp_path: Path) -> None:
    def make_some(planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
        return MadeSets(
            sets=make_sets(planned[1:], advance).sets if some_are_good else [], rejected=2, bad={"set-0": "no picture"}
        )

    first, _ = jobs(tmp_path)
    there, store = maker(tmp_path, make_some), runtime(tmp_path).store
    made = there.finish(first, there.begin(first, lambda *_, **__: None))
    assert (made.bad, made.rejected) == ({"set-0": "no picture"}, 2)
    assert (made.entry is not None) == some_are_good
    assert Records(store, "views").of(first) == made
    (key,) = (key for key, _ in store.objects("records/"))
    (tmp_path / "store" / key).write_bytes(made.model_dump_json().replace("picture", "pict0re").encode())
    with pytest.raises(UserError, match=re.escape(f"{key} in the store")):
        Records(store, "views").of(first)


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "store" / "records" / "views").mkdir(parents=True)
    (tmp_path / "store" / "records" / "views" / "notes.txt").write_text("of somebody")
    assert [Records(runtime(tmp_path).store, "views").of(job) for job in jobs(tmp_path)] == [None, None]


def test_a_name_is_of_what_is_planned_and_of_all_that_it_depends_on(tmp_path: Path) -> None:
    first, last = jobs(tmp_path)
    assert [job.name for job in jobs(tmp_path)] == [first.name, last.name]
    assert jobs(tmp_path, device="cuda:1")[0].name == jobs(tmp_path, device="cuda")[0].name
    others = (jobs(tmp_path, depends="others"), jobs(tmp_path, device="cuda"))
    assert len({job.name for job in (first, last, *(other[0] for other in others))}) == 4
