"""A shard's job makes, stores and records it by itself, once, wherever it runs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2m.data.making import FinishedShard, MadeSets, PlannedSet, ShardJob, shard_jobs
from m2m.data.sets import ImageSet, read_shard
from m2m.progress import Advance
from m2m.runtime import Runtime
from m2m.store import LocalStore

PLANNED = [PlannedSet(id=f"set-{number}", caption=f"a {number}", count=2) for number in range(3)]


def make_sets(planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    advance(sum(one.count for one in planned))
    return MadeSets(sets=[ImageSet(id=one.id, caption=one.caption, images=images) for one in planned], redrawn=1)


def jobs(folder: Path, *, depends: str = "parameters", device: str = "cpu") -> list[ShardJob]:
    runtime = Runtime(store=LocalStore(folder / "store"), work=folder / "work", device=device)
    sets = {"train": PLANNED[:2], "validation": [], "test": PLANNED[2:]}
    return [*shard_jobs(sets, make_sets, depends=[depends], sets_per_shard=2, stage="views", runtime=runtime)]


def test_a_job_that_is_sent_elsewhere_gives_a_small_record_and_is_done_once(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []

    def advance(count: int = 1, *, skipped: bool = False) -> None:
        told.append((count, skipped))

    first, last = jobs(tmp_path)
    assert (first.split, last.split, first.images, last.images) == ("train", "test", 4, 2)
    made = pickle.loads(pickle.dumps(first))(advance)  # noqa: S301  # what a cluster does with it
    assert made.entry is not None
    assert (made.entry.count, made.entry.split, made.redrawn) == (2, "train", 1)
    assert len(made.model_dump_json()) < 1000
    shard = first.store.get(made.entry.key, made.entry.sha256, made.entry.size)
    assert [one.id for one in read_shard(shard)] == ["set-0", "set-1"]
    assert first(advance) == made == FinishedShard.model_validate_json(first.record.read_bytes())
    assert told == [(4, False), (4, True)]
    assert not [*first.record.parent.glob("*.tar")]


def test_a_record_is_of_what_is_planned_and_of_all_that_it_depends_on(tmp_path: Path) -> None:
    first, last = jobs(tmp_path)
    assert [job.record for job in jobs(tmp_path)] == [first.record, last.record]
    assert jobs(tmp_path, device="cuda:1")[0].record == jobs(tmp_path, device="cuda")[0].record
    others = (jobs(tmp_path, depends="others"), jobs(tmp_path, device="cuda"))
    assert len({job.record for job in (first, last, *(other[0] for other in others))}) == 4
