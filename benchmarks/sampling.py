"""Drawing: M2M after some given images against Stable Diffusion after a caption, and the cache against none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.plain import read_in_full
from benchmarks.rows import Row
from benchmarks.setting import Setting
from m2m.diffusion.solvers import make_scheduler
from m2m.models.unet import Variant
from m2m.params import TrainCommon
from m2m.pipeline import M2MPipeline
from m2m.training.start import from_stable_diffusion

VARIANTS: tuple[Variant, ...] = ("self", "dino")
GIVEN = (1, 2, 4)
GUIDANCE_SCALE = 3.0


def rows(setting: Setting, common: TrainCommon) -> Iterator[Row]:
    """Seconds an image, from its given images or its caption to the picture."""
    base = text_pipeline(setting)
    captions = ["a picture"] * setting.sets
    for variant in VARIANTS:
        next_images = partial(draw, setting, image_set_pipeline(setting, variant, common))
        for given in GIVEN:
            seconds = setting.seconds(partial(next_images, given), partial(base, captions, **arguments(setting)))
            yield _row(setting, f"sampling/{setting.pixels}px/{variant}/given={given}", seconds)
        if variant == "self":
            plain = image_set_pipeline(setting, variant, common)
            read_in_full(plain.unet)
            for name, scale in (("plain", 1.0), ("guided", GUIDANCE_SCALE)):
                anew = partial(draw, setting, plain, 4, scale, use_cache=False)
                seconds = setting.seconds(partial(next_images, 4, scale), anew)
                yield _row(setting, f"cache/{setting.pixels}px/{variant}/{name}", seconds)
        setting.free()


def text_pipeline(setting: Setting, dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """Diffusers' own, with the same solver."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        setting.stable_diffusion, dtype=dtype or setting.dtype, local_files_only=True, safety_checker=None
    ).to(setting.device)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_set_pipeline(setting: Setting, variant: Variant, common: TrainCommon) -> M2MPipeline:
    pipeline = from_stable_diffusion(setting.foundation, variant, common).to(setting.device, setting.dtype)
    pipeline.unet.eval()
    if common.compile_blocks:
        pipeline.unet.compile_repeated_blocks(dynamic=True)  # one graph, however many images a set has
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments(setting: Setting, scale: float = GUIDANCE_SCALE) -> dict[str, Any]:
    return {"num_inference_steps": setting.steps, "guidance_scale": scale}


def draw(
    setting: Setting, pipeline: M2MPipeline, given: int, scale: float = GUIDANCE_SCALE, *, use_cache: bool = True
) -> None:
    """The next image of each set."""
    draws = np.random.default_rng(0)
    shape = (setting.sets, given, setting.pixels, setting.pixels, 3)
    sets = [[Image.fromarray(image) for image in one] for one in draws.integers(0, 256, shape, np.uint8)]
    pipeline(sets, 1, **arguments(setting, scale), generator=0, use_cache=use_cache)


def _row(setting: Setting, name: str, seconds: list[float]) -> Row:
    ours, other = seconds
    return Row.of(name, ours / setting.sets, other / setting.sets, unit="s", kind=setting.kind)
