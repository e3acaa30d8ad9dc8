"""Work side by side in processes, for what belongs to one thread of its process, such as a graphics context."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from threading import Thread


def process_pool(count: int) -> ProcessPoolExecutor:
    """A pool whose processes start fresh when there is work (a forked graphics driver hangs) and end with this one.

    What is handed to it should come from modules that are quick to import: each process imports them.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_belong_to_parent)


def _belong_to_parent() -> None:
    """Ends this process when its parent is gone, even killed; leaves an interrupt from the keyboard to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()
