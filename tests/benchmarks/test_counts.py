"""What the networks of the paper's scale cost, against what is known and what one counts by hand."""

from __future__ import annotations

import pytest

from benchmarks.counts import captioned, costs, image_set_unet

PATCHES = 256


@pytest.mark.parametrize(("pixels", "giga"), [(256, 181), (512, 804)])
def test_stable_diffusion_costs_what_is_known(pixels: int, giga: int) -> None:
    assert round(captioned(pixels) / 1e9) == giga


@pytest.mark.slow
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
    assert cost.plain[4] < cost.guided[4] < 2 * cost.plain[4]  # the half without context attends to the null rows alone
