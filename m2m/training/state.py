"""All that a training run is at one moment, in one file of safetensors, never a pickle.

The weights and their moving average, the optimizers' moments, the curve; and the clock, which is images seen.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2m.training.ranks import Ranks

WEIGHTS, AVERAGES, OPTIMIZER = "weights/", "averages/", "optimizer/"
COUNTERS = "counters"
"""In the file's metadata: what is no tensor, as JSON."""


def learning_rate(
    images_seen: float,
    *,
    peak: float,
    warmup_images: float,
    images: float,
    schedule: Literal["constant", "cosine"],
    floor: float = 0.0,
) -> float:
    """Linear warm-up to the peak, then constant or half a cosine down to the share `floor` of it at ``images``.

    A step is given the rate at its middle: neither the first step nor the last one then runs at zero.
    """
    if images_seen < warmup_images:
        return peak * images_seen / warmup_images
    if schedule == "constant":
        return peak
    left = images - warmup_images
    progress = min(1.0, (images_seen - warmup_images) / (left if left > 0 else 1))
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def is_due(every: int, *, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` images lies in (before, after]: due once an interval, whatever the step size."""
    return after // every > before // every


class Ema:
    """Averaged copies of a network's parameters: what previews show, and what a model folder holds.

    After k updates the next one keeps the share min(decay, (1 + k) / (10 + k)), so that the first weights are soon
    forgotten. The counter belongs to the state: resumed without it, the average would warm up again.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = dict(network.named_parameters())
        self.tensors = {name: parameter.detach().clone() for name, parameter in self._live.items()}
        """The averages under their parameters' names."""

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the network's present weights."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [parameter.detach() for parameter in self._live.values()]
        torch._foreach_lerp_(list(self.tensors.values()), live, 1 - kept)
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
        for name, parameter in self._live.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data


@dataclass(frozen=True)
class Point:
    """One point of the curve; losses and norms are means over the steps since the point before."""

    images_seen: int
    loss: float
    grad_norm: float
    learning_rate: float
    held_out_loss: float

    def metrics(self) -> dict[str, float]:
        """What is tracked at the step `images_seen`."""
        return {name: value for name, value in asdict(self).items() if name != "images_seen"}


@dataclass(eq=False)
class NotFiniteError(Exception):
    """A step's loss or gradient was NaN or infinite."""

    images_seen: int
    """The clock after the step."""
    positions: tuple[int, ...]
    """The places in the global batch of the sets to blame: of all of them if only the gradient was not finite."""


@dataclass
class Curve:
    """The learning curve: points so far, and the steps since the last one.

    A step only leaves tensors on the device: reading them there and then would stall it. `settle` reads all at once.
    """

    points: list[Point] = field(default_factory=list)
    since: list[tuple[float, float]] = field(default_factory=list)
    """(loss, gradient norm) of each settled step after the last point."""

    _unread: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def record(self, *, images_seen: int, losses: Tensor, grad_norm: Tensor) -> None:
        """Notes a step: this rank's losses (sets,), the gradient's norm () over all ranks, both on the device."""
        self._unread.append((images_seen, losses, grad_norm))

    def settle(self, ranks: Ranks) -> None:
        """Reads the steps from the device; all ranks call it together.

        Raises NotFiniteError for the first step that was not finite, so that no point and no checkpoint ever holds one.
        """
        if not self._unread:
            return
        steps, losses, norms = zip(*self._unread, strict=True)
        self._unread = []
        all_losses = ranks.gather(torch.stack(losses)).double().cpu()  # (steps, sets of all ranks)
        all_norms = torch.stack(norms).double().cpu()  # (steps,)
        for images_seen, step_losses, norm in zip(steps, all_losses, all_norms, strict=True):
            bad = ~step_losses.isfinite()
            if bad.any() or not norm.isfinite():
                blamed = bad if bad.any() else torch.ones_like(bad)
                raise NotFiniteError(images_seen, tuple(blamed.nonzero()[:, 0].tolist()))
            self.since.append((step_losses.mean().item(), norm.item()))

    def close(self, *, images_seen: int, learning_rate: float, held_out_loss: float) -> Point:
        """Makes a point of the settled steps since the last one."""
        loss, grad_norm = (math.fsum(values) / len(values) for values in zip(*self.since, strict=True))
        point = Point(images_seen, loss, grad_norm, learning_rate, held_out_loss)
        self.points.append(point)
        self.since = []
        return point

    def to_csv(self) -> str:
        """A header and a line a point; every number reads back as the very same float."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [column.name for column in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in self.points)
        return text.getvalue()


@dataclass
class TrainState:
    """What must outlive a kill. It holds no random state: all draws are derived from the seed and `images_seen`."""

    network: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    """No two of them move the same weight."""
    ema: Ema
    curve: Curve = field(default_factory=Curve)
    images_seen: int = 0

    def step(self) -> None:
        """Moves the weights by their gradients, which are then gone, and the averages after them."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update()

    def tensors(self) -> dict[str, Tensor]:
        """Raw weights, averaged weights and the optimizers' moments, each under the parameter's name."""
        return {
            **{WEIGHTS + name: tensor for name, tensor in self.network.state_dict().items()},
            **{AVERAGES + name: tensor for name, tensor in self.ema.tensors.items()},
            **{
                f"{OPTIMIZER}{slot}/{name}": tensor
                for name, parameter in self.network.named_parameters()
                for optimizer in self.optimizers
                for slot, tensor in optimizer.state.get(parameter, {}).items()
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

    def save(self, path: Path) -> None:
        """Writes a safetensors file. The curve must be settled."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, path, metadata={COUNTERS: json.dumps(self.counters())})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Becomes what `save` wrote, to the bit. The network must have the same parameters."""
        with safe_open(path, framework="pt") as file:
            counters = json.loads(file.metadata()[COUNTERS])
        tensors = load_file(path)
        self.network.load_state_dict(_under(WEIGHTS, tensors))
        for name, average in _under(AVERAGES, tensors).items():
            self.ema.tensors[name].copy_(average)
        moved_by = {weight: one for one in self.optimizers for group in one.param_groups for weight in group["params"]}
        parameters = dict(self.network.named_parameters())
        for key, tensor in _under(OPTIMIZER, tensors).items():
            slot, _, name = key.partition("/")
            weight = parameters[name]
            # A copy: what is mapped from a file does not begin where torch would have it begin.
            moved_by[weight].state[weight][slot] = tensor.to(weight.device, copy=True)
        self.ema.updates = counters["ema_updates"]
        self.curve = Curve(
            points=[Point(**point) for point in counters["points"]],
            since=[(loss, norm) for loss, norm in counters["steps_since"]],
        )
        self.images_seen = counters["images_seen"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
