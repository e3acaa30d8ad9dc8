"""A step of training: ours, and that of diffusers' text-to-image example."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.nn.utils import clip_grad_norm_

from benchmarks.counts import encoder_pass, pass_over_sets
from benchmarks.sampling import text_pipeline
from benchmarks.setting import Setting
from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet, write_shard
from m2m.evaluation.efficiency import META, context_shape
from m2m.manifest import Manifest, ShardEntry, shard_key
from m2m.models.unet import ImageSetUNet, Variant
from m2m.params import TrainCommon, TrainVariant
from m2m.pipeline import M2MPipeline
from m2m.store import LocalStore
from m2m.training.checkpoints import Checkpoints
from m2m.training.loop import Batches, train_steps
from m2m.training.loss import SetLoss
from m2m.training.ranks import Ranks
from m2m.training.run import start_or_resume
from m2m.training.start import from_stable_diffusion
from m2m.training.state import TrainState


@contextmanager
def our_steps(setting: Setting, variant: Variant, common: TrainCommon) -> Iterator[tuple[Iterator[int], M2MPipeline]]:
    """Steps without end, as a stage takes them, and the pipeline whose network learns."""
    workers = setting.workers()
    common = common.model_copy(update={"set_size": setting.set_size, "gradient_accumulation": workers.count})
    with tempfile.TemporaryDirectory() as folder:
        pipeline, batches, state = start(setting, variant, common, Path(folder))
        ranks = Ranks(device=torch.device(setting.device))
        with closing(train_steps(state, batches, ranks, workers)) as steps:
            yield steps, pipeline


def start(
    setting: Setting, variant: Variant, common: TrainCommon, folder: Path
) -> tuple[M2MPipeline, Batches, TrainState]:
    """A pipeline, batches of random sets without end, and the state before its first step."""
    pipeline = from_stable_diffusion(setting.foundation, variant, common).to(setting.device)
    learning = TrainVariant(
        images=10**9, sets_per_step=setting.sets_per_step[variant], learning_rate=1e-5, context_learning_rate=1e-5
    )
    batches = Batches(
        sets=random_sets(setting, 2 * setting.sets_per_step[variant], pipeline.latent_shape, folder),
        images_per_set=setting.set_size,
        loss=SetLoss(pipeline, common, device=torch.device(setting.device)),
        variant=learning,
    )
    checkpoints = Checkpoints(folder / "checkpoints" / "of-this-run")
    return pipeline, batches, start_or_resume(pipeline.unet, batches, checkpoints)


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
    stats = write_shard(sets, folder / "draft.tar")
    entry = ShardEntry(key=shard_key(stats.sha256), split="train", **vars(stats))
    store.put(entry.key, folder / "draft.tar", stats.sha256)
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
        F.mse_loss(prediction.float(), noise.float()).backward()
        clip_grad_norm_(unet.parameters(), common.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(unet.parameters())

    return take
