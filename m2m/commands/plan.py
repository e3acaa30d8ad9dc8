"""``m2m plan``: what a profile asks of GPUs, of the store and of a purse, by rates that were measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import get_args

from m2m.errors import UserError
from m2m.params import Params, Variant, WorldFoundation
from m2m.world.pictures import SIDE

HOUR = 3600
PART = 8 << 20
"""Bytes that boto3 sends at once; a larger file goes in parts, between two more requests."""
PUBLISHED_SIDE = 512
"""Pixels a side of what the published Stable Diffusion 2.1-base draws."""
BYTES_PER_PIXEL = 1.75
"""Of PNG 1.5, as photographs have; of latents, a sixteenth of a number in float32 a pixel."""


@dataclass(frozen=True)
class Number:
    """A number, and where it is from."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Prices:
    """In whatever currency; 0: free."""

    gpu_hour: float = 0.0
    gigabyte_month: float = 0.0
    thousand_writes: float = 0.0
    thousand_reads: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one stage."""

    stage: str
    images: int
    """Drawn, or that pass through the U-Net: M2M-Self reads all but the last of a set with it."""
    images_per_second: Number
    """Of one GPU."""
    gpu_hours: float
    hours: float
    """With all GPUs, as if they shared the work without loss."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What it comes to."""

    gpus: int
    work: tuple[Work, ...]
    bytes_per_image: Number
    store_bytes: int
    shards: int
    writes: int
    """Requests that send, while the dataset is made."""
    reads: int
    """Requests that ask or fetch: each shard is looked for twice and read back once; training fetches it once more."""
    cost: Mapping[str, float]
    """By what is paid for: GPUs, a month of the store, requests."""

    @property
    def gpu_hours(self) -> float:
        return sum(one.gpu_hours for one in self.work)


def run(
    params: Params,
    *,
    results: Path,
    pixels: int | None,
    gpus: int,
    given: Mapping[str, float],
    prices: Prices,
    bytes_per_image: float | None = None,
) -> Plan:
    """Plans the MIS dataset of a parameter file and the training of both variants.

    Args:
        results: folder with what ``make bench`` wrote.
        pixels: of a picture's side; None: what the profile's foundation draws.
        given: rates that were not measured there: images a second by ``generate``, ``train@self``, ``train@dino``.

    Raises:
        UserError: a rate is neither given nor measured.
    """
    if pixels is None:
        pixels = SIDE if isinstance(params.foundation, WorldFoundation) else PUBLISHED_SIDE
    generate, captions = params.generate, params.captions
    counts = (captions.train, captions.validation, captions.test)
    drawn = sum(counts) * generate.images_per_set
    asked = {"generate": (drawn, f"generation/{pixels}px")}
    for variant in get_args(Variant):
        passes = _passes(variant, params.train.variant.of(variant).images, params.train.common.set_size)
        asked[f"train@{variant}"] = (passes, f"training/{pixels}px/{variant}")
    work = []
    for stage, (images, row) in asked.items():
        rate = Number(given[stage], "given") if stage in given else _measured(row, results, stage)
        hours = images / rate.value / HOUR
        work.append(Work(stage=stage, images=images, images_per_second=rate, gpu_hours=hours, hours=hours / gpus))

    size = Number(BYTES_PER_PIXEL * pixels**2, f"assumed, {BYTES_PER_PIXEL:g} a pixel")
    if bytes_per_image is not None:
        size = Number(bytes_per_image, "given")
    sets_of_shards = [sets for split in counts for sets in _shards(split, generate.sets_per_shard)]
    writes = sum(_puts(sets * generate.images_per_set * size.value) for sets in sets_of_shards)
    train_shards = ceil(captions.train / generate.sets_per_shard)
    fetched = sum(
        min(train_shards, params.train.variant.of(variant).images // params.train.common.set_size)
        for variant in get_args(Variant)
    )
    reads = 3 * len(sets_of_shards) + fetched
    store_bytes = round(drawn * size.value)
    cost = {
        "gpus": sum(one.gpu_hours for one in work) * prices.gpu_hour,
        "store a month": store_bytes / 1e9 * prices.gigabyte_month,
        "requests": (writes * prices.thousand_writes + reads * prices.thousand_reads) / 1000,
    }
    return Plan(
        gpus=gpus,
        work=tuple(work),
        bytes_per_image=size,
        store_bytes=store_bytes,
        shards=len(sets_of_shards),
        writes=writes,
        reads=reads,
        cost=cost,
    )


def to_text(plan: Plan) -> str:
    """A line a number, each with its source."""
    return "\n".join(_lines(plan))


def to_json(plan: Plan) -> str:
    """The same for programs."""
    return json.dumps({**asdict(plan), "gpu_hours": plan.gpu_hours}, indent=1)


def _lines(plan: Plan) -> Iterator[str]:
    for one in plan.work:
        rate = one.images_per_second
        yield f"{one.stage}: {one.images:,} images at {rate.value:g}/s a GPU ({rate.source})"
        yield f"    {one.gpu_hours:,.1f} GPU-hours, {_time(one.hours)} with {plan.gpus} GPUs"
    hours = plan.gpu_hours
    yield f"in all: {hours:,.1f} GPU-hours, {_time(hours / plan.gpus)} with {plan.gpus} GPUs, if none waits for another"
    size = plan.bytes_per_image
    yield f"store: {plan.store_bytes / 1e9:,.1f} GB at {size.value:,.0f} bytes an image ({size.source})"
    yield f"    {plan.shards:,} shards, {plan.writes:,} requests that write, {plan.reads:,} that read"
    if any(plan.cost.values()):
        parts = ", ".join(f"{what} {amount:,.2f}" for what, amount in plan.cost.items())
        yield f"cost: {sum(plan.cost.values()):,.2f} at the given prices: {parts}"


def _time(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} hours"


def _passes(variant: Variant, images: int, set_size: int) -> int:
    """U-Net rows for so many training images: N a set, and N - 1 that M2M-Self reads with the same network."""
    return images + images // set_size * (set_size - 1) if variant == "self" else images


def _shards(sets: int, most: int) -> list[int]:
    """Sets in each shard of a split."""
    return [most] * (sets // most) + [sets % most] * (sets % most > 0)


def _puts(size: float) -> int:
    parts = ceil(size / PART)
    return parts + 2 if parts > 1 else 1


def _measured(name: str, results: Path, stage: str) -> Number:
    for path in sorted(results.glob("*.json")):
        try:
            rows = {row["name"]: (float(row["ours"]), str(row["on"])) for row in json.loads(path.read_text())}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not what make bench writes; remove it or run make bench again") from error
        if name in rows and rows[name][0] > 0:
            rate, where = rows[name]
            return Number(rate, f"{path}: {name}, {where}")
    option = f"--rate {stage}=IMAGES_PER_SECOND"
    raise UserError(f"nobody measured {name} in {results}; run make bench on the GPU, or give {option}")
