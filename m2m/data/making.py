"""How a dataset is made: shard after shard, each recorded once the store holds it, the manifest last.

A run that was killed at any moment goes on after its last recorded shard, and ends with the same manifest, byte for
byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, JsonValue

from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet, write_shard
from m2m.errors import UserError
from m2m.files import is_intact, sealed_file, write_atomically
from m2m.manifest import Manifest, ShardEntry, Split, shard_key
from m2m.progress import Advance, progress
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import Workers, in_order, thread_pool

T = TypeVar("T")

SHOWN_SETS = 4
"""Sets whose images the tracker shows."""
EXAMPLES = 5
"""What is bad in a source is named so many times, and counted from there on."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The sets of one shard."""

    sets: list[ImageSet]
    redrawn: int = 0
    """Images that came out bad and were drawn again."""
    bad: tuple[str, ...] = ()
    """What was left out because its source is bad: one line each."""


class FinishedShard(BaseModel):
    """The record of a shard that the store holds: with it a run that was killed goes on after its last shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: ShardEntry | None
    """None if all of its sets were left out."""
    redrawn: int
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Unstored:
    made: Made
    split: Split
    name: Path
    """Of its record, but for the suffix."""


@dataclass(frozen=True, kw_only=True)
class Making(Generic[T]):
    """What is to be made, and how; an item is what one set is made of."""

    stage: str
    kind: Literal["mis", "nvs", "vpg"]
    parameters: dict[str, JsonValue]
    made_by: dict[str, JsonValue]
    """What the manifest says of it."""
    depends: list[JsonValue]
    """What the content of every shard depends on, besides its items."""
    items: Callable[[Split], Iterable[T]]
    """Those of a split, in order."""
    identity: Callable[[T], JsonValue]
    """All that the set of an item depends on."""
    count: Callable[[T], int]
    """Images in the set of an item."""
    sets: int
    """In all, bad ones too."""
    images: int
    """In all."""
    images_per_set: int
    """The most in a set."""
    sets_per_shard: int
    make: Callable[[list[T], Advance], Made]
    """The sets of one shard: a function of its items alone."""
    card: Callable[[Manifest, int], str]
    """The card of a manifest whose images have so many pixels a side."""
    bad: tuple[str, ...] = ()
    """Sets that are known to be bad before anything is made, and why."""
    max_bad_fraction: float = 0.0
    """Share of sets that may be left out because their source is bad."""


def make_dataset(
    making: Making[T], *, manifest: Path, work: Path, store: Store, tracker: Tracker, workers: Workers
) -> Manifest:
    """Makes what is missing, a shard a worker; writes the manifest last, with its card (``.md``) beside it.

    A shard is made, written, uploaded and verified, then recorded below `work`. While it is written, the next one is
    made: a GPU does not wait for the disk or the store.

    Raises:
        UserError: too much of the source is bad, the store cannot be used, or the disk refuses.
    """
    records = work / making.stage
    made: list[int] = []
    with (
        tracker.run(making.stage, stage=making.stage, tags={}) as run,
        progress(making.images, making.stage, unit="images") as advance,
    ):
        run.params(making.parameters)
        started = time.perf_counter()

        def make(shard: tuple[Split, list[T]]) -> FinishedShard | _Unstored:
            split, items = shard
            name = records / _digest([*making.depends, *map(making.identity, items)])
            images = sum(map(making.count, items))
            if (done := _recorded(name, split, store)) is not None:
                advance(images, skipped=True)
                return done
            made.append(images)
            return _Unstored(making.make(items, advance), split, name)

        def keep(shard: FinishedShard | _Unstored) -> FinishedShard:
            return shard if isinstance(shard, FinishedShard) else _store(shard, store)

        finished: list[FinishedShard] = []
        bad = list(making.bad)
        if len(bad) > making.max_bad_fraction * making.sets:
            raise UserError(_too_bad(making, bad))
        with (
            thread_pool(1, "store") as writer,
            closing(workers.map(make, _shards(making))) as drawn,
            closing(in_order(writer, keep, drawn, ahead=2)) as shards,
        ):
            for shard in shards:
                finished.append(shard)
                bad += shard.bad
                if len(bad) > making.max_bad_fraction * making.sets:
                    raise UserError(_too_bad(making, bad))
        seconds = time.perf_counter() - started
        if bad:
            _log.warning("%s: left out %d of %d sets: %s", making.stage, len(bad), making.sets, _some(bad))
        result = Manifest(
            schema_version=1,
            kind=making.kind,
            made_by={**making.made_by, **({"left_out": len(bad)} if bad else {})},
            images_per_set=making.images_per_set,
            redrawn=sum(shard.redrawn for shard in finished),
            shards=tuple(shard.entry for shard in finished if shard.entry),
        )
        if not result.shards:
            raise UserError(f"{making.stage}: all {making.sets} sets are bad: {_some(bad)}")
        dataset = ImageSets(store, result, result.shards[0].split)
        shown = [dataset[index].images for index in range(min(SHOWN_SETS, len(dataset)))]
        write_atomically(manifest.with_suffix(".md"), making.card(result, shown[0].shape[1]).encode())
        result.write(manifest)
        run.tags({"manifest": result.digest})
        run.dataset(making.kind, source=str(manifest), digest=result.digest, context="generation", sets=result.sets)
        run.metrics({"images": making.images, "redrawn": result.redrawn, **({"left_out": len(bad)} if bad else {})})
        if made:
            run.metrics({"images_per_second": sum(made) / seconds})
        for index, images in enumerate(shown):
            run.image(Image.fromarray(np.concatenate(images, axis=1)), key=f"set/{index:02}", step=0)
    return result


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in order, `size` at a time; the last block may be shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def _shards(making: Making[T]) -> Iterator[tuple[Split, list[T]]]:
    """The items of each shard: those of training in order, then those of the other splits. No shard mixes splits."""
    for split in get_args(Split):
        for block in blocks(making.items(split), making.sets_per_shard):
            yield split, block


def _store(shard: _Unstored, store: Store) -> FinishedShard:
    """Writes, uploads and verifies a shard, then records that it is done."""
    made, entry = shard.made, None
    if made.sets:
        tar = shard.name.with_suffix(".tar")
        try:
            stats = write_shard(made.sets, tar)
            key = shard_key(stats.sha256)
            store.put(key, tar, stats.sha256)
        finally:
            tar.unlink(missing_ok=True)
        entry = ShardEntry(key=key, split=shard.split, **vars(stats))
    done = FinishedShard(entry=entry, redrawn=made.redrawn, bad=made.bad)
    with sealed_file(shard.name.with_suffix(".json")) as draft:
        draft.write_bytes(done.model_dump_json().encode())
    return done


def _recorded(name: Path, split: Split, store: Store) -> FinishedShard | None:
    """The shard, if an earlier run finished it and the store still holds it: for the split that it is in now."""
    record = name.with_suffix(".json")
    if not is_intact(record):  # it is not there, or damaged: the shard is made again
        return None
    done = FinishedShard.model_validate_json(record.read_bytes())
    if done.entry is None:
        return done
    if not store.exists(done.entry.key, done.entry.size):
        return None
    return done.model_copy(update={"entry": done.entry.model_copy(update={"split": split})})


def _digest(content: JsonValue) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _too_bad(making: Making[T], bad: list[str]) -> str:
    allowed = f"{making.stage}.max_bad_fraction {making.max_bad_fraction:g} allows of {making.sets}"
    return f"{making.stage}: {len(bad)} sets are bad, more than {allowed}: {_some(bad)}"


def _some(bad: list[str]) -> str:
    more = f"; and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
    return "; ".join(bad[:EXAMPLES]) + more
