"""How a dataset is made: shard after shard, each recorded once the store holds it, the manifest last with its card.

A run that was killed at any moment goes on after its last recorded shard, and ends with the same manifest, byte for
byte. `shard_jobs` plans, a `ShardJob` is all there is to one shard, `make_dataset` runs them; `make_task_sets` does it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, JsonValue

from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, write_shard
from m2m.errors import UserError
from m2m.files import is_intact, sealed_file, write_atomically
from m2m.manifest import Manifest, Origin, ShardEntry, Split
from m2m.params import FolderSets, GenerateParams, Task, TaskSets, WorldSets
from m2m.progress import Advance, progress
from m2m.runtime import Runtime
from m2m.seeds import rounds
from m2m.store import Store
from m2m.workers import in_order, once, thread_pool

T = TypeVar("T")
Encode: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pictures to scaled latents: (B, H, W, 3) -> (B, 4, h, w)."""
DrawnSet: TypeAlias = tuple[NDArray[np.uint8], Mapping[str, Sequence[Any]]]
"""The pictures of one set (N, H, W, 3), and by name what else is known of each."""

SHOWN_SETS = 4
"""Sets whose images the tracker shows."""
EXAMPLES = 5
"""What is bad in a source is named so many times, and counted from there on."""
PLACES = {
    *("source", "path", "test_path", "train", "validation", "test", "validation_share", "test_share"),
    "max_bad_fraction",
}
"""Parameters that say where sets come from and which there are, but not what a set looks like."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSet:
    """A set whose pictures are yet to come."""

    id: str
    caption: str
    count: int
    """Images."""
    draw: Callable[[], DrawnSet] | None = None
    """Called in a pool, which may be one of processes. Raises UserError if what it reads is bad. None: a model draws
    what the caption says."""
    fingerprint: Callable[[], JsonValue] | None = None
    """What the pictures depend on besides id, caption, count and the dataset's parameters: the files' state."""

    @property
    def identity(self) -> JsonValue:
        return [self.id, self.caption, self.count, self.fingerprint and self.fingerprint()]


@dataclass(frozen=True, kw_only=True)
class MadeSets:
    """The sets of one shard."""

    sets: list[ImageSet]
    redrawn: int = 0
    """Images that came out bad and were drawn again."""
    bad: tuple[str, ...] = ()
    """What was left out because its source is bad: one line each."""


MakeSets: TypeAlias = Callable[[Sequence[PlannedSet], Advance], MadeSets]
"""Makes the sets of a shard: a function of what is planned alone."""


class FinishedShard(BaseModel):
    """The record of a shard that the store holds: with it a run that was killed goes on after its last shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: ShardEntry | None
    """None if all of its sets were left out."""
    redrawn: int
    bad: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard, from what is planned to its record; it knows of no other."""

    split: Split
    planned: list[PlannedSet]
    make_sets: MakeSets
    store: Store
    record: Path
    """Where its record will lie. The name is a digest of all that the content depends on."""

    def __call__(self, advance: Advance) -> FinishedShard:
        """Makes the shard and stores it, unless that has been done."""
        outcome = self.begin(advance)
        return outcome if isinstance(outcome, FinishedShard) else self.finish(outcome)

    @property
    def images(self) -> int:
        return sum(one.count for one in self.planned)

    def begin(self, advance: Advance) -> FinishedShard | MadeSets:
        """What is recorded, if the store still holds it: for the split that it is in now; else the sets, made."""
        done = FinishedShard.model_validate_json(self.record.read_bytes()) if is_intact(self.record) else None
        if done is None or (done.entry and not self.store.exists(done.entry.key, done.entry.size)):
            return self.make_sets(self.planned, advance)
        advance(self.images, skipped=True)
        entry = done.entry and done.entry.model_copy(update={"split": self.split})
        return done.model_copy(update={"entry": entry})

    def finish(self, made: MadeSets) -> FinishedShard:
        """Writes, uploads and verifies the sets, then records that it is done."""
        entry = None
        if made.sets:
            tar = self.record.with_suffix(".tar")
            try:
                entry = write_shard(made.sets, tar, self.split)
                self.store.put(entry.key, tar, entry.sha256)
            finally:
                tar.unlink(missing_ok=True)
        done = FinishedShard(entry=entry, redrawn=made.redrawn, bad=made.bad)
        with sealed_file(self.record) as draft:
            draft.write_bytes(done.model_dump_json().encode())
        return done


def shard_jobs(
    sets: Mapping[Split, Iterable[PlannedSet]],
    make_sets: MakeSets,
    *,
    depends: Sequence[JsonValue],
    sets_per_shard: int,
    stage: str,
    runtime: Runtime,
) -> Iterator[ShardJob]:
    """The shards of training in order, then those of the other splits. No shard mixes splits.

    Args:
        depends: what the content of every shard depends on, besides the sets that are planned for it.
    """
    # A dataset begun on a CPU does not go on from there on a GPU.
    whole = [*depends, runtime.device_type]
    for split in get_args(Split):
        for block in blocks(sets[split], sets_per_shard):
            content = [*whole, *(one.identity for one in block)]
            name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            record = runtime.work / stage / f"{name}.json"
            yield ShardJob(split=split, planned=block, make_sets=make_sets, store=runtime.store, record=record)


def make_dataset(
    jobs: Iterable[ShardJob],
    plan: Manifest,
    params: GenerateParams | TaskSets,
    *,
    sets: int,
    images: int,
    bad: Sequence[str] = (),
    manifest: Path,
    runtime: Runtime,
) -> Manifest:
    """Makes what is missing, a shard a worker; writes the manifest last, with its card (``.md``) beside it.

    While a shard is stored, the next one is made: a GPU does not wait for the disk or the store.

    Args:
        plan: the manifest, but for its shards.
        sets: in all, bad ones too.
        images: in all.
        bad: sets that are known to be bad before anything is made, and why.

    Raises:
        UserError: too much of the source is bad, the store cannot be used, or the disk refuses.
    """
    stage = str(plan.made_by["stage"])
    left_out, made, finished = [*bad], 0, list[FinishedShard]()

    def check_bad() -> None:
        allowed = params.max_bad_fraction if isinstance(params, FolderSets) else 0.0
        if len(left_out) > allowed * sets:
            more = f"more than {stage}.max_bad_fraction {allowed:g} allows of {sets}"
            raise UserError(f"{stage}: {len(left_out)} sets are bad, {more}: {_some(left_out)}")

    with runtime.tracker.run(stage, stage=stage, tags={}) as run, progress(images, stage, unit="images") as advance:
        run.params(params.model_dump(mode="json"))
        started = time.perf_counter()
        check_bad()
        with (
            thread_pool(1, "store") as writer,
            closing(runtime.workers.map(lambda job: (job, job.begin(advance)), jobs)) as begun,
            closing(in_order(writer, _finished, begun, ahead=2)) as shards,
        ):
            for images_made, shard in shards:
                made += images_made
                finished.append(shard)
                left_out += shard.bad
                check_bad()
        seconds = time.perf_counter() - started
        counted = {"left_out": len(left_out)} if left_out else {}
        if left_out:
            _log.warning("%s: left out %d of %d sets: %s", stage, len(left_out), sets, _some(left_out))
        entries, redrawn = (shard.entry for shard in finished if shard.entry), sum(shard.redrawn for shard in finished)
        changed = {"made_by": {**plan.made_by, **counted}, "redrawn": redrawn, "shards": tuple(entries)}
        result = plan.model_copy(update=changed)
        if not result.shards:
            raise UserError(f"{stage}: all {sets} sets are bad: {_some(left_out)}")
        dataset = ImageSets(runtime.store, result, result.shards[0].split)
        shown = [dataset[index].images for index in range(min(SHOWN_SETS, len(dataset)))]
        card = dataset_card(result, image_size=shown[0].shape[1])
        write_atomically(manifest.with_suffix(".md"), card.encode())
        result.write(manifest)
        run.tags({"manifest": result.digest})
        run.dataset(result.kind, source=str(manifest), digest=result.digest, context="generation", sets=result.sets)
        run.metrics({"images": images, "redrawn": result.redrawn, **counted})
        if made:
            run.metrics({"images_per_second": made / seconds})
        for index, pictures in enumerate(shown):
            run.image(Image.fromarray(np.concatenate(pictures, axis=1)), key=f"set/{index:02}", step=0)
    return result


def _finished(begun: tuple[ShardJob, FinishedShard | MadeSets]) -> tuple[int, FinishedShard]:
    """How many images were made for a shard, and its record."""
    job, outcome = begun
    return (0, outcome) if isinstance(outcome, FinishedShard) else (job.images, job.finish(outcome))


def _some(bad: Sequence[str]) -> str:
    more = f"; and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
    return "; ".join(bad[:EXAMPLES]) + more


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in order, `size` at a time; the last block may be shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def dataset_card(manifest: Manifest, *, image_size: int) -> str:
    """What a dataset is, how it was made, and on what terms, in Markdown; the same dataset has the same card.

    Args:
        image_size: pixels of a side of its images.
    """
    cards = Environment(loader=PackageLoader("m2m.data", ""), undefined=StrictUndefined, trim_blocks=True)
    sizes = " to ".join(map(str, sorted({manifest.set_sizes[0], manifest.set_sizes[-1]})))
    splits = {split: manifest.split(split) for split in get_args(Split)}
    return cards.get_template("card.md.jinja").render(manifest=manifest, size=image_size, sizes=sizes, splits=splits)


# The sets of a task: pictures from somewhere, and their latents by Stable Diffusion's VAE

STAGES: Mapping[Task, str] = {"nvs": "views", "vpg": "procedures"}


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """All sets of a task's dataset."""

    origin: Origin
    sets: Mapping[Split, Sequence[PlannedSet]]
    """Those of each split, in order."""
    images_per_set: int
    """The most in a set."""
    bad: tuple[str, ...] = ()
    """Sets of the source that could not even be planned, and why."""
    pool: Callable[[int], Executor] = ThreadPoolExecutor
    """Where so many sets are drawn at the same time."""


