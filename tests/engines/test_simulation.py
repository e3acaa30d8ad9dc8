"""What failing nodes cost: by hand where failures are given, by theory where they are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from statistics import fmean
from typing import cast

import numpy as np
import pytest

from m2m.engines.simulation import HOUR, SAVE_SECONDS, Failures, Outcome, draws, make_shards, simulated, train
from m2m.errors import UserError

NEVER = 1e12
NODES_OF_TWO = Failures(node_hours=100, gpus_per_node=2, back_minutes=1)


def given(*seconds: float) -> np.random.Generator:
    """Failures at moments of the test's choice: of each node in turn the first one, then as they are asked for."""

    class Given:
        def __init__(self, values: Iterable[float]) -> None:
            self.values = iter([*values])

        def exponential(self, mean: float) -> float:
            return next(self.values, NEVER)

    return cast(np.random.Generator, Given(seconds))


def test_without_failures_shards_take_what_was_planned() -> None:
    assert make_shards([10.0] * 9, 4, NODES_OF_TWO, given(NEVER, NEVER)) == Outcome(
        hours=30 / HOUR, failures=0, lost_gpu_hours=0.0
    )


def test_a_node_that_fails_loses_what_both_of_its_gpus_are_at() -> None:
    # Two nodes; the first fails after 15 s, both of its GPUs being at their second shard, and is back at 75.
    made = make_shards([10.0] * 8, 4, NODES_OF_TWO, given(15, NEVER))
    assert (made.failures, made.again) == (1, 2)
    assert made.lost_gpu_hours * HOUR == pytest.approx(2 * 5)
    # 0 to 10: four; 10 to 20: two of the other node; its GPUs make the two that were lost at 15, from 20 to 30.
    assert made.hours * HOUR == pytest.approx(30)


def test_a_lost_shard_is_not_made_again_before_it_is_lost() -> None:
    made = make_shards(
        [10.0, 100.0], 4, Failures(node_hours=100, gpus_per_node=1, back_minutes=1), given(9, *[NEVER] * 3)
    )
    # The first is lost at 9; a third GPU, idle from the start, takes it then.
    assert made.hours * HOUR == pytest.approx(100)
    assert (made.again, made.failures) == (1, 1)
    alone = make_shards([10.0], 2, Failures(node_hours=100, gpus_per_node=1, back_minutes=1), given(9, NEVER))
    assert alone.hours * HOUR == pytest.approx(19)


def test_a_node_that_is_away_fails_no_shard() -> None:
    made = make_shards([10.0] * 2, 1, NODES_OF_TWO, given(5, NEVER))
    assert made.hours * HOUR == pytest.approx(5 + 60 + 20)
    assert made.again == 1


def test_training_goes_back_to_its_newest_checkpoint() -> None:
    plain = train(10, 2.0, 4, 8, NODES_OF_TWO, given(NEVER))
    assert plain == Outcome(hours=(20 + 2 * SAVE_SECONDS) / HOUR, failures=0, lost_gpu_hours=0.0)
    # A stretch of four steps and a save takes 68 s: at 139 s two are behind it, and 3 s are lost on eight GPUs.
    failed = train(10, 2.0, 4, 8, NODES_OF_TWO, given(139, NEVER))
    assert failed.hours * HOUR == pytest.approx(139 + 60 + 4)
    assert failed.lost_gpu_hours * HOUR == pytest.approx(3 * 8)
    # One while the first is being saved: all is begun again.
    failed = train(10, 2.0, 4, 8, NODES_OF_TWO, given(67, NEVER))
    assert failed.hours * HOUR == pytest.approx(67 + 60 + 20 + 2 * SAVE_SECONDS)


def test_drawn_failures_cost_what_theory_says() -> None:
    failures = Failures(node_hours=2, gpus_per_node=8, back_minutes=0)
    runs = [train(100, 36.0, 100, 16, failures, draws(failures, "train", run)) for run in range(2000)]
    # An hour that must not be interrupted, one failure an hour of two nodes: e - 1 hours (Duda, 1983).
    assert fmean(one.hours for one in runs) == pytest.approx(exp(1) - 1, rel=0.1)
    assert fmean(one.failures for one in runs) == pytest.approx(exp(1) - 1, rel=0.1)
    again = [train(100, 36.0, 100, 16, failures, draws(failures, "train", run)) for run in range(20)]
    assert again == runs[:20]
    assert simulated("train", 1.0, runs).longest == max(one.hours for one in runs)


def test_shards_are_lost_as_often_as_nodes_fail_while_they_are_made() -> None:
    failures = Failures(node_hours=10, gpus_per_node=8, back_minutes=5)
    made = make_shards([360.0] * 20_000, 64, failures, draws(failures, "generate", 0))
    nodes, planned = 8, 20_000 / 64 / 10
    assert made.failures == pytest.approx(nodes * planned / 10, rel=0.5)
    assert made.again == pytest.approx(8 * made.failures, abs=8)
    assert made.lost_gpu_hours == pytest.approx(made.again * 0.05, rel=0.3)  # half of a shard each
    away = made.failures * 8 * 5 / 60 / 64
    assert made.hours == pytest.approx(planned + away + made.lost_gpu_hours / 64, rel=0.01)


def test_what_would_never_end_is_told() -> None:
    failures, never = Failures(node_hours=1, gpus_per_node=1), given(NEVER)
    with pytest.raises(UserError, match=r"a shard takes 10 hours, .* make generate.sets_per_shard"):
        make_shards([10.0 * HOUR], 1, failures, never)
    with pytest.raises(UserError, match=r"a checkpoint takes 10 hours, .* make train.common.checkpoint_every"):
        train(10, HOUR, 20, 1, failures, never)
