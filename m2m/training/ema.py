"""The exponential moving average of the weights, which is what previews show and what a model folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averaged copies of a network's parameters, in the order of ``network.parameters()``.

    After k updates the next one keeps the share min(decay, (1 + k) / (10 + k)), so that the first weights are soon
    forgotten. The counter belongs to the state: resumed without it, the average would warm up again.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = list(network.parameters())
        self._averages = [parameter.detach().clone() for parameter in self._live]
        self._names = [name for name, _ in network.named_parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the network's present weights."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, [parameter.detach() for parameter in self._live], 1 - kept)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lets the network carry the averages: tensors change places, so nothing is copied and nothing rounded."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for parameter, index in zip(self._live, range(len(self._averages)), strict=True):
            parameter.data, self._averages[index] = self._averages[index], parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """The averages under their parameters' names."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], *, updates: int) -> None:
        """Takes up the averages and the counter of a checkpoint."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])
        self.updates = updates
