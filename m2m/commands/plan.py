"""``m2m plan``: what a profile asks of GPUs, of the store and of a purse, by rates that were measured or estimated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast, get_args

from m2m.engines import simulation
from m2m.engines.simulation import HOUR, Failures, Outcome, Simulated
from m2m.errors import UserError
from m2m.foundation import sizes
from m2m.params import HubFoundation, LearningParams, Params, Variant, WorldFoundation
from m2m.world.pictures import SIDE

PART = 8 << 20
"""Bytes that boto3 sends at once; a larger file goes in parts, between two more requests."""
PUBLISHED_SIDE = 512
"""Pixels a side of what the published Stable Diffusion 2.1-base draws."""
PNG = 1.5
"""Bytes a pixel, as photographs have."""
LATENTS = {"float32": 4 / 16, "float16": 2 / 16}
"""Bytes a pixel: four numbers for 8 x 8 of them."""

CARDS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362}
"""TFLOP/s in bfloat16 without sparsity, by their makers; the first where none is named."""
SHARES = {"generate": 0.15, "train": 0.25}
"""Of those, what networks of Stable Diffusion's size reach: an H200 trained at .23 to .26 (`benchmarks/results`)."""
MEASURED_ROWS = 30
"""That passed through the U-Net at once where the most memory was measured (`benchmarks.training.checkpointing`)."""


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
    memory: Number | None = None
    """GiB of one GPU, in training; None where nothing tells."""
    memory_otherwise: Number | None = None
    """The same with the other value of ``gradient_checkpointing``."""
    network: sizes.Network | None = None
    """What is trained, if it is a published network."""
    hindrance: str = ""
    """Why so many GPUs cannot share the work, if they cannot."""


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
    """Requests that ask or fetch: each shard is looked for twice and read back once; training fetches it each epoch."""
    cost: Mapping[str, float]
    """By what is paid for: GPUs, a month of the store, requests."""
    failures: Failures | None
    simulated: tuple[Simulated, ...]
    """Each stage with those failures, if they were asked for."""

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
    card: str | None = None,
    bytes_per_image: float | None = None,
    failures: Failures | None = None,
) -> Plan:
    """Plans the MIS dataset of a parameter file and the training of both variants.

    Args:
        results: folder with what ``make bench`` wrote.
        pixels: of a picture's side; None: what the profile's foundation draws.
        given: rates that were not measured there: images a second by ``generate``, ``train@self``, ``train@dino``.
        failures: each stage is run through with them, too.

    Raises:
        UserError: a rate is neither given nor measured.
    """
    if pixels is None:
        pixels = side(params)
    generate = params.generate
    drawn = sets_of(params) * generate.images
    asked = {"generate": (drawn, f"generation/{pixels}px")}
    for variant in get_args(Variant):
        passes = _passes(variant, params.train.variant.of(variant).images, params.train.common.set_size)
        asked[f"train@{variant}"] = (passes, f"training/{pixels}px/{variant}")
    work = []
    for stage, (images, row) in asked.items():
        steps = generate.num_inference_steps if stage == "generate" else None
        rate = Number(given[stage], "given") if stage in given else _rate(row, steps, results, stage, card)
        hours, variant = images / rate.value / HOUR, cast(Variant, stage.partition("@")[2])
        one = Work(
            stage=stage,
            images=images,
            images_per_second=rate,
            gpu_hours=hours,
            hours=hours / gpus,
            **(_training(params, variant, pixels, gpus, results) if variant else {}),
        )
        work.append(one)

    size = bytes_of_image(params, pixels) if bytes_per_image is None else Number(bytes_per_image, "given")
    images_of_shards = shards_of(params)
    writes = sum(_puts(images * size.value) for images in images_of_shards)
    fetched = sum(_fetched(params, variant) for variant in get_args(Variant))
    reads = 3 * len(images_of_shards) + fetched
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
        shards=len(images_of_shards),
        writes=writes,
        reads=reads,
        cost=cost,
        failures=failures,
        simulated=tuple(_simulated(params, one, gpus, failures) for one in work) if failures else (),
    )


def side(params: Params) -> int:
    """Pixels of a side of what the profile's foundation draws."""
    return SIDE if isinstance(params.foundation, WorldFoundation) else PUBLISHED_SIDE


def bytes_of_image(params: Params, pixels: int) -> Number:
    """In a shard of the dataset, latents included."""
    latents = params.generate.latents
    return Number((PNG + LATENTS[latents]) * pixels**2, f"assumed, {PNG:g} a pixel of PNG, and latents in {latents}")


