"""How long things take on a device, all sides in turn, so that whatever else the machine does troubles all alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

Measured = TypeVar("Measured")
PROCESSORS = Path("/proc/cpuinfo")


class Clock:
    """Tells the time when a device has done what it was given."""

    def __init__(self, device: str) -> None:
        self._device = device

    def now(self) -> float:
        """Seconds since some moment."""
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def taken(self, work: Callable[[], object]) -> float:
        """Seconds until the device has done the work."""
        started = self.now()
        work()
        return self.now() - started


def in_turn(works: Sequence[Callable[[], Measured]], *, repeats: int) -> list[list[Measured]]:
    """What each of the works gives, `repeats` times; they take turns, and a first turn, to warm up, does not count."""
    found: list[list[Measured]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, measured in zip(works, found, strict=True):
            result = work()
            if turn:
                measured.append(result)
    return found


def hardware(device: str) -> str:
    """What computes, and with which torch."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = PROCESSORS.read_text().splitlines() if PROCESSORS.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
