"""The learning curve: kept on the device between the points, read once a point, written as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor

from m2m.training.ranks import Ranks


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


class NotFiniteError(Exception):
    """A step's loss or gradient was NaN or infinite."""

    def __init__(self, *, images_seen: int, positions: Sequence[int]) -> None:
        super().__init__(f"not finite at {images_seen} images")
        self.images_seen = images_seen
        """The clock after the step."""
        self.positions = tuple(positions)
        """The places in the global batch of the sets to blame: of all of them if only the gradient was not finite."""


@dataclass
class Curve:
    """Points so far, and the steps since the last one.

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
            if not step_losses.isfinite().all():
                raise NotFiniteError(
                    images_seen=images_seen, positions=(~step_losses.isfinite()).nonzero()[:, 0].tolist()
                )
            if not norm.isfinite():
                raise NotFiniteError(images_seen=images_seen, positions=range(len(step_losses)))
            self.since.append((step_losses.mean().item(), norm.item()))

    def close(self, *, images_seen: int, learning_rate: float, held_out_loss: float) -> Point:
        """Makes a point of the settled steps since the last one."""
        losses, norms = zip(*self.since, strict=True)
        point = Point(
            images_seen=images_seen,
            loss=math.fsum(losses) / len(losses),
            grad_norm=math.fsum(norms) / len(norms),
            learning_rate=learning_rate,
            held_out_loss=held_out_loss,
        )
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
