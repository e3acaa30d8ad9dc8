"""Drawing: M2M after some given images against Stable Diffusion after a caption, and the cache against none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from benchmarks.architectures import read_in_full
from benchmarks.rows import Row
from benchmarks.setting import Setting
from m2m.diffusion.sampler import make_scheduler
from m2m.params import TrainCommon, Variant
from m2m.pipeline import M2MPipeline
from m2m.training.start import from_stable_diffusion

VARIANTS: tuple[Variant, ...] = ("self", "dino")
GIVEN = (1, 2, 4)
GUIDANCE_SCALE = 3.0


def rows(setting: Setting, common: TrainCommon) -> Iterator[Row]:
    """Seconds an image, from its given images or its caption to the picture."""
    pipelines = {variant: image_set_pipeline(setting, variant, common) for variant in VARIANTS}
    cases = {
        f"{variant}/given={given}": partial(draw, setting, pipeline, given)
        for variant, pipeline in pipelines.items()
        for given in GIVEN
    }
    captions = ["a picture"] * setting.sets
    base, *ours = setting.seconds(partial(text_pipeline(setting), captions, **arguments(setting)), *cases.values())
    for name, one in zip(cases, ours, strict=True):
        yield _row(setting, f"sampling/{setting.pixels}px/{name}", [one, base])
    if setting.on_gpu:
        for variant, pipeline in pipelines.items():
            next_images = partial(draw, setting, pipeline, 4)
            seconds = setting.seconds(next_images, partial(next_images, use_cuda_graphs=False))
            yield _row(setting, f"graphs/{setting.pixels}px/{variant}", seconds)
    plain = image_set_pipeline(setting, "self", common)
    read_in_full(plain.unet)
    for name, scale in (("plain", 1.0), ("guided", GUIDANCE_SCALE)):
        seconds = setting.seconds(
            partial(draw, setting, pipelines["self"], 4, scale),
            partial(draw, setting, plain, 4, scale, use_cache=False),
        )
        yield _row(setting, f"cache/{setting.pixels}px/self/{name}", seconds)


def text_pipeline(setting: Setting, dtype: torch.dtype | None = None) -> Any:
    """Diffusers' own, with the same solver."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
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
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return pipeline


def arguments(setting: Setting, scale: float = GUIDANCE_SCALE) -> dict[str, Any]:
    return {"num_inference_steps": setting.steps, "guidance_scale": scale}


def draw(setting: Setting, pipeline: M2MPipeline, given: int, scale: float = GUIDANCE_SCALE, **options: Any) -> None:
    """The next image of each set; `options` as the pipeline takes them."""
    draws = np.random.default_rng(0)
    shape = (setting.sets, given, setting.pixels, setting.pixels, 3)
    sets = [[Image.fromarray(image) for image in one] for one in draws.integers(0, 256, shape, np.uint8)]
    pipeline(sets, 1, **arguments(setting, scale), generator=0, **options)


def _row(setting: Setting, name: str, seconds: list[float]) -> Row:
    ours, other = seconds
    return Row.of(name, ours / setting.sets, other / setting.sets, unit="s", kind=setting.kind)
