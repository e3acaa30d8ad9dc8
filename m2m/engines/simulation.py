"""What failing nodes cost a stage: it is run through, many times, with failures at random (``m2m plan --simulate``).

Failures come to each node independently of its age (exponential times), and each takes all GPUs of a node at once. What
follows is what the engine does (`cluster`): shards that were being made are made again by whoever is free;
ranks that train together all go back to the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from math import ceil
from statistics import fmean

import numpy as np

from m2m.errors import UserError
from m2m.seeds import derive

HOUR = 3600
NODE_HOURS = 6300.0
"""Between two failures of a node of eight: 419 unexpected interruptions in 54 days of 16,384 H100s (The Llama 3 Herd of
Models, 2024, section 3.3.4). Spot nodes are taken away every few hours or days."""
SAVE_SECONDS = 60.0
"""That all ranks wait for a checkpoint: 14 GB hashed, sent and read back at some 0.7 GB a second. Assumed."""
RUNS = 20
"""Of a stage; of many shards fewer."""
SHARDS = 1_000_000
"""Made in all runs of a stage together, at most."""
HOPELESS = 8
"""Failures that come, on average, while something is done that must not be interrupted: 1 try in 3,000 gets through."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How nodes fail."""

    node_hours: float = NODE_HOURS
    """Between two failures of one node, on average."""
    gpus_per_node: int = 8
    back_minutes: float = 10.0
    """Until a node, or one in its place, is at work again, all that it imports and loads included."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of a stage."""

    hours: float
    failures: int
    lost_gpu_hours: float
    """Work that was done twice; waiting is not in it."""
    again: int = 0
    """Shards that were made again."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A stage, over all runs."""

    stage: str
    planned_hours: float
    runs: int
    hours: float
    """The mean."""
    longest: float
    """Hours of the worst run."""
    failures: float
    lost_gpu_hours: float
    again: float


def simulated(stage: str, planned_hours: float, outcomes: Iterable[Outcome]) -> Simulated:
    """A stage over all its runs.

    Args:
        planned_hours: without failures.
    """
    runs = [*outcomes]
    return Simulated(
        stage=stage,
        planned_hours=planned_hours,
        runs=len(runs),
        hours=fmean(one.hours for one in runs),
        longest=max(one.hours for one in runs),
        failures=fmean(one.failures for one in runs),
        lost_gpu_hours=fmean(one.lost_gpu_hours for one in runs),
        again=fmean(one.again for one in runs),
    )


def draws(failures: Failures, stage: str, run: int) -> np.random.Generator:
    """What a run's failures are drawn from."""
    return np.random.default_rng(derive(failures.seed, "failures", stage, run))


def make_shards(seconds: Sequence[float], gpus: int, failures: Failures, draws: np.random.Generator) -> Outcome:
    """Shards that GPUs take one after the other, as they are free; a node that fails loses those that it is at.

    Args:
        seconds: that each shard takes on one GPU; in which order they are taken.

    Raises:
        UserError: hardly a shard would ever be finished.
    """
    _check_hope("a shard", max(seconds), failures.node_hours * HOUR, "generate.sets_per_shard")
    nodes = [_Node(failures, draws) for _ in range(ceil(gpus / failures.gpus_per_node))]
    free = [(0.0, gpu) for gpu in range(gpus)]  # when each GPU can take a shard: what comes next stands first
    waiting, lost_ones, end, lost, again = [*reversed(seconds)], list[tuple[float, float]](), 0.0, 0.0, 0
    while waiting or lost_ones:
        now, gpu = free[0]
        if not waiting and lost_ones[0][0] > now:
            heapreplace(free, (lost_ones[0][0], gpu))  # that shard is not lost yet
            continue
        fails, back = nodes[gpu // failures.gpus_per_node].failure(now)
        if fails <= now:
            heapreplace(free, (back, gpu))
            continue
        needed = waiting.pop() if waiting else heappop(lost_ones)[1]
        if fails < now + needed:
            heappush(lost_ones, (fails, needed))
            lost, again = lost + fails - now, again + 1
            heapreplace(free, (back, gpu))
        else:
            end = max(end, now + needed)
            heapreplace(free, (now + needed, gpu))
    failed = sum(node.failures_before(end) for node in nodes)
    return Outcome(hours=end / HOUR, failures=failed, lost_gpu_hours=lost / HOUR, again=again)


class _Node:
    """When a node fails. Moments that are asked for do not go back."""

    def __init__(self, failures: Failures, draws: np.random.Generator) -> None:
        self._mean, self._away, self._draws = failures.node_hours * HOUR, failures.back_minutes * 60, draws
        self._fails, self._before = float(draws.exponential(self._mean)), 0

    def failure(self, now: float) -> tuple[float, float]:
        """The failure that it is not back from yet, or the next one, and when it is back."""
        while self._fails + self._away <= now:
            self._fails += self._away + float(self._draws.exponential(self._mean))
            self._before += 1
        return self._fails, self._fails + self._away

    def failures_before(self, moment: float) -> int:
        return self._before + (self._fails < moment)


def train(steps: int, seconds: float, every: int, gpus: int, failures: Failures, draws: np.random.Generator) -> Outcome:
    """Ranks that train together: a failure anywhere takes all of them back to the newest checkpoint.

    Args:
        seconds: that a step takes on all GPUs.
        every: steps between two checkpoints.

    Raises:
        UserError: hardly a checkpoint would ever be reached.
    """
    between = failures.node_hours * HOUR / ceil(gpus / failures.gpus_per_node)
    stretch = min(every, steps) * seconds + SAVE_SECONDS
    _check_hope("a checkpoint", stretch, between, "train.common.checkpoint_every")
    now, done, failed, lost = 0.0, 0, 0, 0.0
    while True:
        fails = float(draws.exponential(between))
        needed = (steps - done) * seconds + (steps - done - 1) // every * SAVE_SECONDS
        if fails >= needed:
            return Outcome(hours=(now + needed) / HOUR, failures=failed, lost_gpu_hours=lost * gpus / HOUR)
        kept = int(fails // stretch)
        done, failed, lost = done + kept * every, failed + 1, lost + fails - kept * stretch
        now += fails + failures.back_minutes * 60


def _check_hope(what: str, seconds: float, between: float, number: str) -> None:
    if seconds > HOPELESS * between:
        time = f"takes {seconds / HOUR:.3g} hours, and a failure comes every {between / HOUR:.3g}"
        raise UserError(f"{what} {time}: the work would never end; make {number} smaller, or look at --node-hours")
