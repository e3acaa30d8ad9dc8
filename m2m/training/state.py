"""All that a training run is at one moment, and how it is written down: safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2m.training.curve import Curve, Point
from m2m.training.ema import Ema

FILES = ("state.safetensors", "state.json")
WEIGHTS, AVERAGES, OPTIMIZER = "weights/", "averages/", "optimizer/"


@dataclass
class TrainState:
    """What must outlive a kill. It holds no random state: all draws are derived from the seed and `images_seen`."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    curve: Curve = field(default_factory=Curve)
    images_seen: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Raw weights, averaged weights and the optimizer's moments, each under the parameter's name."""
        return {
            **{WEIGHTS + name: tensor for name, tensor in self.network.state_dict().items()},
            **{AVERAGES + name: tensor for name, tensor in self.ema.tensors().items()},
            **{
                f"{OPTIMIZER}{slot}/{name}": tensor
                for name, parameter in self.network.named_parameters()
                for slot, tensor in self.optimizer.state.get(parameter, {}).items()
            },
        }

    def counters(self) -> dict[str, Any]:
        """The rest, as JSON has it; floats are written so that they read back the same."""
        return {
            "images_seen": self.images_seen,
            "ema_updates": self.ema.updates,
            "points": [asdict(point) for point in self.curve.points],
            "steps_since": self.curve.since,
        }

    def save(self, folder: Path) -> None:
        """Writes ``state.safetensors`` and ``state.json`` into an existing folder. The curve must be settled."""
        tensors, counters = (folder / name for name in FILES)
        save_file({name: tensor.contiguous() for name, tensor in self.tensors().items()}, tensors)
        counters.write_text(json.dumps(self.counters(), indent=1) + "\n")

    def load(self, folder: Path) -> None:
        """Becomes what `save` wrote, to the bit. The network must have the same parameters."""
        tensors = load_file(folder / "state.safetensors")
        counters = json.loads((folder / "state.json").read_text())
        self.network.load_state_dict(_under(WEIGHTS, tensors))
        self.ema.load(_under(AVERAGES, tensors), updates=counters["ema_updates"])
        parameters = dict(self.network.named_parameters())
        for key, tensor in _under(OPTIMIZER, tensors).items():
            slot, name = key.split("/", 1)
            # A copy: what is mapped from a file does not begin where torch would have it begin.
            self.optimizer.state[parameters[name]][slot] = tensor.to(parameters[name].device, copy=True)
        self.curve = Curve(
            points=[Point(**point) for point in counters["points"]],
            since=[(loss, norm) for loss, norm in counters["steps_since"]],
        )
        self.images_seen = counters["images_seen"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
