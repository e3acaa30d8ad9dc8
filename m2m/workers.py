"""Work side by side on a CPU: in threads, or in processes where something belongs to one thread of its process.

Each worker is a thread with one of torch's own threads to compute with. The operations of small networks are over
before torch could share one out: two of its threads draw 1.1 times as many pictures as one, two workers 1.8 times. And
what a worker makes does not depend on how many others there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from itertools import islice
from threading import Lock, Thread
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Workers:
    """Some workers; a single one is the caller's own thread, which does its work when the result is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = thread_pool(count) if count > 1 else None

    def map(self, work: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made]:
        """What `work` makes of each item, in the items' order, a few ahead of need; its errors are raised here.

        If the caller stops early, or an error is raised, what has been begun is finished first.
        """
        if self._pool is None:
            yield from map(work, items)
        else:
            yield from in_order(self._pool, work, items, ahead=self.count + 1)


ALONE: Final = Workers(1)
"""The caller's own thread: for a GPU, which is fed by one, and for what is too little to share."""


class Once(Generic[Made]):
    """Calls `make` when the first worker needs what it makes, and then never again. Pickled, it is as new."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make, self._lock = make, Lock()
        self.made: list[Made] = []
        """What it made, if it was called."""

    def __reduce__(self) -> tuple[type[Once[Made]], tuple[Callable[[], Made]]]:
        return Once, (self._make,)

    def __call__(self) -> Made:
        with self._lock:
            if not self.made:
                self.made.append(self._make())
            return self.made[0]


def thread_pool(count: int, name: str = "worker") -> ThreadPoolExecutor:
    """Threads that compute with one of torch's each: more would spin on the cores of the others."""
    import torch  # which the processes of a pool, that import this module, may do without

    return ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(1,))


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], *, ahead: int
) -> Generator[Made]:
    """What `work` makes of each item in a pool, in order; `ahead` items are being made, or wait to be taken.

    If an item cannot be had, what is made of those before it comes first, then the error: it may be kept.
    """
    upcoming, waiting, failed = iter(items), deque[Future[Made]](), list[BaseException]()

    def submit(count: int) -> None:
        try:
            waiting.extend(pool.submit(work, item) for item in islice(upcoming, count))
        except BaseException as error:
            failed.append(error)

    try:
        submit(ahead)
        while waiting:
            made = waiting.popleft().result()
            if not failed:
                submit(1)
            yield made
        if failed:
            raise failed[0]
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


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
