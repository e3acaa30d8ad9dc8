"""The operations that are counted, against what one counts by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counts import META, costs, image_set_unet, operations, text_pass
from m2m.models.image_set_attention import ContextCache, ImageSetAttention, Window

PATCHES = 256


def test_an_attention_is_two_products_and_its_projections() -> None:
    sets, queries, length, images, dim = 2, 64, 10, 3, 40
    with META:
        block = ImageSetAttention(dim=dim, inner_dim=dim, heads=5, token_dim=dim, max_context=images, value_bias=False)
    cache = ContextCache(images)
    for _ in range(images):
        cache.append(block, *torch.empty(2, sets, length, dim, device=META))
    hidden = torch.empty(sets, queries, dim, device=META)
    counted = operations(lambda: block(hidden, Window(cache)))
    products = 2 * 2 * sets * queries * (1 + images * length) * dim
    projections = 2 * 2 * sets * queries * dim * dim  # queries and output
    null_token = 2 * 2 * dim * dim  # key and value
    assert counted == products + projections + null_token


@pytest.mark.parametrize(("pixels", "giga"), [(256, 181), (512, 804)])
def test_stable_diffusion_costs_what_is_known(pixels: int, giga: int) -> None:
    assert round(text_pass(pixels) / 1e9) == giga


def test_another_given_image_costs_its_keys_and_values_alone() -> None:
    unet, cost = image_set_unet("dino"), costs("dino", 256, most=4)
    per_image = 0
    for name, block in unet.attentions().items():
        level = {"down_blocks.0": 32, "down_blocks.1": 16, "down_blocks.2": 8, "mid_block": 4}
        level |= {"up_blocks.1": 8, "up_blocks.2": 16, "up_blocks.3": 32}
        side = next(side for place, side in level.items() if name.startswith(place))
        per_image += 2 * 2 * side * side * PATCHES * block.to_q.out_features
    assert cost.guided[4] - cost.guided[2] == 2 * per_image
    assert cost.guided[2] - cost.guided[1] == per_image
    assert cost.plain[4] < cost.guided[4] < 2 * cost.plain[4]  # the half without context attends to nothing
