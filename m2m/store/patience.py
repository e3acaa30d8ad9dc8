"""How long a store is waited for: tries, pauses, and an end to all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")

SLOWEST = 256 << 10
"""Bytes a second: an object that comes or goes more slowly than this is given up."""


@dataclass(frozen=True)
class Patience:
    """How often something is tried, and for how long in all."""

    tries: int
    pause: float
    """Seconds before the second try, give or take a half; each further pause is twice as long."""
    seconds: float
    """For all tries together, beside the time that `SLOWEST` allows for the bytes."""


def within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What `work` gives.

    It runs in a thread that can be left behind: time limits of sockets begin anew with each byte.

    Raises:
        TimeoutError: it takes longer.
    """
    outcome: Future[Answer] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    return outcome.result(max(0.0, seconds))
