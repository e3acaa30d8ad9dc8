"""The average of the weights against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from m2m.training.ema import Ema


def set_weights(network: nn.Linear, value: float) -> None:
    with torch.no_grad():
        network.weight.fill_(value)
        network.bias.fill_(-value)


def test_it_is_the_weighted_mean_that_the_warmed_up_decay_says() -> None:
    network = nn.Linear(2, 2)
    set_weights(network, 8.0)
    ema = Ema(network, decay=0.5)
    expected = 8.0
    for update, value in enumerate([1.0, 2.0, -3.0, 4.0, 0.5, 6.0, 7.0, 0.0, 9.0, 1.0, 5.0]):
        set_weights(network, value)
        ema.update()
        kept = min(0.5, (1 + update) / (10 + update))  # 0.1, 0.18, ... and from the ninth on 0.5
        expected = kept * expected + (1 - kept) * value
    averages = ema.tensors()
    assert averages["weight"].flatten().tolist() == pytest.approx([expected] * 4, rel=1e-6)
    assert averages["bias"].tolist() == pytest.approx([-expected] * 2, rel=1e-6)
    assert ema.updates == 11


def test_while_applied_the_network_carries_the_averages_and_then_its_own_weights_again() -> None:
    network = nn.Linear(3, 3)
    ema = Ema(network, decay=0.9)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for average in ema.tensors().values():
            average.add_(1)
    with ema.applied():
        assert all(torch.equal(tensor, own[name] + 1) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(average, own[name] + 1) for name, average in ema.tensors().items())


def test_an_optimizer_goes_on_with_the_network_after_an_exchange() -> None:
    network = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    ema = Ema(network, decay=0.9)
    with ema.applied():
        pass
    before = network.weight.detach().clone()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, before)
    assert torch.equal(ema.tensors()["weight"], before)
