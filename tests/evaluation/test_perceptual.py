"""A distance of pictures: none between equal ones, the same both ways, the larger the more they differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from m2m.evaluation.inception_v3 import InceptionV3
from m2m.evaluation.networks import Networks
from m2m.evaluation.perceptual import perceptual_distance
from m2m.models.classifier import WorldClassifier
from m2m.world.grammar import parse
from m2m.world.pictures import Variation, paint


@pytest.fixture(scope="module", params=["world", "inception"])
def network(request: pytest.FixtureRequest, committed: Networks) -> WorldClassifier | InceptionV3:
    if request.param == "world":
        assert isinstance(committed.inception, WorldClassifier)
        return committed.inception
    with torch.device("meta"):
        model = InceptionV3()
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=draws) * (2 / fan_in) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()
    return model


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    import numpy as np

    rng = np.random.default_rng(0)
    captions = [parse(text) for text in ("a red star in flat style", "a blue moon in neon style")]
    drawn = np.stack([paint(caption, Variation.draw(rng)) for caption in captions])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def noisy(pictures: Tensor, amount: float) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return (pictures + amount * noise).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def test_it_is_a_distance_that_grows_with_noise(network: WorldClassifier | InceptionV3, pictures: Tensor) -> None:
    assert perceptual_distance(network, pictures, pictures).tolist() == pytest.approx([0, 0], abs=1e-9)
    there = perceptual_distance(network, pictures, noisy(pictures, 40))
    torch.testing.assert_close(perceptual_distance(network, noisy(pictures, 40), pictures), there, rtol=1e-4, atol=1e-6)
    distances = torch.stack([perceptual_distance(network, pictures, noisy(pictures, amount)) for amount in (5, 20)])
    assert (distances[0] > 0).all()
    assert (distances[1] > distances[0]).all()
    assert (there > distances[1]).all()


@torch.no_grad()
def test_pairs_do_not_see_each_other_and_nothing_is_left_behind(
    network: WorldClassifier | InceptionV3, pictures: Tensor
) -> None:
    other = noisy(pictures, 20).flip(3)
    together = perceptual_distance(network, pictures, other)
    alone = torch.cat([perceptual_distance(network, pictures[k : k + 1], other[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert not any(layer._forward_hooks for layer in network.layers)
    assert len(network.layers) >= 4
