"""Training: our step against that of diffusers' text-to-image example, and against what a GPU could do.

And teacher forcing: all positions of a set in one pass, against a pass for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from itertools import islice
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from benchmarks.architectures import read_in_full
from benchmarks.counts import encoder_pass, pass_over_sets
from benchmarks.rows import Row
from benchmarks.sampling import VARIANTS, text_pipeline
from benchmarks.setting import Setting
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, write_shard
from m2m.evaluation.efficiency import META, context_shape
from m2m.manifest import Manifest
from m2m.models.context import PrecedingImages
from m2m.models.unet import ContextImages, ImageSetUNet
from m2m.params import TrainCommon, Variant, VariantLearning
from m2m.pipeline import M2MPipeline
from m2m.store import LocalStore
from m2m.training.checkpoints import Checkpoints
from m2m.training.loop import STEPS_AHEAD, Batches, train_steps
from m2m.training.loss import SetLoss
from m2m.training.ranks import Ranks
from m2m.training.run import start_or_resume
from m2m.training.start import from_stable_diffusion

STEPS = 2
"""Timed together."""
STEPS_IN_A_ROW = 12
"""In which nothing else comes between, so that examples are made while others are used."""
MATRIX = 8192
"""Side of the matrices whose product tells how fast a GPU multiplies."""
GIB, TERA = 1 << 30, 1e12
LONG_SET = 12


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
    with our_steps(setting, variant, common) as (steps, pipeline, loss):
        passes = passes_of(setting, variant)
        other = text_to_image(setting, common, batch=passes)
        seconds = setting.seconds(_in_a_stage(setting, steps), lambda: [other() for _ in range(STEPS)])
        needed = STEPS * operations_of_step(setting, pipeline) if setting.on_gpu else 0
        waits: list[float] = []
        with setting.as_in_a_stage():
            list(islice(steps, STEPS_AHEAD + 1))  # for which all was made while the other side had its turn
            in_a_row = setting.taken(lambda: waits.extend(loss.wait(steps) for _ in range(STEPS_IN_A_ROW)))
    amounts = (float(STEPS * passes),) * 2
    name = f"training/{setting.pixels}px/{variant}"
    yield setting.faster(name, seconds, amounts=amounts, unit="images/s")
    waited, taken = sum(waits) / STEPS_IN_A_ROW, in_a_row / STEPS_IN_A_ROW
    yield Row.of(f"{name}/wait", waited, taken, unit="s", kind=setting.kind)
    if needed:
        rates = needed / seconds[0] / TERA, matrix_rate(setting) / TERA
        yield Row.of(f"{name}/rate", *rates, unit="TFLOP/s", kind=setting.kind)


class Clocked(SetLoss):
    """Knows when a step came to it."""

    asked = inf

    def __call__(self, *arguments: Any) -> Tensor:
        self.asked = min(self.asked, perf_counter())
        return super().__call__(*arguments)

    def wait(self, steps: Iterator[int]) -> float:
        """Takes a step; how long it waited for its examples, in seconds."""
        self.asked, began = inf, perf_counter()
        next(steps)
        return self.asked - began


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
    with our_steps(setting, variant, common) as (steps, _, _):
        torch.cuda.reset_peak_memory_stats()
        (seconds,) = setting.seconds(_in_a_stage(setting, steps))
        return STEPS * passes_of(setting, variant) / seconds, torch.cuda.max_memory_allocated() / GIB


def _in_a_stage(setting: Setting, steps: Iterator[int]) -> Callable[[], None]:
    def ours() -> None:
        with setting.as_in_a_stage():
            list(islice(steps, STEPS))

    return ours


@contextmanager
def our_steps(
    setting: Setting, variant: Variant, common: TrainCommon
) -> Iterator[tuple[Iterator[int], M2MPipeline, Clocked]]:
    """Steps without end over random sets, as a stage takes them; the pipeline whose network learns, and what."""
    workers = setting.workers()
    common = common.model_copy(update={"set_size": setting.set_size, "gradient_accumulation": workers.count})
    learning = VariantLearning(
        images=10**9, sets_per_step=setting.sets_per_step[variant], learning_rate=1e-5, context_learning_rate=1e-5
    )
    pipeline = from_stable_diffusion(setting.foundation, variant, common).to(setting.device)
    ranks = Ranks(device=torch.device(setting.device))
    loss = Clocked(pipeline, common, device=ranks.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batches = Batches(
            sets=random_sets(setting, 2 * setting.sets_per_step[variant], pipeline.latent_shape, folder),
            images_per_set=setting.set_size,
            loss=loss,
            variant=learning,
        )
        state = start_or_resume(pipeline.unet, batches, Checkpoints(LocalStore(folder), "bench", "this", folder))
        steps = cast(Generator[int], train_steps(state, batches, ranks, workers))
        with closing(steps):
            yield steps, pipeline, loss


def random_sets(setting: Setting, count: int, latent_shape: tuple[int, int, int], folder: Path) -> ImageSets:
    """A dataset of one shard."""
    draws, store = np.random.default_rng(0), LocalStore(folder / "store")
    pictures = (setting.set_size, setting.pixels, setting.pixels, 3)
    sets = [
        ImageSet(
            id=f"set-{number:03}",
            caption="",
            images=draws.integers(0, 256, pictures, np.uint8),
            latents=draws.standard_normal((setting.set_size, *latent_shape), np.float32),
        )
        for number in range(count)
    ]
    entry = write_shard(sets, folder / "draft.tar", "train")
    store.put(entry.key, folder / "draft.tar", entry.sha256)
    manifest = Manifest(
        schema_version=1, kind="mis", made_by={}, images_per_set=setting.set_size, redrawn=0, shards=(entry,)
    )
    return ImageSets(store, manifest, "train")


def passes_of(setting: Setting, variant: Variant) -> int:
    """Images that pass through the U-Net in a step."""
    sets, images = setting.sets_per_step[variant], setting.set_size
    return sets * (2 * images - 1 if variant == "self" else images)


def operations_of_step(setting: Setting, pipeline: M2MPipeline) -> int:
    """Those that are needed, none twice: the forward pass, twice as many back through it, and a frozen DINOv2's."""
    with META:
        network: ImageSetUNet = ImageSetUNet.from_config(pipeline.unet.config)
    sets, images = setting.sets_per_step[pipeline.unet.variant], setting.set_size
    shapes = {"latents": pipeline.latent_shape, "read": context_shape(pipeline)}
    needed = 3 * pass_over_sets(network, sets=sets, images=images, **shapes)
    if pipeline.image_encoder is not None:
        crop = pipeline.feature_extractor.crop_size
        one = encoder_pass(pipeline.image_encoder.config, height=crop["height"], width=crop["width"])
        needed += sets * (images - 1) * one
    return needed


