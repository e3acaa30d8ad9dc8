"""How much memory something needs, whatever else of the process allocates meanwhile."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak_bytes(act: Callable[[int], object], tries: int = 2) -> int:
    """The least of several peaks; `act` is told which try it is.

    What it needs is in every peak; a module imported meanwhile, or a thread that an earlier test left, is in one of
    them.
    """
    peaks = []
    for number in range(tries):
        tracemalloc.start()
        try:
            act(number)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
