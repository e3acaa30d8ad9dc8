"""What a stage works with and where, in one argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from m2m.store import Store
from m2m.tracking import NullTracker, Tracker
from m2m.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Nothing in it changes a result beyond rounding."""

    store: Store
    work: Path
    """Where what is unfinished lies: a killed stage goes on from there."""
    tracker: Tracker = field(default_factory=NullTracker)
    device: str = "cpu"
    """As torch names it: ``cpu``, ``cuda``, ``cuda:1``."""
    workers: Workers = ALONE
    """What computes side by side on a CPU."""
    processes: int = 1
    """How many draw or read pictures at the same time."""

    @property
    def device_type(self) -> str:
        """What kept work depends on: one GPU is as good as another of its machine."""
        return self.device.partition(":")[0]
