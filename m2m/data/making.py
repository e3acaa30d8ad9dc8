"""How a dataset is made: shard after shard, each recorded in the store that holds it, the manifest last with its card.

A run that was killed at any moment goes on, on any machine, after its last recorded shard, and ends with the same
manifest, byte for byte. `make_dataset` has an engine make the shards of `data/shards.py`; `make_task_sets` plans them
for the sets of a task.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias, TypeVar, get_args

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.data.shards import (
    DrawnSet,
    FinishedShard,
    Kept,
    MadeSets,
    MakeSets,
    PlannedSet,
    Records,
    ShardJob,
    ShardMaker,
    blocks,
    shard_jobs,
)
from m2m.errors import UserError
from m2m.files import write_atomically
from m2m.manifest import Manifest, Origin, Split
from m2m.params import FolderSets, GenerateParams, Task, TaskSets, WorldSets
from m2m.progress import Advance, progress
from m2m.runtime import Runtime
from m2m.seeds import rounds
from m2m.workers import Once

T = TypeVar("T")
Encode: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pictures to scaled latents: (B, H, W, 3) -> (B, 4, h, w)."""
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


def make_dataset(
    jobs: Iterable[ShardJob],
    make_sets: MakeSets,
    plan: Manifest,
    params: GenerateParams | TaskSets,
    *,
    sets: int,
    images: int,
    bad: Sequence[str] = (),
    before: Kept | None = None,
    manifest: Path,
    runtime: Runtime,
) -> Manifest:
    """Has the engine make what is missing; writes the manifest last, with its card (``.md``) beside it.

    Args:
        make_sets: can be pickled, as the jobs can.
        plan: the manifest, but for its shards.
        sets: in all, bad ones too.
        images: in all.
        bad: sets that are known to be bad before anything is made, and why.
        before: the dataset as it was, whose shards stay.

    Raises:
        UserError: too much of the source is bad, the store cannot be used, or the disk refuses.
    """
    stage = str(plan.made_by["stage"])
    kept, finished, lost = 0, list[FinishedShard](), dict[str, str]()

    def check_bad() -> None:
        left_out = [*bad, *lost.values()]
        allowed = params.max_bad_fraction if isinstance(params, FolderSets | GenerateParams) else 0.0
        if len(left_out) > allowed * sets:
            more = f"more than {stage}.max_bad_fraction {allowed:g} allows of {sets}"
            raise UserError(f"{stage}: {len(left_out)} sets are bad, {more}: {_some(left_out)}")

    with runtime.tracker.run(stage, stage=stage, tags={}) as run, progress(images, stage, unit="images") as advance:
        run.params(params.model_dump(mode="json"))
        started = time.perf_counter()
        check_bad()
        maker = ShardMaker(make_sets=make_sets, store=runtime.store, stage=stage, work=runtime.work)
        records = Records(runtime.store, stage)

        def recorded(job: ShardJob) -> tuple[ShardJob, FinishedShard | None]:
            nonlocal kept
            if (done := (before and before.of(job)) or records.of(job)) is not None:
                kept += job.images
                advance(job.images, skipped=True)
            return job, done

        with closing(runtime.engine.make(maker, map(recorded, jobs), advance)) as shards:
            for shard in shards:
                finished.append(shard)
                lost |= shard.bad
                check_bad()
        seconds = time.perf_counter() - started
        rejected, redrawn = (sum(getattr(one, name) for one in finished) for name in ("rejected", "redrawn"))
        if before:
            redrawn += before.manifest.redrawn
            rejected += int(str(before.manifest.made_by.get("rejected", 0)))
        left_out = [*bad, *lost.values()]
        counts = {"left_out": len(left_out), "rejected": rejected}
        counted = {name: count for name, count in counts.items() if count}
        if left_out:
            _log.warning("%s: left out %d of %d sets: %s", stage, len(left_out), sets, _some(left_out))
        entries = tuple(FinishedShard.entries(finished))
        named = {"left_out_ids": sorted(lost)} if lost else {}
        changed = {"made_by": {**plan.made_by, **counted, **named}, "redrawn": redrawn, "shards": entries}
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
        if kept < images:
            run.metrics({"images_per_second": (images - kept) / seconds})
        for index, pictures in enumerate(shown):
            run.image(Image.fromarray(np.concatenate(pictures, axis=1)), key=f"set/{index:02}", step=0)
    return result


def _some(bad: Sequence[str]) -> str:
    more = f"; and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
    return "; ".join(bad[:EXAMPLES]) + more


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
    vae: dict[str, JsonValue],
    code: str,
    load_encoder: Callable[[], Encode],
    manifest: Path,
    runtime: Runtime,
) -> Manifest:
    """Makes the dataset of a plan; any number of workers and processes gives the same bytes.

    Args:
        vae: what the manifest says of its weights.
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
        "vae": vae,
    }
    most = plan.images_per_set
    planned = [*chain.from_iterable(plan.sets.values())]
    jobs = shard_jobs(
        plan.sets,
        depends=[params.model_dump(mode="json", exclude=PLACES), vae["sha256"], code],
        sets_per_shard=params.sets_per_shard,
        runtime=runtime,
    )
    pool = Once(partial(plan.pool, runtime.processes))
    try:
        return make_dataset(
            jobs,
            partial(make_with_latents, pool=pool, encode=Once(load_encoder), params=params),
            Manifest(schema_version=1, kind=task, made_by=made_by, images_per_set=most, redrawn=0, shards=()),
            params,
            sets=len(planned) + len(plan.bad),
            images=sum(one.count for one in planned),
            bad=plan.bad,
            manifest=manifest,
            runtime=runtime,
        )
    finally:
        for executor in pool.made:
            executor.shutdown()


def make_with_latents(
    planned: Sequence[PlannedSet],
    advance: Advance,
    *,
    pool: Callable[[], Executor],
    encode: Callable[[], Encode],
    params: TaskSets,
) -> MadeSets:
    """The sets with their latents; those whose source is bad are left out and named.

    Every batch has `params.batch_size` rows, what is missing in the last one filled with its first row, so that the
    bytes are the same whatever else is made at the same time.
    """
    good, bad = list[tuple[PlannedSet, DrawnSet]](), dict[str, str]()
    for one, drawing in [(one, pool().submit(one.draw)) for one in planned if one.draw]:
        try:
            good.append((one, drawing.result()))
        except UserError as error:
            bad[one.id] = str(error)
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
    return MadeSets(sets=sets, bad=bad)
