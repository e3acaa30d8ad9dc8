"""Operations, against what one counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from m2m.evaluation.operations import META, image_set_costs, operations, text_pass
from m2m.models.image_set_attention import ContextCache, ImageSetAttention, Window
from m2m.models.unet import ImageSetUNet, Variant

SIDE, WORDS, PATCHES, WINDOW = 8, 77, 16, 3
SIDES = {"down_blocks.0": 8, "down_blocks.1": 4, "mid_block": 4, "up_blocks.0": 4, "up_blocks.1": 8}
"""Of the latents at each block of the tiny U-Net."""


@pytest.fixture(scope="module")
def parent(tiny_stable_diffusion: Path) -> UNet2DConditionModel:
    config = UNet2DConditionModel.load_config(tiny_stable_diffusion, subfolder="unet")
    with META:
        return UNet2DConditionModel.from_config(config)


def image_set_unet(parent: UNet2DConditionModel, variant: Variant) -> tuple[ImageSetUNet, torch.Tensor]:
    """And what it reads of an image."""
    width = parent.config.cross_attention_dim
    with META:
        unet = ImageSetUNet.from_parent(
            parent, empty_prompt=torch.zeros(WORDS, width), variant=variant, max_context=WINDOW, context_dim=width
        )
        return unet, torch.empty(1, 4, SIDE, SIDE) if variant == "self" else torch.empty(1, PATCHES, width)


def queries(unet: ImageSetUNet) -> dict[ImageSetAttention, int]:
    """How many tokens of an image ask, at each block."""
    return {
        block: next(side for place, side in SIDES.items() if name.startswith(place)) ** 2
        for name, block in unet.attentions().items()
    }


def test_an_attention_is_two_products_and_its_projections() -> None:
    sets, asking, length, images, dim = 2, 64, 10, 3, 40
    with META:
        block = ImageSetAttention(
            dim=dim, inner_dim=dim, heads=5, token_dim=dim, max_context=images, null_tokens=WORDS, value_bias=False
        )
    cache = ContextCache(images)
    for _ in range(images):
        cache.append(block, *torch.empty(2, sets, length, dim, device=META))
    hidden = torch.empty(sets, asking, dim, device=META)
    counted = operations(lambda: block(hidden, Window(cache)))
    products = 2 * 2 * sets * asking * (WORDS + images * length) * dim
    projections = 2 * 2 * sets * asking * dim * dim  # queries and output
    assert counted == products + projections  # null rows need none: they are keys and values


@pytest.mark.parametrize("variant", ["self", "dino"])
def test_a_given_image_costs_the_products_with_its_tokens_until_the_window_is_full(
    parent: UNet2DConditionModel, variant: Variant
) -> None:
    unet, context = image_set_unet(parent, variant)
    guided = image_set_costs(unet, context, side=SIDE, guided=[1, 2, 3, 4, 7]).guided
    per_image = sum(
        2 * 2 * asking * (asking if variant == "self" else PATCHES) * block.to_q.out_features
        for block, asking in queries(unet).items()
    )
    assert guided[2] - guided[1] == guided[3] - guided[2] == per_image
    assert guided[WINDOW] == guided[4] == guided[7]


def test_a_step_differs_from_stable_diffusions_in_the_cross_attention_alone(parent: UNet2DConditionModel) -> None:
    unet, context = image_set_unet(parent, "dino")
    given, width = 2, parent.config.cross_attention_dim
    ours = image_set_costs(unet, context, side=SIDE, guided=[given]).guided[given]
    theirs, own = 0, 0
    for block, asking in queries(unet).items():
        dim, inner = block.to_q.in_features, block.to_q.out_features
        projections = 2 * 2 * asking * dim * inner  # queries and output
        theirs += 2 * (projections + 2 * 2 * WORDS * width * inner + 2 * 2 * asking * WORDS * inner)
        own += projections + 2 * 2 * asking * (WORDS + given * PATCHES) * inner  # the half with context
        own += projections + 2 * 2 * asking * WORDS * inner  # the half without
    assert 2 * text_pass(parent, side=SIDE, words=WORDS) - ours == theirs - own


def test_only_what_is_asked_for_is_counted(parent: UNet2DConditionModel) -> None:
    unet, context = image_set_unet(parent, "self")
    found = image_set_costs(unet, context, side=SIDE, guided=[1], plain=[0, 2], reading=2)
    assert (list(found.guided), list(found.plain), len(found.reading)) == ([1], [0, 2], 2)
    assert 0 < found.plain[0] < found.plain[2] < found.guided[1]
    assert found.reading[0] < found.reading[1], "the second looks at the first"
