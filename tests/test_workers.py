"""Workers hand back in order what they make side by side, each with one of torch's threads.

The processes of a pool start fresh, and end with their parent, however that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest
import torch

from m2m.errors import UserError
from m2m.workers import ALONE, Once, Workers, in_order, process_pool, thread_pool


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_was_made_comes_in_the_order_of_the_items(count: int) -> None:
    def slower_at_first(item: int) -> int:
        time.sleep((20 - item) / 2000)
        return item * item

    assert list(Workers(count).map(slower_at_first, range(20))) == [item * item for item in range(20)]


def test_workers_are_at_work_at_the_same_time_with_one_thread_of_torch_each() -> None:
    together = threading.Barrier(3, timeout=20)

    def meet(_: int) -> tuple[int, str]:
        together.wait()  # of one worker after the other none would get past this
        return torch.get_num_threads(), threading.current_thread().name

    met = list(Workers(3).map(meet, range(3)))
    assert [threads for threads, _ in met] == [1, 1, 1]
    assert len({name for _, name in met}) == 3


def test_alone_it_is_the_callers_thread_and_no_item_is_taken_before_its_turn() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(3):
            taken.append(item)
            yield item

    made = ALONE.map(lambda item: (item, threading.current_thread()), items())
    assert next(made) == (0, threading.current_thread())
    assert taken == [0]


def test_only_a_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    made = Workers(2).map(lambda item: item, items())
    next(made)
    assert len(taken) <= 4
    made.close()
    assert len(taken) <= 4


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_is_raised_here_and_what_was_begun_is_finished(count: int) -> None:
    begun, finished = [], []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("the fourth")
        time.sleep(0.01)
        finished.append(item)
        return item

    workers, got = Workers(count), []
    with pytest.raises(ValueError, match="the fourth"):
        got.extend(workers.map(work, range(50)))
    assert sorted([*finished, 3]) == sorted(begun)
    assert len(begun) < 10
    assert list(workers.map(str, range(3))) == ["0", "1", "2"]  # they work on for the next caller


def test_once_makes_one_thing_for_all_workers() -> None:
    made = []

    def make() -> object:
        time.sleep(0.02)
        made.append(object())
        return made[-1]

    get = Once(make)
    assert not made
    assert set(Workers(4).map(lambda _: get(), range(8))) == set(made)
    assert len(made) == 1


AHEAD = 2


def made_ahead(make: Callable[[int], int], steps: range) -> Generator[int]:
    """As the batches of training are made, while the steps before are being worked on."""
    with thread_pool(1) as maker:
        yield from in_order(maker, make, steps, ahead=AHEAD)


def test_batches_come_in_order_and_not_too_far_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    batches = made_ahead(make, range(3, 10))
    assert next(batches) == 9
    assert next(batches) == 16
    assert len(made) <= 2 + AHEAD
    assert list(batches) == [step * step for step in range(5, 10)]
    assert made == list(range(3, 10))
    assert list(made_ahead(make, range(0))) == []


def test_an_error_in_the_making_is_raised_where_the_batch_is_wanted() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise UserError("shard is damaged")
        return step

    batches = made_ahead(make, range(9))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match="shard is damaged"):
        next(batches)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    batches = made_ahead(lambda step: step, range(100))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_they_compute() -> None:
    with process_pool(1) as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
        assert pool.submit(os.getpid).result() != os.getpid()


def test_they_do_not_outlive_a_killed_parent() -> None:
    script = """
import os, sys, time
from m2m.workers import process_pool
pool = process_pool(1)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as status:  # noqa: PTH123
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_was_made_of_the_items_before_one_that_cannot_be_had_comes_first() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError

    with thread_pool(1) as pool:
        made = in_order(pool, float, items(), ahead=3)
        assert [next(made), next(made)] == [1.0, 2.0]
        with pytest.raises(KeyError):
            next(made)
