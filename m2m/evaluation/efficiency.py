"""What an image costs (the paper's figure on sampling efficiency): after given images, and after a caption.

The time is that from noise to latents, in all denoising steps. What is read before, a caption or the given images, is
read once however many images are drawn after it, and stands apart. So does decoding: all sides have the same network.
All sides take turns, so that whatever else the machine does troubles all alike.

Operations are counted on tensors without contents: exact, and the same on any machine. A multiplication and its
addition are two, of matrix products, convolutions and attention; on tensors without contents torch takes attention
apart into its two matrix products, so the counter sees it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from m2m import seeds
from m2m.diffusion.sampler import make_scheduler
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.models.context import PrecedingImages
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
    sets = sets_of_noise(params, given=given, size=pipeline.image_size)
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


def sets_of_noise(params: SamplingParams, *, given: int, size: int) -> list[list[Image.Image]]:
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


META = torch.device("meta")


def operations(work: Callable[[], object]) -> int:
    """What `work` computes, without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def text_pass(unet: UNet2DConditionModel, *, side: int, words: int) -> int:
    """One pass of Stable Diffusion's U-Net, on META, for one image of latents (4, side, side) and a text."""
    text = torch.empty(1, words, unet.config["cross_attention_dim"], device=META)
    return operations(lambda: unet(_latents(unet, side), torch.empty(1, device=META), text))


@dataclass
class Costs:
    """Operations for one image, by how many came before."""

    reading: list[int] = field(default_factory=list)
    """The n-th of a set's images joins the context: its own pass (M2M-Self), or its keys and values."""
    guided: dict[int, int] = field(default_factory=dict)
    """A denoising step with and without context."""
    plain: dict[int, int] = field(default_factory=dict)
    """A denoising step with context only."""


def image_set_costs(
    unet: ImageSetUNet,
    context: Tensor,
    *,
    side: int,
    guided: Collection[int],
    plain: Collection[int] = (),
    reading: int = 0,
) -> Costs:
    """Counted on the network as it draws, image after image.

    Args:
        unet: on META.
        context: what it reads of an image, on META: latents (1, 4, side, side), or patch tokens (1, L, context_dim).
        side: of the latents that it draws.
        guided: numbers of images before, for which a guided step is counted.
        plain: the same for a step without guidance.
        reading: for how many images it is counted what it takes to read them.
    """
    found = Costs()
    preceding = PrecedingImages(unet, sets=1, timestep=0, device=META, use_cache=True)
    time = torch.empty((), device=META)
    for given in range(max((*guided, *plain)) + 1):
        for wanted, costs, rows in ((plain, found.plain, 1), (guided, found.guided, 2)):
            if given in wanted:
                window = preceding.window(guided=rows > 1)
                costs[given] = operations(partial(unet, _latents(unet, side, rows), time, window))
        if given < reading:
            found.reading.append(operations(partial(preceding.append, context)))
        else:  # only to come to the next: counting takes longer
            preceding.append(context)
    return found


def _latents(unet: UNet2DConditionModel, side: int, rows: int = 1) -> Tensor:
    return torch.empty(rows, unet.config["in_channels"], side, side, device=META)


Result = TypeVar("Result")
PROCESSORS = Path("/proc/cpuinfo")


class Clock:
    """Tells the time when a device has done what it was given."""

    def __init__(self, device: str) -> None:
        self._device = device

    def now(self) -> float:
        """Seconds since some moment."""
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def taken(self, work: Callable[[], object]) -> float:
        """Seconds until the device has done the work."""
        started = self.now()
        work()
        return self.now() - started


def in_turn(works: Sequence[Callable[[], Result]], *, repeats: int) -> list[list[Result]]:
    """What each of the works gives, `repeats` times; they take turns, and a first turn, to warm up, does not count."""
    found: list[list[Result]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, measured in zip(works, found, strict=True):
            result = work()
            if turn:
                measured.append(result)
    return found


def hardware(device: str) -> str:
    """What computes, and with which torch."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = PROCESSORS.read_text().splitlines() if PROCESSORS.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
