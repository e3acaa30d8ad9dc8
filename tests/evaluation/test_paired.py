"""Intervals of differences."""

import numpy as np
import pytest
import torch

from m2m.evaluation.paired import paired_interval


def test_paired_interval_is_that_of_the_mean_difference_over_sets() -> None:
    random = np.random.default_rng(0)
    first = torch.from_numpy(random.random((400, 5)))
    second = first + 0.1 + torch.from_numpy(random.normal(scale=0.2, size=(400, 1)))
    interval = paired_interval(first, second, resamples=4000, seed=1)
    differences = (second - first).mean(1).numpy()
    half = 1.96 * differences.std() / 20
    assert interval.mean == pytest.approx(differences.mean())
    assert interval.low == pytest.approx(differences.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(differences.mean() + half, abs=0.15 * half)


def test_paired_interval_is_a_function_of_its_seed() -> None:
    first, second = torch.rand(30, 2), torch.rand(30, 2)
    assert paired_interval(first, second, resamples=50, seed=1) == paired_interval(first, second, resamples=50, seed=1)
    assert paired_interval(first, second, resamples=50, seed=1) != paired_interval(first, second, resamples=50, seed=2)
