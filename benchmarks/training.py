"""Training: our step against that of diffusers' text-to-image example, and against what a GPU could do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from time import perf_counter
from unittest.mock import patch

import torch

from benchmarks.rows import Row
from benchmarks.sampling import VARIANTS
from benchmarks.setting import Setting
from benchmarks.steps import operations_of_step, our_steps, passes_of, text_to_image
from m2m.models.unet import Variant
from m2m.params import TrainCommon
from m2m.training.loop import STEPS_AHEAD, made_ahead
from m2m.training.loss import Examples

STEPS = 2
"""Timed together."""
STEPS_IN_A_ROW = 12
"""In which nothing else comes between, so that examples are made while others are used."""
MATRIX = 8192
"""Side of the matrices whose product tells how fast a GPU multiplies."""
GIB, TERA = 1 << 30, 1e12


def rows(setting: Setting, common: TrainCommon) -> Iterator[Row]:
    """Images that pass through the U-Net in a second: of M2M-Self those that are read, too."""
    for variant in VARIANTS:
        yield from step(setting, variant, common)
        setting.free()
    if setting.on_gpu and not common.compile_blocks:
        yield from checkpointing(setting, "self", common)
        setting.free()


def step(setting: Setting, variant: Variant, common: TrainCommon) -> Iterator[Row]:
    """Whole steps on both sides, noise, loss, gradients, AdamW, moving average; and what of ours is spent waiting.

    On a GPU, too, what of its rate of multiplication a step reaches: operations that are needed, none done twice.
    """
    waits: list[float] = []
    with (
        patch("m2m.training.loop.made_ahead", partial(_timed, waits)),
        our_steps(setting, variant, common) as (steps, pipeline),
    ):
        passes = passes_of(setting, variant)
        other = text_to_image(setting, common, batch=passes)
        seconds = setting.seconds(_in_a_stage(setting, steps), lambda: [other() for _ in range(STEPS)])
        needed = STEPS * operations_of_step(setting, pipeline) if setting.on_gpu else 0
        with setting.as_in_a_stage():
            list(islice(steps, STEPS_AHEAD + 1))  # for which all was made while the other side had its turn
            waits.clear()
            in_a_row = setting.taken(lambda: list(islice(steps, STEPS_IN_A_ROW)))
    amounts = (float(STEPS * passes),) * 2
    name = f"training/{setting.pixels}px/{variant}"
    yield setting.faster(name, seconds, amounts=amounts, unit="images/s")
    waited, taken = sum(waits) / STEPS_IN_A_ROW, in_a_row / STEPS_IN_A_ROW
    yield Row.of(f"{name}/wait", waited, taken, unit="s", kind=setting.kind)
    if needed:
        rates = needed / seconds[0] / TERA, matrix_rate(setting) / TERA
        yield Row.of(f"{name}/rate", *rates, unit="TFLOP/s", kind=setting.kind)


def _timed(waits: list[float], make: Callable[[int], Examples], steps: range) -> Iterator[Examples]:
    """Examples as a step gets them, and how long it waited for each."""
    with closing(made_ahead(make, steps)) as batches:
        for _ in steps:
            began = perf_counter()
            batch = next(batches)
            waits.append(perf_counter() - began)
            yield batch


def matrix_rate(setting: Setting) -> float:
    """Operations a second of a product of large matrices in bfloat16."""
    left, right = (torch.randn(MATRIX, MATRIX, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    (seconds,) = setting.seconds(lambda: [left @ right for _ in range(10)])
    return 10 * 2 * MATRIX**3 / seconds


def checkpointing(setting: Setting, variant: Variant, common: TrainCommon) -> Iterator[Row]:
    """Steps, and the most memory that they take, with activations computed again against with activations kept."""
    (rate, memory), (rate_kept, memory_kept) = (
        _rate_and_memory(setting, variant, common.model_copy(update={"gradient_checkpointing": again}))
        for again in (True, False)
    )
    name = f"checkpointing/{setting.pixels}px/{variant}"
    yield Row.of(name, rate, rate_kept, unit="images/s", kind=setting.kind)
    yield Row.of(f"{name}/memory", memory, memory_kept, unit="GiB", kind=setting.kind)


def _rate_and_memory(setting: Setting, variant: Variant, common: TrainCommon) -> tuple[float, float]:
    """Images a second, and GiB; no network of a measurement before is still there."""
    setting.free()
    with our_steps(setting, variant, common) as (steps, _):
        torch.cuda.reset_peak_memory_stats()
        (seconds,) = setting.seconds(_in_a_stage(setting, steps))
        return STEPS * passes_of(setting, variant) / seconds, torch.cuda.max_memory_allocated() / GIB


def _in_a_stage(setting: Setting, steps: Iterator[int]) -> Callable[[], None]:
    def ours() -> None:
        with setting.as_in_a_stage():
            list(islice(steps, STEPS))

    return ours
