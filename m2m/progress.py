"""Long work tells how far it is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

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
    done = skipped_ones = 0
    started = last = time.monotonic()
    lock = Lock()
    bars = _bars() if sys.stderr.isatty() else None
    bar = bars.add_task(description, total=total, meter=f"0/{total} {unit}") if bars else None

    def meter() -> str:
        # Over the whole run the rate is steadier than the last moment's: the time left rests on it.
        rate = (done - skipped_ones) / max(time.monotonic() - started, 1e-9)
        left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
        return f"{done}/{total} {unit}" + (f", {rate:.3g} {unit}/s{left}" if rate else "")

    def advance(count: int = 1, *, skipped: bool = False) -> None:
        nonlocal done, skipped_ones, last
        with lock:
            done += count
            skipped_ones += count if skipped else 0
        if bars and bar is not None:
            bars.update(bar, completed=done, meter=meter())
        elif done >= total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{description}: {meter()}", file=sys.stderr, flush=True)

    with bars or nullcontext():
        yield advance


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[meter]}"))
    return Progress(*columns, console=Console(stderr=True))


def clock(seconds: float) -> str:
    """As a clock shows it: 3:07, or 1:02:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