def dataset_bytes(params: Params, pixels: int) -> float:
    """Of the MIS dataset."""
    return sets_of(params) * params.generate.images * bytes_of_image(params, pixels).value


def sets_of(params: Params) -> int:
    """How many sets the MIS dataset has."""
    captions = params.captions
    return captions.train + sum(captions.more) + captions.validation + captions.test


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
        if one.memory:
            yield f"    {one.memory.value:,.0f} GiB a GPU ({one.memory.source})"
        if one.network:
            if other := one.memory_otherwise:
                yield f"    or {other.value:,.0f} GiB ({other.source.partition(';')[0]})"
            yield from (f"    {line}" for line in one.network.lines())
        if one.hindrance:
            yield f"    {one.hindrance}"
    hours = plan.gpu_hours
    yield f"in all: {hours:,.1f} GPU-hours, {_time(hours / plan.gpus)} with {plan.gpus} GPUs, if none waits for another"
    size = plan.bytes_per_image
    yield f"store: {plan.store_bytes / 1e9:,.1f} GB at {size.value:,.0f} bytes an image ({size.source})"
    yield f"    {plan.shards:,} shards, {plan.writes:,} requests that write, {plan.reads:,} that read"
    if any(plan.cost.values()):
        parts = ", ".join(f"{what} {amount:,.2f}" for what, amount in plan.cost.items())
        yield f"cost: {sum(plan.cost.values()):,.2f} at the given prices: {parts}"
    if plan.failures:
        how = plan.failures
        each = f"each node of {how.gpus_per_node} GPUs fails every {how.node_hours:g} hours"
        yield f"if {each}, on average, and works again after {how.back_minutes:g} minutes:"
        for run in plan.simulated:
            more, again = run.hours / run.planned_hours - 1, f", {run.again:,.0f} shards made again" * (run.again > 0)
            times = f"{_time(run.hours)} for {_time(run.planned_hours)} (+{more:.1%})"
            yield f"    {run.stage}: {times}, the longest of {run.runs} runs {_time(run.longest)}"
            yield f"        {run.failures:,.1f} failures, {run.lost_gpu_hours:,.1f} GPU-hours of work lost{again}"
        hours = sum(run.hours for run in plan.simulated) * plan.gpus
        requests = sum(run.again for run in plan.simulated) * (plan.writes / plan.shards + 3)
        paid = f", {plan.cost['gpus'] * hours / plan.gpu_hours:,.2f} for GPUs" if plan.cost["gpus"] else ""
        yield f"    in all: {hours:,.1f} GPU-hours{paid}, {requests:,.0f} more requests at most"


def _simulated(params: Params, work: Work, gpus: int, failures: Failures) -> Simulated:
    return simulation.simulated(work.stage, work.hours, _outcomes(params, work, gpus, failures))


