"""Long work tells how far it is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TextIO

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """Reports work as done, from any thread."""

    def __call__(self, count: int = 1, *, skipped: bool = False) -> None:
        """`count` more units are done; `skipped` ones were done by an earlier run and say nothing about the speed."""


@contextmanager
def progress(total: int, description: str, *, unit: str) -> Iterator[Advance]:
    """Shows on standard error how much of `total` is done, how fast it goes and how long it will take.

    >>> with progress(100, "generate", unit="images") as advance:
    ...     advance(60, skipped=True)
    ...     advance(40)
    """
    meter = _Meter(total, description, unit)
    with _bar(meter) if sys.stderr.isatty() else _lines(meter, sys.stderr) as advance:
        yield advance


class _Meter:
    """What has been done since when."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = self.skipped = 0
        self.started = time.monotonic()
        self._lock = Lock()

    def add(self, count: int, skipped: bool) -> None:
        with self._lock:
            self.done += count
            self.skipped += count if skipped else 0

    @property
    def rate(self) -> float:
        """Units a second, over the whole run: steadier than the last moment's, and what the time left rests on."""
        return (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-9)

    def __str__(self) -> str:
        text = f"{self.done}/{self.total} {self.unit}"
        if self.rate:
            text += f", {self.rate:.3g} {self.unit}/s"
            if self.done < self.total:
                text += f", {clock((self.total - self.done) / self.rate)} left"
        return text


@contextmanager
def _bar(meter: _Meter) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[meter]}"))
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        bar = bars.add_task(meter.description, total=meter.total, meter=str(meter))

        def advance(count: int = 1, *, skipped: bool = False) -> None:
            meter.add(count, skipped)
            bars.update(bar, completed=meter.done, meter=str(meter))

        yield advance


@contextmanager
def _lines(meter: _Meter, stream: TextIO) -> Iterator[Advance]:
    last = meter.started

    def advance(count: int = 1, *, skipped: bool = False) -> None:
        nonlocal last
        meter.add(count, skipped)
        if meter.done >= meter.total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{meter.description}: {meter}", file=stream, flush=True)

    yield advance


def clock(seconds: float) -> str:
    """As a clock shows it: 3:07, or 1:02:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