def precision(setting: Setting, common: TrainCommon) -> torch.autocast:
    """What training computes in."""
    return torch.autocast(setting.device, torch.bfloat16, enabled=common.precision == "bfloat16")


def text_to_image(setting: Setting, common: TrainCommon, *, batch: int) -> Callable[[], None]:
    """A step as diffusers' text-to-image example takes it: VAE and text encoder run in each, pictures are at hand."""
    pipeline = text_pipeline(setting, torch.float32)
    unet, vae, text_encoder = pipeline.unet.train(), pipeline.vae, pipeline.text_encoder
    if common.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=common.weight_decay, fused=True)
    average = EMAModel(unet.parameters(), foreach=True)
    device = torch.device(setting.device)
    pixels = torch.rand(batch, 3, setting.pixels, setting.pixels, device=device) * 2 - 1
    tokens = pipeline.tokenizer(
        ["a picture"] * batch, padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids.to(device)

    def take() -> None:
        with precision(setting, common):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                text = text_encoder(tokens)[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(noise_schedule.config.num_train_timesteps, (batch,), device=device)
            prediction = unet(noise_schedule.add_noise(latents, noise, timesteps), timesteps, text).sample
        F.mse_loss(prediction.float(), noise.float()).backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(unet.parameters(), common.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(unet.parameters())

    return take


def teacher_forcing(setting: Setting, common: TrainCommon) -> Iterator[Row]:
    """Seconds, of both variants."""
    for variant in VARIANTS:
        yield long_set(setting, variant, common)
        setting.free()


def long_set(setting: Setting, variant: Variant, common: TrainCommon) -> Row:
    """Gradients of a long set's loss: one pass, against one a position that reads its context anew.

    The latter takes a GPU half a minute, most of it to be told what to do: it has one turn there.
    """
    pipeline = from_stable_diffusion(setting.foundation, variant, common.model_copy(update={"max_context": LONG_SET}))
    unet = pipeline.unet.to(setting.device)
    plain = read_in_full(deepcopy(unet))
    noisy = torch.randn(1, LONG_SET, *pipeline.latent_shape, device=setting.device)
    images = torch.randn(1, LONG_SET - 1, *context_shape(pipeline), device=setting.device)
    times = torch.randint(1000, (1, LONG_SET), device=setting.device)
    context = ContextImages(images, torch.zeros(1, LONG_SET - 1, dtype=torch.long, device=setting.device))

    def at_once() -> None:
        with precision(setting, common):
            loss = unet(noisy, times, context, return_dict=False)[0].square().mean()
        loss.backward()
        unet.zero_grad()

    def one_by_one() -> None:
        for position in range(LONG_SET):
            with precision(setting, common):
                prediction = _alone(plain, noisy[:, position], times[:, position], images[:, :position])
            prediction.square().mean().backward()  # type: ignore[no-untyped-call]
        plain.zero_grad()

    if setting.on_gpu:
        (ours,), other = setting.seconds(at_once), setting.taken(one_by_one)
    else:
        ours, other = setting.seconds(at_once, one_by_one)
    return Row.of(f"teacher-forcing/{setting.pixels}px/{variant}", ours, other, unit="s", kind=setting.kind)


def _alone(unet: ImageSetUNet, noisy: Tensor, time: Tensor, images: Tensor) -> Tensor:
    preceding = PrecedingImages(unet, sets=1, timestep=0, device=noisy.device, use_cache=True)
    for position in range(images.shape[1]):
        preceding.append(images[:, position])
    prediction: Tensor = unet(noisy, time, preceding.window(guided=False), return_dict=False)[0]
    return prediction
