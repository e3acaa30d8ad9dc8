"""Training: our step against that of diffusers' text-to-image example; a pass over a set against one a position."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from itertools import islice
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from benchmarks.plain import read_in_full
from benchmarks.rows import Row
from benchmarks.sampling import VARIANTS, text_pipeline
from benchmarks.setting import Setting
from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet, write_shard
from m2m.manifest import Manifest, ShardEntry, shard_key
from m2m.models.preceding import PrecedingImages
from m2m.models.unet import ContextImages, ImageSetUNet, Variant
from m2m.params import TrainCommon, TrainVariant
from m2m.store import LocalStore
from m2m.training.checkpoints import Checkpoints
from m2m.training.examples import STEPS_AHEAD, Examples, made_ahead
from m2m.training.loop import Course, train_steps
from m2m.training.objective import Objective
from m2m.training.ranks import Ranks
from m2m.training.session import start_or_resume
from m2m.training.start import from_stable_diffusion
from m2m.training.state import TrainState

STEPS = 2
"""Timed together."""
STEPS_IN_A_ROW = 12
"""In which nothing else comes between, so that examples are made while others are used."""
LONG_SET = 12
PATCHES = 64
"""Of a picture, as the small DINO has them."""


def rows(setting: Setting, common: TrainCommon) -> Iterator[Row]:
    """Images that pass through the U-Net in a second: of M2M-Self those that are read, too."""
    for variant in VARIANTS:
        yield step(setting, variant, common)
        setting.free()
        yield waiting(setting, variant, common)
        setting.free()
    if not setting.on_gpu:
        for variant in VARIANTS:
            yield teacher_forcing(setting, variant, common)


def step(setting: Setting, variant: Variant, common: TrainCommon) -> Row:
    """Whole steps on both sides: noise, loss, gradients, AdamW, moving average."""
    with our_steps(setting, variant, common) as steps:
        passes = setting.sets_per_step * (2 * setting.set_size - 1 if variant == "self" else setting.set_size)
        other = text_to_image(setting, common, batch=passes)

        def ours() -> None:
            with setting.as_in_a_stage():
                list(islice(steps, STEPS))

        seconds = setting.seconds(ours, lambda: [other() for _ in range(STEPS)])
    amounts = (float(STEPS * passes),) * 2
    return setting.faster(f"training/{setting.pixels}px/{variant}", seconds, amounts=amounts, unit="images/s")


def waiting(setting: Setting, variant: Variant, common: TrainCommon) -> Row:
    """What of a step is spent waiting for its examples, once those made before the first one are used up."""
    waits: list[float] = []

    def timed(make: Callable[[int], Examples], steps: range) -> Iterator[Examples]:
        with closing(made_ahead(make, steps)) as batches:
            for _ in steps:
                began = perf_counter()
                batch = next(batches)
                waits.append(perf_counter() - began)
                yield batch

    with (
        patch("m2m.training.loop.made_ahead", timed),
        our_steps(setting, variant, common) as steps,
        setting.as_in_a_stage(),
    ):
        list(islice(steps, STEPS_AHEAD + 1))
        waits.clear()
        seconds = setting.taken(lambda: list(islice(steps, STEPS_IN_A_ROW)))
    name = f"training/{setting.pixels}px/{variant}/wait"
    return Row.of(name, sum(waits) / STEPS_IN_A_ROW, seconds / STEPS_IN_A_ROW, unit="s", kind=setting.kind)


@contextmanager
def our_steps(setting: Setting, variant: Variant, common: TrainCommon) -> Iterator[Iterator[int]]:
    """Steps without end, as a stage takes them."""
    workers = setting.workers()
    common = common.model_copy(update={"set_size": setting.set_size, "gradient_accumulation": workers.count})
    with tempfile.TemporaryDirectory() as folder:
        course, state = start(setting, variant, common, Path(folder))
        ranks = Ranks(device=torch.device(setting.device))
        with closing(train_steps(state, course, ranks, workers)) as steps:
            yield steps


def start(setting: Setting, variant: Variant, common: TrainCommon, folder: Path) -> tuple[Course, TrainState]:
    """A course over random sets without end, and the state before its first step."""
    pipeline = from_stable_diffusion(setting.foundation, variant, common).to(setting.device)
    learning = TrainVariant(
        images=10**9, sets_per_step=setting.sets_per_step, learning_rate=1e-5, context_learning_rate=1e-5
    )
    course = Course(
        sets=random_sets(setting, pipeline.latent_shape, folder),
        images_per_set=setting.set_size,
        objective=Objective(pipeline, common, device=torch.device(setting.device)),
        variant=learning,
    )
    return course, start_or_resume(pipeline.unet, common, learning, Checkpoints(folder / "checkpoints" / "of-this-run"))


def random_sets(setting: Setting, latent_shape: tuple[int, int, int], folder: Path) -> ImageSets:
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
        for number in range(2 * setting.sets_per_step)
    ]
    stats = write_shard(sets, folder / "draft.tar")
    entry = ShardEntry(key=shard_key(stats.sha256), split="train", **vars(stats))
    store.put(entry.key, folder / "draft.tar", stats.sha256)
    manifest = Manifest(
        schema_version=1, kind="mis", made_by={}, images_per_set=setting.set_size, redrawn=0, shards=(entry,)
    )
    return ImageSets(store, manifest, "train")


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
        with torch.autocast(device.type, torch.bfloat16, enabled=common.precision == "bfloat16"):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                text = text_encoder(tokens)[0]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(noise_schedule.config.num_train_timesteps, (batch,), device=device)
            prediction = unet(noise_schedule.add_noise(latents, noise, timesteps), timesteps, text).sample
        F.mse_loss(prediction.float(), noise.float()).backward()
        clip_grad_norm_(unet.parameters(), common.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(unet.parameters())

    return take


def teacher_forcing(setting: Setting, variant: Variant, common: TrainCommon) -> Row:
    """Gradients of a long set's loss: one pass, against one a position that reads its context anew."""
    pipeline = from_stable_diffusion(setting.foundation, variant, common.model_copy(update={"max_context": LONG_SET}))
    unet = pipeline.unet.to(setting.device)
    plain = read_in_full(deepcopy(unet))
    noisy = torch.randn(1, LONG_SET, *pipeline.latent_shape, device=setting.device)
    tokens = (PATCHES, pipeline.image_encoder.config.hidden_size) if pipeline.image_encoder else pipeline.latent_shape
    images = torch.randn(1, LONG_SET - 1, *tokens, device=setting.device)
    times = torch.randint(1000, (1, LONG_SET), device=setting.device)
    context = ContextImages(images, torch.zeros(1, LONG_SET - 1, dtype=torch.long, device=setting.device))

    def at_once() -> None:
        unet(noisy, times, context, return_dict=False)[0].square().mean().backward()
        unet.zero_grad()

    def one_by_one() -> None:
        for position in range(LONG_SET):
            _alone(plain, noisy[:, position], times[:, position], images[:, :position]).square().mean().backward()
        plain.zero_grad()

    ours, other = setting.seconds(at_once, one_by_one)
    return Row.of(f"teacher-forcing/{setting.pixels}px/{variant}", ours, other, unit="s", kind=setting.kind)


def _alone(unet: ImageSetUNet, noisy: Tensor, time: Tensor, images: Tensor) -> Tensor:
    preceding = PrecedingImages(unet, sets=1, timestep=0, device=noisy.device, use_cache=True)
    for position in range(images.shape[1]):
        preceding.append(images[:, position])
    prediction: Tensor = unet(noisy, time, preceding.window(guided=False), return_dict=False)[0]
    return prediction
