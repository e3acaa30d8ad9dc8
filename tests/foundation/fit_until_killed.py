"""Trains a network of two layers; run as a program, it is killed at a moment: ``step 9``, or ``saving 5``.

`test_fit.py` runs it, and also calls its `train`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from m2m.foundation import fit as module
from m2m.params import Fit
from m2m.training.state import TrainState

STEPS = 12


class Network(nn.Module):
    """With weights, with a frozen one, and with a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def train(work: Path, *, killed: str = "") -> Network:
    """The whole fit, or what comes before the kill; every step writes a checkpoint."""
    event, _, at = killed.partition(" ")
    network, data, save = Network(), torch.linspace(-1, 1, 40).reshape(10, 4), TrainState.save
    module.SECONDS_BETWEEN_CHECKPOINTS = -1

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        done = max((int(path.name.partition(".")[0]) for path in work.glob("checkpoints/fit/network/*")), default=0)
        if event == "step" and done == 4 * int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        noisy = data[batch] + 0.1 * torch.randn(len(batch), 4, generator=draws)
        return (network.frozen(network.layers(noisy)) - data[batch]).square().mean()

    def half_saved(state: TrainState, path: Path) -> None:
        save(state, path)
        if event == "saving" and state.images_seen == 4 * int(at):
            path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    TrainState.save = half_saved  # type: ignore[method-assign]
    try:
        sizes = Fit(images=4 * STEPS, batch_size=4, learning_rate=0.01)
        module.fit("network", network, loss, fit=sizes, pictures=10, seed=3, work=work, matrices=["layers.3.weight"])
    finally:
        TrainState.save, module.SECONDS_BETWEEN_CHECKPOINTS = save, 60  # type: ignore[method-assign]
    return network


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), killed=sys.argv[2])