def world_sets(
    params: WorldSets, combinations: Callable[[Split], Sequence[T]], planned: Callable[[str, T], PlannedSet]
) -> dict[Split, list[PlannedSet]]:
    """As many sets of the embedded world as are asked for, evenly chosen among what each split may show.

    Args:
        combinations: what a split may show.
        planned: the set of an id that shows one of them.
    """
    sets: dict[Split, list[PlannedSet]] = {}
    for split in get_args(Split):
        choices = combinations(split)
        chosen = enumerate(rounds(params.seed, split, len(choices), getattr(params, split)))
        sets[split] = [planned(f"world-{split}-{number:06}", choices[index]) for number, (_, index) in chosen]
    return sets


def make_task_sets(
    task: Task,
    params: TaskSets,
    plan: TaskPlan,
    *,
    vae: str,
    code: str,
    load_encoder: Callable[[], Encode],
    manifest: Path,
    runtime: Runtime,
) -> Manifest:
    """Makes the dataset of a plan; any number of workers and processes gives the same bytes.

    Args:
        vae: SHA-256 of the VAE's folder.
        code: SHA-256 of what draws or reads: a dataset begun by other code does not go on from there.
        load_encoder: called when the first shard is missing.

    Raises:
        UserError: too much of the source is bad, the store cannot be used, or the disk refuses.
    """
    stage = STAGES[task]
    made_by: dict[str, JsonValue] = {
        "stage": stage,
        # Where files lie on some machine is no content.
        "parameters": params.model_dump(mode="json", exclude={"path", "test_path"}),
        "source": {"name": plan.origin.name, "licence": plan.origin.licence},
        "vae": {"sha256": vae},
    }
    most = plan.images_per_set
    planned = [*chain.from_iterable(plan.sets.values())]
    with plan.pool(runtime.processes) as pool:
        jobs = shard_jobs(
            plan.sets,
            partial(make_with_latents, pool=pool, encode=once(load_encoder), params=params),
            depends=[params.model_dump(mode="json", exclude=PLACES), vae, code],
            sets_per_shard=params.sets_per_shard,
            stage=stage,
            runtime=runtime,
        )
        return make_dataset(
            jobs,
            Manifest(schema_version=1, kind=task, made_by=made_by, images_per_set=most, redrawn=0, shards=()),
            params,
            sets=len(planned) + len(plan.bad),
            images=sum(one.count for one in planned),
            bad=plan.bad,
            manifest=manifest,
            runtime=runtime,
        )


