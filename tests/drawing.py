"""What tests of the pipeline draw with and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from m2m.pipeline import M2MPipeline

MakePipeline = Callable[..., M2MPipeline]


def photos(count: int) -> list[Image.Image]:
    """Pictures of smooth colours, each its own."""
    coarse = np.random.default_rng(count).integers(0, 255, (count, 3, 3, 3), dtype=np.uint8)
    return [Image.fromarray(picture).resize((64, 64)) for picture in coarse]


def latents(pipeline: M2MPipeline, images: Any, num_images: int, **options: Any) -> Tensor:
    settings = {"num_inference_steps": 2, "generator": 7, "output_type": "latent", **options}
    return pipeline(images, num_images, **settings).images
