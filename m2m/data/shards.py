"""Shard after shard: what is planned for each, how it is made wherever that happens, and how it is known again.

`shard_jobs` plans, a `ShardJob` is all there is to one shard, a `ShardMaker` makes it and records it in the store that
holds it, `Records` tells what was made, by whatever machine, and `Kept` what a dataset had before it grew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue

from m2m.data.sets import ImageSet, write_shard
from m2m.errors import UserError
from m2m.files import file_digest, scratch_folder, write_atomically
from m2m.manifest import Manifest, ShardEntry, Split, grouped, shard_key
from m2m.progress import Advance
from m2m.runtime import Runtime
from m2m.store import Store

T = TypeVar("T")
DrawnSet: TypeAlias = tuple[NDArray[np.uint8], Mapping[str, Sequence[Any]]]
"""The pictures of one set (N, H, W, 3), and by name what else is known of each."""

_RECORD = re.compile(
    r"records/\w+/(?P<name>[0-9a-f]{64})\.(?P<sha256>[0-9a-f]{64})\.(?P<size>\d+)\.(?P<redrawn>\d+|bad)"
    r"(\.(?P<rejected>\d+))?"
)


@dataclass(kw_only=True, slots=True)  # not frozen, which would take three times as long: there may be 12 million
class PlannedSet:
    """A set whose pictures are yet to come."""

    id: str
    caption: str
    count: int
    """Images."""
    first: int = 0
    """Which image of the set is the first one; not 0 where images are added to it."""
    draw: Callable[[], DrawnSet] | None = None
    """Called in a pool, which may be one of processes. Raises UserError if what it reads is bad. None: a model draws
    what the caption says."""
    fingerprint: Callable[[], JsonValue] | None = None
    """What the pictures depend on besides id, caption, count and the dataset's parameters: the files' state."""

    @property
    def identity(self) -> JsonValue:
        told: list[JsonValue] = [self.id, self.caption, self.count, self.fingerprint and self.fingerprint()]
        return [*told, self.first] if self.first else told


@dataclass(frozen=True, kw_only=True)
class MadeSets:
    """The sets of one shard."""

    sets: list[ImageSet]
    redrawn: int = 0
    """Images that came out bad and were drawn again."""
    rejected: int = 0
    """Images that the safety checker rejected."""
    bad: Mapping[str, str] = field(default_factory=dict)
    """By id why a set was left out: its source is bad, or its images are."""


MakeSets: TypeAlias = Callable[[Sequence[PlannedSet], Advance], MadeSets]
"""Makes the sets of a shard: a function of what is planned alone."""


class FinishedShard(BaseModel):
    """The record of a shard that the store holds: with it a run that was killed goes on after its last shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: ShardEntry | None
    """None if all of its sets were left out."""
    redrawn: int
    rejected: int = 0
    bad: dict[str, str] = {}
    sets: int = 0
    """That were planned for it."""
    first_image: int = 0

    @staticmethod
    def entries(finished: Iterable[FinishedShard]) -> Iterator[ShardEntry]:
        """What a manifest says of shards: of those that add images how many sets are in all shards of their block.

        A block of which none is left is left out.
        """
        for block in grouped(finished):
            entries = [one.entry for one in block if one.entry]
            left = block[0].sets - len({id_ for one in block for id_ in one.bad})
            if len(entries) == len(block) and (left or len(block) == 1):
                first, *added = entries
                yield from (first, *(replace(entry, count=left) for entry in added))


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard that is to be made; it knows of no other."""

    name: str
    """A digest of all that the content depends on."""
    split: Split
    planned: list[PlannedSet]

    @property
    def images(self) -> int:
        return sum(one.count for one in self.planned)

    @property
    def first_image(self) -> int:
        """Of each set."""
        return self.planned[0].first


@dataclass(frozen=True, kw_only=True)
class ShardMaker:
    """Makes shards, on this machine or, pickled, on another."""

    make_sets: MakeSets
    store: Store
    stage: str
    work: Path
    """Where a shard lies until the store has it."""

    def begin(self, job: ShardJob, advance: Advance) -> MadeSets:
        """The sets of a shard."""
        return self.make_sets(job.planned, advance)

    def finish(self, job: ShardJob, made: MadeSets) -> FinishedShard:
        """Writes, uploads and verifies the sets, then records that it is done."""
        entry = None
        with scratch_folder(self.work / self.stage, "shard") as scratch:
            shard, record = scratch / "shard.tar", scratch / "record.json"
            if made.sets:
                entry = write_shard(made.sets, shard, job.split)
                self.store.put(entry.key, shard, entry.sha256)
            done = FinishedShard(
                entry=entry,
                redrawn=made.redrawn,
                rejected=made.rejected,
                bad=dict(made.bad),
                sets=len(job.planned),
                first_image=job.first_image,
            )
            write_atomically(record, done.model_dump_json().encode())
            sha256 = file_digest(record)
            key = Records.key(self.stage, job, done, sha256=sha256, size=record.stat().st_size)
            self.store.put(key, record, sha256)
        return done


class Records:
    """Which shards of a stage the store holds: two listings tell it, however many there are.

    A record lies at ``records/STAGE/NAME.SHA256.SIZE.REDRAWN``, which tells all of a shard that has all of its sets,
    with ``.REJECTED`` after it where images were rejected; of another one at ``records/STAGE/NAME.SHA256.SIZE.bad``,
    with hash and length of the record itself, which is read.

    Raises:
        UserError: the store refuses.
    """

    def __init__(self, store: Store, stage: str) -> None:
        self._store = store
        keys = (key for key, _ in store.objects(f"records/{stage}/"))
        self._found = {match["name"]: match for match in map(_RECORD.fullmatch, keys) if match}
        self._shards = dict(store.objects("shards/")) if self._found else {}

    @staticmethod
    def key(stage: str, job: ShardJob, done: FinishedShard, *, sha256: str, size: int) -> str:
        """Where the record of a shard is kept.

        Args:
            sha256: of the record.
            size: of the record, in bytes.
        """
        told = [sha256, size, "bad"]
        if done.entry and not done.bad:
            told = [done.entry.sha256, done.entry.size, done.redrawn, *([done.rejected] if done.rejected else [])]
        return f"records/{stage}/{job.name}.{'.'.join(map(str, told))}"

    def of(self, job: ShardJob) -> FinishedShard | None:
        """The record of a job's shard, for the split that it is in now, if the store still holds the shard.

        Raises:
            UserError: the record of a shard that lacks sets is damaged, or the store refuses.
        """
        if (found := self._found.get(job.name)) is None:
            return None
        sha256, size = found["sha256"], int(found["size"])
        if found["redrawn"] == "bad":
            content = self._store.get(found[0], sha256, size).read_bytes()
            done = FinishedShard.model_validate_json(content)
            entry = done.entry and replace(done.entry, split=job.split)
        else:
            entry = ShardEntry(
                key=shard_key(sha256),
                sha256=sha256,
                size=size,
                first_set=job.planned[0].id,
                last_set=job.planned[-1].id,
                count=len(job.planned),
                split=job.split,
                first_image=job.first_image,
            )
            done = FinishedShard(
                entry=entry,
                redrawn=int(found["redrawn"]),
                rejected=int(found["rejected"] or 0),
                sets=len(job.planned),
                first_image=job.first_image,
            )
        if entry and self._shards.get(entry.key) != entry.size:
            return None
        return done.model_copy(update={"entry": entry})


class Kept:
    """The shards of a dataset as it was, which stay as they are when it grows.

    Args:
        path: of its manifest.

    Raises:
        UserError: it cannot be read, or the store refuses.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self.manifest = Manifest.read(path)
        self._path, self._store, self._there = path, store, dict(store.objects("shards/"))
        self._entries = {(one.split, one.first_image, one.first_set): one for one in self.manifest.shards}
        self._left_out = {str(id_) for id_ in _list(self.manifest.made_by.get("left_out_ids"))}

    def check(self, jobs: Iterable[ShardJob]) -> None:
        """Looks before anything is made whether jobs ask for each of its shards.

        Raises:
            UserError: they do not.
        """
        left = dict(self._entries)
        for job in jobs:
            if (done := self.of(job)) and done.entry:
                del left[done.entry.split, done.entry.first_image, done.entry.first_set]
        if left:
            first = next(iter(left.values()))
            raise UserError(
                f"{self._path} cannot be extended: {len(left)} of its shards are not asked for, the first of the sets "
                f"{first.first_set} to {first.last_set}; leave captions, images_per_set and sets_per_shard as they "
                "were, and add to captions.more or generate.more_images"
            )

    def of(self, job: ShardJob) -> FinishedShard | None:
        """A job's shard, if it was in the dataset.

        Raises:
            UserError: the store does not hold it any more.
        """
        ids = [one.id for one in job.planned]
        places = ((job.split, job.first_image, id_) for id_ in ids)
        entry = next((self._entries[place] for place in places if place in self._entries), None)
        if entry is None or entry.last_set not in ids:
            return None
        around = ids[: ids.index(entry.first_set)] + ids[ids.index(entry.last_set) + 1 :]
        if not self._left_out.issuperset(around):
            return None
        if self._there.get(entry.key) != entry.size:
            raise UserError(f"the store {self._store.uri} lacks {entry.key}, which {self._path} names; bring it back")
        bad = {id_: f"set {id_} was left out before" for id_ in ids if id_ in self._left_out}
        return FinishedShard(entry=entry, redrawn=0, bad=bad, sets=len(ids), first_image=job.first_image)


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def shard_jobs(
    sets: Mapping[Split, Iterable[PlannedSet]],
    *,
    depends: Sequence[JsonValue],
    sets_per_shard: int,
    parts: Sequence[int] = (),
    more_images: Sequence[int] = (),
    runtime: Runtime,
) -> Iterator[ShardJob]:
    """The shards of training in order, then those of the other splits. No shard mixes splits.

    A dataset that grows keeps its shards: sets that come later are in later shards, and images that are added to sets
    in shards of their own, behind that of the sets.

    Args:
        depends: what the content of every shard depends on, besides the sets that are planned for it.
        parts: how many sets of training came at a time, in order; all others came at once.
        more_images: how many images were added to each set at a time, in order.
    """
    # A dataset begun on a CPU does not go on from there on a GPU.
    whole = [*depends, runtime.device_type]
    for split in get_args(Split):
        rest = iter(sets[split])
        came = [islice(rest, size) for size in parts if split == "train"]
        for block in chain.from_iterable(blocks(some, sets_per_shard) for some in (*came, rest)):
            firsts = [*accumulate(more_images, initial=block[0].count)]
            added = zip(firsts[:-1], more_images, strict=True)
            for planned in (block, *([replace(one, first=first, count=n) for one in block] for first, n in added)):
                content = [*whole, *(one.identity for one in planned)]
                name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
                yield ShardJob(name=name, split=split, planned=planned)


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in order, `size` at a time; the last block may be shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block