def make_with_latents(
    planned: Sequence[PlannedSet], advance: Advance, *, pool: Executor, encode: Callable[[], Encode], params: TaskSets
) -> MadeSets:
    """The sets with their latents; those whose source is bad are left out and named.

    Every batch has `params.batch_size` rows, what is missing in the last one filled with its first row, so that the bytes are
    the same whatever else is made at the same time.
    """
    good, bad = list[tuple[PlannedSet, DrawnSet]](), list[str]()
    for one, drawing in [(one, pool.submit(one.draw)) for one in planned if one.draw]:
        try:
            good.append((one, drawing.result()))
        except UserError as error:
            bad.append(str(error))
        except BrokenExecutor as error:
            raise UserError("a process that draws was ended, perhaps for want of memory; run it again") from error
        advance(one.count)
    latents: list[NDArray[np.float32]] = []
    for batch in blocks(chain.from_iterable(images for _, (images, _) in good), params.batch_size):
        full = batch + batch[:1] * (params.batch_size - len(batch))
        latents.extend(encode()(np.stack(full))[: len(batch)])
    of_each, sets = iter(latents), list[ImageSet]()
    for one, (images, extras) in good:
        z = np.stack([*islice(of_each, len(images))], dtype=params.latents, casting="same_kind")  # (N, 4, h, w)
        sets.append(ImageSet(id=one.id, caption=one.caption, images=images, latents=z, extras=extras))
    return MadeSets(sets=sets, bad=tuple(bad))
