"""Where training starts: at Stable Diffusion, and at what its captions said."""

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

from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.diffusion.gaussian import add_noise, alphas_cumprod
from m2m.diffusion.stable_diffusion import StableDiffusion, encode
from m2m.errors import UserError
from m2m.manifest import Manifest
from m2m.models.context import dino_pixels, dino_tokens
from m2m.models.image_set_attention import ContextCache, Window
from m2m.models.unet import ContextImages, empty_prompt
from m2m.params import TrainCommon
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.training.start import IMAGES_READ, from_stable_diffusion, start_from_captions
from m2m.training.start import from_stable_diffusion as start
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
    latents = encode(pipeline.vae, pictures)  # (36, 4, h, w)
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


BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture
def sets(dataset: Any) -> ImageSets:
    return ImageSets(dataset.store, Manifest.read(dataset.manifest), "train")


@pytest.fixture
def make(foundation: Path, make_common: Callable[..., TrainCommon], sets: ImageSets) -> Callable[..., M2MPipeline]:
    """The pipeline that has read some sets."""

    def made(count: int = 12, seed: int = 0) -> M2MPipeline:
        pipeline = start(foundation, "dino", make_common())
        start_from_captions(pipeline, foundation / "stable-diffusion", sets, count=count, seed=seed)
        return pipeline

    return made


def values(pipeline: M2MPipeline, image_set: ImageSet) -> torch.Tensor:
    """What the middle block reads of each image of a set, all tokens alike: (images, inner_dim)."""
    pictures = torch.from_numpy(image_set.images).permute(0, 3, 1, 2)
    tokens = dino_tokens(pipeline.image_encoder, dino_pixels(pictures, pipeline.feature_extractor))
    attention = pipeline.unet.attentions()[BLOCK]
    with torch.no_grad():
        return attention.to_v(pipeline.unet.context_proj(tokens)).mean(dim=1)


@pytest.mark.slow
def test_images_read_as_their_captions_do(make: Callable[..., M2MPipeline], sets: ImageSets, foundation: Path) -> None:
    pipeline = make()
    parent = StableDiffusion(
        foundation / "stable-diffusion", solver="ddim", num_inference_steps=1, guidance_scale=1.0, device="cpu"
    )
    products = alphas_cumprod(pipeline.scheduler.config, "epsilon")
    ours, captions = [], []
    for image_set in (sets[index] for index in range(12)):
        latents = torch.from_numpy(image_set.latents).repeat(40, 1, 1, 1)
        times = torch.randint(1000, (len(latents),), generator=torch.Generator().manual_seed(3))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
        noisy = add_noise(latents, noise, times, products)
        embedding = parent.embed([image_set.caption]).expand(len(latents), -1, -1)
        captions.append(parent.attended(noisy, times, embedding, [BLOCK])[BLOCK].mean(dim=0))
        ours.append(values(pipeline, image_set).mean(dim=0))
    wanted, found = torch.stack(captions), torch.stack(ours)
    spread = (wanted - wanted.mean(dim=0)).square().mean()
    assert (found - wanted).square().mean() < 0.3 * spread  # the start's own few noises are in it


def test_all_tokens_are_read_alike(make: Callable[..., M2MPipeline]) -> None:
    for attention in make().unet.attentions().values():
        assert not attention.to_k.weight.any()


def test_the_empty_set_is_the_empty_prompt_all_the_same(make: Callable[..., M2MPipeline], foundation: Path) -> None:
    parent = UNet2DConditionModel.from_pretrained(foundation / "stable-diffusion", subfolder="unet")
    draws = torch.Generator().manual_seed(0)
    noisy, times = torch.randn(6, 4, 8, 8, generator=draws), torch.randint(1000, (6,), generator=draws)
    text = empty_prompt(foundation / "stable-diffusion").expand(6, -1, -1)
    with torch.no_grad():
        expected = parent(noisy, times, text).sample
        found = make().unet(noisy, times, Window(ContextCache(3))).sample
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_projected_tokens_are_of_unit_variance_and_the_last_channel_is_one(
    make: Callable[..., M2MPipeline], sets: ImageSets
) -> None:
    pipeline = make()
    shown = [torch.from_numpy(sets[index].images[:IMAGES_READ]) for index in range(12)]
    pictures = torch.cat(shown).permute(0, 3, 1, 2)
    tokens = dino_tokens(pipeline.image_encoder, dino_pixels(pictures, pipeline.feature_extractor))
    with torch.no_grad():
        projected = pipeline.unet.context_proj(tokens).flatten(0, 1)
    assert (projected[:, -1] == 1).all()
    variances = projected[:, :-1].var(dim=0)
    assert variances.max() < 1.1
    assert variances.median() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(projected[:, :-1].mean(dim=0), torch.zeros(31), atol=1e-3, rtol=0)


def test_it_follows_the_seed_alone_and_leaves_the_rest_as_it_was(
    make: Callable[..., M2MPipeline], foundation: Path, make_common: Callable[..., TrainCommon]
) -> None:
    torch.manual_seed(1)
    one = make().unet.state_dict()
    torch.manual_seed(2)
    same, other, fewer = make().unet.state_dict(), make(seed=1).unet.state_dict(), make(count=5).unet.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    before = start(foundation, "dino", make_common()).unet.state_dict()
    changed = {name for name in one if not torch.equal(one[name], before[name])}
    assert changed == {
        name
        for name in one
        if name.startswith("context_proj") or (name.endswith(("to_k.weight", "to_v.weight")) and "attn2" in name)
    }
    for another in (other, fewer):
        assert not torch.equal(one[f"{BLOCK}.to_v.weight"], another[f"{BLOCK}.to_v.weight"])


def test_a_set_without_latents_is_named(
    foundation: Path, make_common: Callable[..., TrainCommon], sets: ImageSets
) -> None:
    class Bare:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> ImageSet:
            return ImageSet(id="cc-17", caption="a cat", images=sets[index].images, latents=None)

    pipeline = start(foundation, "dino", make_common())
    with pytest.raises(UserError, match="set cc-17 has no latents"):
        start_from_captions(pipeline, foundation / "stable-diffusion", Bare(), count=1, seed=0)  # type: ignore[arg-type]
