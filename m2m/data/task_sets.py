"""The sets of a task's dataset: pictures from somewhere, and their latents by Stable Diffusion's VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from m2m.data.card import task_card
from m2m.data.making import Made, Making, blocks
from m2m.data.shards import ImageSet
from m2m.errors import UserError
from m2m.manifest import Split
from m2m.params import FolderSets, TaskSets
from m2m.progress import Advance

Encode: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pictures to scaled latents: (B, H, W, 3) -> (B, 4, h, w)."""
Pictures: TypeAlias = tuple[NDArray[np.uint8], Mapping[str, Sequence[Any]]]
"""Those of one set (N, H, W, 3), and by name what else is known of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSet:
    """A set whose pictures are yet to come."""

    id: str
    caption: str
    count: int
    """Images."""
    draw: Callable[[], Pictures]
    """Called in a pool, which may be one of processes. Raises UserError if what it reads is bad."""
    fingerprint: Callable[[], JsonValue] = lambda: None
    """What the pictures depend on besides id, caption, count and the dataset's parameters: the files' state."""

    @property
    def identity(self) -> JsonValue:
        return [self.id, self.caption, self.count, self.fingerprint()]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the sets of a task come from: for the manifest and the card."""

    name: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All sets of a task's dataset."""

    source: Source
    sets: Mapping[Split, Sequence[PlannedSet]]
    """Those of each split, in order."""
    images_per_set: int
    """The most in a set."""
    bad: tuple[str, ...] = ()
    """Sets of the source that could not even be planned, and why."""


PLACES = {
    *("source", "path", "test_path", "train", "validation", "test", "validation_share", "test_share"),
    "max_bad_fraction",
}
"""Parameters that say where sets come from and which there are, but not what a set looks like."""


def task_making(
    stage: str,
    kind: Literal["nvs", "vpg"],
    params: TaskSets,
    plan: Plan,
    *,
    vae: str,
    code: str,
    device: str,
    pool: Executor,
    encode: Callable[[], Encode],
) -> Making[PlannedSet]:
    """How the dataset of a plan is made.

    Args:
        vae: SHA-256 of the VAE's folder.
        code: SHA-256 of what draws or reads.
        device: what it encodes on.
        encode: gives the encoder, when the first missing shard needs it.
    """
    parameters = params.model_dump(mode="json", exclude={"path", "test_path"})  # a place on some machine is no content
    sets = [*chain.from_iterable(plan.sets.values())]
    return Making(
        stage=stage,
        kind=kind,
        parameters=params.model_dump(mode="json"),
        made_by={"stage": stage, "parameters": parameters, "source": {**vars(plan.source)}, "vae": {"sha256": vae}},
        # A dataset begun on a CPU does not go on from there on a GPU, nor one of older code.
        depends=[params.model_dump(mode="json", exclude=PLACES), vae, device.partition(":")[0], code],
        items=plan.sets.__getitem__,
        identity=lambda one: one.identity,
        count=lambda one: one.count,
        sets=len(sets) + len(plan.bad),
        images=sum(one.count for one in sets),
        images_per_set=plan.images_per_set,
        sets_per_shard=params.sets_per_shard,
        make=lambda shard, advance: make_sets(shard, advance, pool=pool, encode=encode(), batch_size=params.batch_size),
        card=lambda made, size: task_card(made, image_size=size),
        bad=plan.bad,
        max_bad_fraction=params.max_bad_fraction if isinstance(params, FolderSets) else 0.0,
    )


def make_sets(
    planned: Sequence[PlannedSet], advance: Advance, *, pool: Executor, encode: Encode, batch_size: int
) -> Made:
    """The sets with their latents; those whose source is bad are left out and named.

    Every batch has `batch_size` rows, what is missing in the last one filled with its first row, so that the bytes are
    the same whatever else is made at the same time.
    """
    good: list[tuple[PlannedSet, Pictures]] = []
    bad: list[str] = []
    for one, outcome in zip(planned, _drawn(planned, pool), strict=True):
        if isinstance(outcome, UserError):
            bad.append(str(outcome))
        else:
            good.append((one, outcome))
        advance(one.count)
    latents = _encoded((image for _, (images, _) in good for image in images), encode, batch_size)
    sets = [
        ImageSet(
            id=one.id,
            caption=one.caption,
            images=images,
            latents=np.stack([*islice(latents, len(images))]),
            extras=extras,
        )
        for one, (images, extras) in good
    ]
    return Made(sets=sets, bad=tuple(bad))


def _drawn(planned: Sequence[PlannedSet], pool: Executor) -> Iterator[Pictures | UserError]:
    """What a pool makes of each set, in order, or what is wrong with its source."""
    futures = [pool.submit(one.draw) for one in planned]
    for future in futures:
        try:
            yield future.result()
        except UserError as error:
            yield error
        except BrokenExecutor as error:
            raise UserError("a process that draws was ended, perhaps for want of memory; run it again") from error


def _encoded(images: Iterable[NDArray[np.uint8]], encode: Encode, batch_size: int) -> Iterator[NDArray[np.float32]]:
    """The latents of each picture (H, W, 3), in order, made a batch at a time: each (4, h, w)."""
    for batch in blocks(images, batch_size):
        full = batch + batch[:1] * (batch_size - len(batch))
        yield from encode(np.stack(full))[: len(batch)]
