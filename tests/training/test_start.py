"""Where training starts, on the foundation that comes with the repository: how far from its Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from m2m.diffusion.objective import add_noise, alphas_cumprod
from m2m.models.dino import dino_pixels, dino_tokens
from m2m.models.unet import ContextImages, empty_prompt
from m2m.params import TrainCommon
from m2m.training.start import from_stable_diffusion
from m2m.world.corpus import make_corpus

FOUNDATION = Path(__file__).parents[2] / "models" / "foundation"
SETS, POSITIONS = 6, 6


def off(found: Tensor, wanted: Tensor) -> float:
    """Root of the mean square of the difference, as a share of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.skipif(not FOUNDATION.joinpath("dino").is_dir(), reason="no foundation has been made")
@pytest.mark.parametrize(("variant", "one_image", "five_images"), [("self", 0.45, 0.45), ("dino", 0.25, 0.35)])
@torch.no_grad()
def test_from_nothing_it_is_the_parent_and_after_images_not_far_from_it(
    make_common: Callable[..., TrainCommon], variant: Any, one_image: float, five_images: float
) -> None:
    pipeline = from_stable_diffusion(FOUNDATION, variant, make_common(max_context=5, prediction_type="v_prediction"))
    corpus = make_corpus(pictures=SETS * POSITIONS, views=0, steps=0, seed=30, split="test")
    pictures = torch.from_numpy(corpus.images).permute(0, 3, 1, 2)  # (36, 3, H, W)
    latents = pipeline._encode(pictures)  # (36, 4, h, w)
    read = latents
    if variant == "dino":
        read = dino_tokens(pipeline.image_encoder, dino_pixels(pictures, pipeline.feature_extractor))
    draws = torch.Generator().manual_seed(0)
    times = torch.randint(1000, (len(latents),), generator=draws)
    products = alphas_cumprod(pipeline.scheduler.config, "v_prediction")
    noisy = add_noise(latents, torch.randn(latents.shape, generator=draws), times, products)
    text = empty_prompt(FOUNDATION / "stable-diffusion").expand(len(latents), -1, -1)
    parent = UNet2DConditionModel.from_pretrained(FOUNDATION / "stable-diffusion", subfolder="unet")
    expected = parent(noisy, times, text).sample.unflatten(0, (SETS, POSITIONS))

    context = ContextImages(read.unflatten(0, (SETS, POSITIONS)), torch.zeros(SETS, POSITIONS, dtype=torch.long))
    rows = (tensor.unflatten(0, (SETS, POSITIONS)) for tensor in (noisy, times))
    found = pipeline.unet.forward_sets(*rows, context)
    assert off(found[:, 0], expected[:, 0]) < 1e-5
    assert off(found[:, 1], expected[:, 1]) < one_image
    assert off(found[:, 5], expected[:, 5]) < five_images
