"""Where training starts, on the foundation that comes with the repository: how far from its Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel

from m2m.diffusion.objective import add_noise, alphas_cumprod
from m2m.models.dino import dino_pixels, dino_tokens
from m2m.models.unet import ContextImages, empty_prompt
from m2m.params import TrainCommon
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.training.start import from_stable_diffusion
from m2m.world.corpus import make_corpus

FOUNDATION = Path(__file__).parents[2] / "models" / "foundation"
SETS, POSITIONS = 6, 6


def off(found: Tensor, wanted: Tensor) -> float:
    """Root of the mean square of the difference, as a share of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.skipif(not FOUNDATION.joinpath("dino").is_dir(), reason="no foundation has been made")
@pytest.mark.parametrize(
    ("variant", "encoder", "one_image", "five_images"),
    [("self", "dino", 0.45, 0.45), ("dino", "dino", 0.25, 0.35), ("dino", "clip", 0.25, 0.35)],
)
@torch.no_grad()
def test_from_nothing_it_is_the_parent_and_after_images_not_far_from_it(
    make_common: Callable[..., TrainCommon], variant: Any, encoder: Any, one_image: float, five_images: float
) -> None:
    common = make_common(max_context=5, prediction_type="v_prediction")
    pipeline = from_stable_diffusion(FOUNDATION, variant, common, encoder=encoder)
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


@pytest.mark.skipif(not FOUNDATION.joinpath("clip").is_dir(), reason="no foundation has been made")
def test_a_model_that_reads_with_clip_is_saved_and_loaded_with_it(
    make_common: Callable[..., TrainCommon], tmp_path: Path
) -> None:
    common = make_common(max_context=5, prediction_type="v_prediction")
    pipeline = from_stable_diffusion(FOUNDATION, "dino", common, encoder="clip")
    pipeline.unet.context_proj.weight.data.normal_(generator=torch.Generator().manual_seed(0))  # it heeds what it reads
    corpus = make_corpus(pictures=2, views=0, steps=0, seed=30, split="test")
    pictures = [Image.fromarray(picture) for picture in corpus.images]

    def drawn(by: M2MPipeline, picture: Image.Image) -> Any:
        return by([picture], num_inference_steps=2, generator=0, output_type="np").images

    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert isinstance(loaded.image_encoder, CLIPVisionModel)
    np.testing.assert_array_equal(drawn(loaded, pictures[0]), drawn(pipeline, pictures[0]))
    assert not np.array_equal(drawn(pipeline, pictures[0]), drawn(pipeline, pictures[1]))
