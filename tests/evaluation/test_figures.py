"""Intervals over captions and over sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m2m.evaluation.figures import (
    by_caption,
    caption_weights,
    curves,
    difference,
    interval,
    paired_interval,
    share,
    spread,
)


def test_weights_are_a_function_of_their_seed_and_draw_as_many_captions_as_there_are() -> None:
    weights = caption_weights(7, resamples=20, seed=1)
    assert weights.shape == (20, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, caption_weights(7, resamples=20, seed=1))
    assert (weights != caption_weights(7, resamples=20, seed=2)).any()


def test_sets_of_one_caption_are_summed() -> None:
    sums = by_caption(np.array([[1, 2], [3, 4], [5, 6]]), np.array([1, 0, 1]))
    assert sums.tolist() == [[3, 4], [6, 8]]


def test_a_share_is_that_of_sums_not_the_mean_of_shares() -> None:
    statistic = share(np.array([[1.0, 0.0], [1.0, 3.0]]), np.array([1.0, 3.0]))
    np.testing.assert_allclose(statistic(np.array([[1.0, 1.0], [2.0, 0.0]])), [[0.5, 0.75], [1, 0]])


def test_sets_of_one_caption_are_no_independent_witnesses() -> None:
    """Ten sets that always agree tell no more than one: the interval covers, though it is wide."""
    covered, widths = 0, []
    for seed in range(200):
        random = np.random.default_rng(seed)
        hits = np.repeat(random.random(50) < 0.4, 10)
        statistic = share(by_caption(hits, np.repeat(np.arange(50), 10)), np.full(50, 10.0))
        estimate = interval(statistic, caption_weights(50, resamples=300, seed=seed))
        covered += bool(estimate.low <= 0.4 <= estimate.high)
        widths.append(estimate.high - estimate.low)
    assert covered >= 180
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.4 * 0.6 / 50), rel=0.1)


def test_differences_are_paired() -> None:
    hard = np.random.default_rng(0).random(200)  # what captions have in common cancels
    tries = np.ones(200)
    weights = caption_weights(200, resamples=500, seed=0)
    estimate = difference(share(hard + 0.1, tries), share(hard, tries), weights)
    np.testing.assert_allclose([estimate.low, estimate.value, estimate.high], 0.1)


def test_resamples_that_do_not_tell_are_left_out() -> None:
    one_of_many = share(np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    estimate = interval(one_of_many, caption_weights(3, resamples=50, seed=0))
    assert (estimate.low, estimate.value, estimate.high) == (1, 1, 1)
    nothing = interval(share(np.zeros(3), np.zeros(3)), caption_weights(3, resamples=5, seed=0))
    assert np.isnan([nothing.low, nothing.value, nothing.high]).all()


def test_the_spread_of_places_that_are_alike_has_zero_in_its_interval_mostly() -> None:
    """Percentiles of the resampled spread itself would lie above zero always."""
    holds, tries = 0, np.full(100, 4.0)
    for seed in range(100):
        random = np.random.default_rng(seed)
        places = [share(random.binomial(4, 0.5, 100).astype(np.float64), tries) for _ in range(5)]
        estimate = spread(places, caption_weights(100, resamples=300, seed=seed))
        assert estimate.value > 0
        holds += bool(estimate.low == 0)
    assert holds >= 88


def test_the_spread_of_places_that_differ_is_found() -> None:
    random, tries = np.random.default_rng(0), np.full(200, 4.0)
    places = [share(random.binomial(4, chance, 200).astype(np.float64), tries) for chance in (0.3, 0.5, 0.6)]
    estimate = spread(places, caption_weights(200, resamples=500, seed=0))
    assert 0.15 < estimate.low < estimate.high < 0.4
    assert estimate.value == pytest.approx((estimate.low + estimate.high) / 2)


def test_paired_interval_is_that_of_the_mean_difference_over_sets() -> None:
    random = np.random.default_rng(0)
    first = torch.from_numpy(random.random((400, 5)))
    second = first + 0.1 + torch.from_numpy(random.normal(scale=0.2, size=(400, 1)))
    interval = paired_interval(first, second, resamples=4000, seed=1)
    differences = (second - first).mean(1).numpy()
    half = 1.96 * differences.std() / 20
    assert interval.value == pytest.approx(differences.mean())
    assert interval.low == pytest.approx(differences.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(differences.mean() + half, abs=0.15 * half)


def test_paired_interval_is_a_function_of_its_seed() -> None:
    first, second = torch.rand(30, 2), torch.rand(30, 2)
    assert paired_interval(first, second, resamples=50, seed=1) == paired_interval(first, second, resamples=50, seed=1)
    assert paired_interval(first, second, resamples=50, seed=1) != paired_interval(first, second, resamples=50, seed=2)


def test_curves_over_positions_are_of_the_model_itself_and_of_one_number_of_given_images() -> None:
    numbers = {"fid/mean": 2.0, "baseline/mis/fid/position/01": 9.0, "long/kept/position/01/given=4": 9.0, "sets": 3}
    numbers |= {"fid/position/01": 1.0, "fid/position/02": 3.0}
    numbers |= {"kept/position/02/given=4": 0.5, "kept/position/02/given=1": 9.0, "kept/noun/given=4": 9.0}
    assert curves(numbers, 4) == {1: {"position/fid": 1.0}, 2: {"position/fid": 3.0, "position/kept": 0.5}}
    views = {"psnr/given=1/view/02": 20.5, "psnr/given=2/view/03": 9.0, "psnr/given=1/angle/000-030": 9.0}
    assert curves(views, 1) == {2: {"position/psnr": 20.5}}