def _outcomes(params: Params, work: Work, gpus: int, failures: Failures) -> Iterator[Outcome]:
    """A stage run through several times."""
    rate, variant = work.images_per_second.value, work.stage.partition("@")[2]
    if not variant:
        seconds = [images / rate for images in shards_of(params)]
        for run in range(max(1, min(simulation.RUNS, simulation.SHARDS // len(seconds)))):
            yield simulation.make_shards(seconds, gpus, failures, simulation.draws(failures, work.stage, run))
        return
    wanted, common = params.train.variant.of(cast(Variant, variant)), params.train.common
    a_step = wanted.sets_per_step * common.set_size
    steps, every = ceil(wanted.images / a_step), max(1, common.checkpoint_every // a_step)
    for run in range(simulation.RUNS):
        draws = simulation.draws(failures, work.stage, run)
        yield simulation.train(steps, work.hours * HOUR / steps, every, gpus, failures, draws)


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:,.1f} minutes"
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} hours"


def _passes(variant: Variant, images: int, set_size: int) -> int:
    """U-Net rows for so many training images: N a set, and N - 1 that M2M-Self reads with the same network."""
    return images + images // set_size * (set_size - 1) if variant == "self" else images


def _hindrance(params: Params, variant: str, gpus: int) -> str:
    """As training would refuse: each GPU takes as many sets of each part of a step."""
    sets, parts = (
        params.train.variant.of(cast(Variant, variant)).sets_per_step,
        params.train.common.gradient_accumulation,
    )
    text = f"but {sets} sets a step cannot be divided over {gpus} GPUs times gradient_accumulation, {parts}"
    return text if sets % (gpus * parts) else ""


def memory(
    variant: Variant, learning: LearningParams, *, set_size: int, sets: int, pixels: int, gpus: int, results: Path
) -> Number | None:
    """GiB that a part of a step takes of a GPU, by what was measured: beside the state, in proportion to its rows.

    Args:
        sets: of a step, over all GPUs.
    """
    rows = _passes(variant, set_size, set_size) * ceil(sets / gpus / learning.gradient_accumulation)
    for path, row in _rows(results):
        if row["name"] == f"checkpointing/{pixels}px/self/memory":
            peak, how = (row["ours"], "computed again") if learning.gradient_checkpointing else (row["other"], "kept")
            each = (peak - sizes.state(sizes.PARAMETERS["self"])) / MEASURED_ROWS
            total = sizes.state(sizes.PARAMETERS[variant], gpus=gpus) + rows * each
            source = f"estimated, {rows} rows at once, activations {how}; {path}, {row['on']}"
            return Number(float(f"{total:.3g}"), source)
    return None


def shards_of(params: Params) -> list[int]:
    """Images in each shard of the MIS dataset: no shard mixes splits, or what came at another time."""
    captions, generate, most = params.captions, params.generate, params.generate.sets_per_shard
    parts = (captions.train, *captions.more, captions.validation, captions.test)
    blocks = [sets for of in parts for sets in [most] * (of // most) + [of % most] * (of % most > 0)]
    return [sets * images for sets in blocks for images in (generate.images_per_set, *generate.more_images)]


def _training(params: Params, variant: Variant, pixels: int, gpus: int, results: Path) -> dict[str, Any]:
    """What `Work` says of a stage that trains."""
    common, sets, network = params.train.common, params.train.variant.of(variant).sets_per_step, None
    needed = partial(memory, variant, set_size=common.set_size, sets=sets, pixels=pixels, gpus=gpus, results=results)
    if isinstance(params.foundation, HubFoundation):
        network = sizes.network(params.foundation, params.train, variant, gpus=gpus)
    otherwise = common.model_copy(update={"gradient_checkpointing": not common.gradient_checkpointing})
    return {
        "memory": needed(common),
        "memory_otherwise": needed(otherwise),
        "network": network,
        "hindrance": _hindrance(params, variant, gpus),
    }


def _fetched(params: Params, variant: Variant) -> int:
    """Shards that training fetches at most: each once an epoch, and again where another lane of a step begins in it."""
    wanted = params.train.variant.of(variant)
    sets = wanted.images // params.train.common.set_size
    there = params.captions.train + sum(params.captions.more)
    lanes = wanted.sets_per_step * ceil(sets / there)
    blocks = min(ceil(sets / params.generate.sets_per_shard) + lanes, sets)
    return blocks * (1 + len(params.generate.more_images))


def _puts(size: float) -> int:
    parts = ceil(size / PART)
    return parts + 2 if parts > 1 else 1


def _rate(name: str, steps: int | None, results: Path, stage: str, card: str | None) -> Number:
    """Images a second, measured (on a card, if one is asked for), else by the operations that were counted."""
    rows = list(_rows(results))
    for path, row in rows:
        if row["name"] == name and row["ours"] > 0 and (card is None or card in row["on"]):
            return Number(row["ours"], f"{path}: {name}, {row['on']}")
    of = {row["name"]: row for _, row in rows}
    pixels, counted = name.split("/")[1], 0.0  # TFLOP an image
    if steps is not None and (step := of.get(f"step/{pixels}/dino/given=1")):
        counted = steps * step["other"] / 1000
    elif of.get(name, {"ours": 0})["ours"] > 0 and (tera := of.get(f"{name}/rate")):
        counted = tera["ours"] / of[name]["ours"]
    if not counted:
        option = f"--rate {stage}=IMAGES_PER_SECOND"
        where = f"in {results}" + (f" on {card}" if card else "")
        raise UserError(f"nobody measured {name} {where}; run make bench on the GPU, or give {option}")
    card, share = card or next(iter(CARDS)), SHARES[stage.partition("@")[0]]
    counting = f"estimated, {counted:.3g} TFLOP an image at {share:.0%} of the {CARDS[card]} TFLOP/s of one {card}"
    return Number(float(f"{share * CARDS[card] / counted:.3g}"), counting)


def _rows(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All that was measured or counted, and where it stands."""
    for path in sorted(results.glob("*.json")):
        try:
            for row in json.loads(path.read_text()):
                numbers = {"ours": float(row["ours"]), "other": float(row.get("other", 0))}
                yield path, {"name": str(row["name"]), "on": str(row["on"]), **numbers}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not what make bench writes; remove it or run make bench again") from error
