"""What tests of the pipeline draw with and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from m2m.models.unet import ImageSetUNet
from m2m.pipeline import M2MPipeline

MakePipeline = Callable[..., M2MPipeline]


def leave_the_start(unet: ImageSetUNet) -> None:
    """Moves the new weights from where training starts, as if it had learnt something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".attn2." in name or name.startswith("context_"):
                parameter += 0.2 * torch.randn_like(parameter)


def pipeline_around(unet: ImageSetUNet, stable_diffusion: Path, dino: Path) -> M2MPipeline:
    """A quiet pipeline with the other networks from these folders."""
    reads = unet.variant == "dino"
    pipeline = M2MPipeline(
        vae=AutoencoderKL.from_pretrained(stable_diffusion, subfolder="vae"),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(stable_diffusion, subfolder="scheduler", clip_sample=False),
        image_encoder=Dinov2Model.from_pretrained(dino) if reads else None,
        feature_extractor=BitImageProcessorPil.from_pretrained(dino) if reads else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photos(count: int) -> list[Image.Image]:
    """Pictures of smooth colours, each its own."""
    coarse = np.random.default_rng(count).integers(0, 255, (count, 3, 3, 3), dtype=np.uint8)
    return [Image.fromarray(picture).resize((64, 64)) for picture in coarse]


def latents(pipeline: M2MPipeline, images: Any, num_images: int, **options: Any) -> Tensor:
    settings = {"num_inference_steps": 2, "generator": 7, "output_type": "latent", **options}
    return pipeline(images, num_images, **settings).images
