"""What an image costs (the paper's figure on sampling efficiency): after given images, and after a caption.

The time is that from noise to latents, in all denoising steps. What is read before, a caption or the given images, is
read once however many images are drawn after it, and stands apart. So does decoding: all sides have the same network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from m2m import seeds
from m2m.diffusion.sampler import make_scheduler
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.evaluation.operations import META, image_set_costs, text_pass
from m2m.evaluation.timing import Clock
from m2m.models.unet import ImageSetUNet
from m2m.params import SamplingParams
from m2m.pipeline import M2MPipeline

CAPTION = "a picture"
"""Any other takes as long: texts are padded to one length."""


def time_after_caption(base: StableDiffusion, params: SamplingParams, clock: Clock) -> dict[str, float]:
    """Seconds of an image of a batch: ``seconds`` to draw it, ``reading_seconds`` before, ``decoding_seconds`` then."""
    noise = torch.stack([base.noise(params.seed + row) for row in range(params.batch_size)])  # (B, 4, h, w)
    started = clock.now()
    embeddings = base.embed([CAPTION] * params.batch_size)
    read = clock.now()
    latents = base.denoise(noise, embeddings)
    drawn = clock.now()
    base.decode(latents)
    decoded = clock.now()
    return {
        "seconds": (drawn - read) / params.batch_size,
        "reading_seconds": (read - started) / params.batch_size,
        "decoding_seconds": (decoded - drawn) / params.batch_size,
    }


def time_after_images(pipeline: M2MPipeline, given: int, params: SamplingParams, clock: Clock) -> dict[str, float]:
    """Seconds of an image of a batch: ``seconds`` to draw it, ``reading_seconds`` to read all given ones before.

    The pipeline tells when a step has ended, not when the first has begun: that one is taken to last as long as the
    others do on average, and what came before it is reading.
    """
    sets = random_sets(params, given=given, size=pipeline.image_size)
    pipeline.scheduler = make_scheduler(params.solver, pipeline.scheduler.config)
    ended: list[float] = []

    def after_step(call: M2MPipeline, step: int, _: object, state: dict[str, Any]) -> dict[str, Any]:
        if step in (0, call.num_timesteps - 1):
            ended.append(clock.now())
        return state

    started = clock.now()
    pipeline(
        sets,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        generator=params.seed,
        output_type="latent",
        callback_on_step_end=after_step,
    )
    (first, last), steps = ended, pipeline.num_timesteps
    drawing = (last - first) * steps / (steps - 1)
    reading = max(last - started - drawing, 0.0)
    return {"seconds": drawing / params.batch_size, "reading_seconds": reading / params.batch_size}


def random_sets(params: SamplingParams, *, given: int, size: int) -> list[list[Image.Image]]:
    """Noise of `size` × `size` pixels for the given images of each set: speed does not depend on what they show."""
    draws = np.random.default_rng(seeds.derive(params.seed, "sampling", given))
    pictures = draws.integers(0, 256, (params.batch_size, given, size, size, 3), np.uint8)
    return [[Image.fromarray(picture) for picture in of_set] for of_set in pictures]


def step_after_caption(base: StableDiffusion, folder: Path) -> int:
    """Operations of a guided denoising step of one image by the U-Net of a Stable Diffusion folder, which is `base`."""
    config = UNet2DConditionModel.load_config(folder, subfolder="unet", local_files_only=True)
    with META:
        unet = UNet2DConditionModel.from_config(config)
    return 2 * text_pass(unet, side=base.latent_shape[-1], words=base.embed([CAPTION]).shape[1])


def steps_after_images(pipeline: M2MPipeline, given: Collection[int]) -> Mapping[int, int]:
    """The same of a pipeline's own U-Net, by number of given images."""
    with META:
        unet: ImageSetUNet = ImageSetUNet.from_config(pipeline.unet.config)
    context = torch.empty(1, *context_shape(pipeline), device=META)
    return image_set_costs(unet, context, side=pipeline.latent_shape[-1], guided=given).guided


def context_shape(pipeline: M2MPipeline) -> tuple[int, ...]:
    """What the U-Net reads of one image: latents (4, h, w), or DINOv2's patch tokens (L, context_dim)."""
    if pipeline.unet.variant == "self":
        return pipeline.latent_shape
    crop, patch = pipeline.feature_extractor.crop_size, pipeline.image_encoder.config.patch_size
    return (crop["height"] // patch) * (crop["width"] // patch), pipeline.unet.config.context_dim
