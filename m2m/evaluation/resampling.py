"""Intervals by resampling captions: sets of one caption are no independent witnesses (bootstrap; Efron, 1979).

A statistic is a function of the captions' weights. It is computed anew from weighted sums in each resample, ratios and
all; equal weights make differences paired.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights (resamples, captions) to values (resamples, …); NaN where a resample does not tell."""

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic of all captions alike, and its 95 % interval; arrays of one shape, () for a single number."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def caption_weights(captions: int, *, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each caption is drawn in each resample: (resamples, captions)."""
    random = np.random.default_rng(seed)
    return random.multinomial(captions, np.full(captions, 1 / captions), size=resamples).astype(np.float64)


def interval(statistic: Statistic, weights: NDArray[np.float64]) -> Estimate:
    """A statistic with the percentile interval of its resamples; those that do not tell are left out."""
    low, high = _quantiles(statistic(weights), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(_point(statistic, weights), low, high)


def difference(more: Statistic, less: Statistic, weights: NDArray[np.float64]) -> Estimate:
    """more − less over the same captions, each resample with the same weights for both."""
    return interval(lambda chosen: more(chosen) - less(chosen), weights)


def spread(statistics: Sequence[Statistic], weights: NDArray[np.float64]) -> Estimate:
    """Largest minus smallest of several statistics, with an interval that holds for all their differences at once.

    A maximum of noisy values lies too high, and so do its resamples. So the interval is not theirs: with a probability
    of 95 % no difference of two statistics is off by more than the quantile of the largest deviation of any, and then
    neither is the largest difference.
    """
    points = np.stack([_point(statistic, weights) for statistic in statistics])  # (statistics, …)
    deviations = np.stack([statistic(weights) for statistic in statistics]) - points[:, None]  # (statistics, R, …)
    (margin,) = _quantiles(deviations.max(axis=0) - deviations.min(axis=0), (LEVEL,))
    value = points.max(axis=0) - points.min(axis=0)
    return Estimate(value, np.maximum(value - margin, 0), value + margin)


def share(hits: NDArray[np.float64], tries: NDArray[np.float64]) -> Statistic:
    """Hits by tries, both summed by caption: (captions, …), or (captions,) tries for all."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return divide(np.tensordot(weights, hits, 1), np.tensordot(weights, _like(tries, hits), 1))

    return statistic


def by_caption(values: NDArray[np.generic], captions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of values (sets, …) over the sets of each caption, numbered from 0: (captions, …)."""
    sums = np.zeros((int(captions.max()) + 1, *values.shape[1:]))
    np.add.at(sums, captions, values.astype(np.float64))
    return sums


def divide(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where the denominator is not above 0: what has no unit says nothing."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _point(statistic: Statistic, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = statistic(np.ones((1, weights.shape[1])))[0]
    return value


def _quantiles(values: NDArray[np.float64], at: Sequence[float]) -> list[NDArray[np.float64]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice encountered")
        return list(np.nanquantile(values, at, axis=0))


def _like(tries: NDArray[np.float64], hits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.broadcast_to(tries.reshape(*tries.shape, *[1] * (hits.ndim - tries.ndim)), hits.shape)
