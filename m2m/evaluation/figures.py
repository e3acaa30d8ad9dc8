"""Flat numbers, with intervals, and the files that hold them: the same bytes for the same numbers.

Intervals are by resampling captions: sets of one caption are no independent witnesses (bootstrap; Efron, 1979). A
statistic is a function of the captions' weights. It is computed anew from weighted sums in each resample, ratios and
all; equal weights make differences paired.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from m2m.errors import UserError
from m2m.params import GateParams

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights (resamples, captions) to values (resamples, …); NaN where a resample does not tell."""

LEVEL = 0.95
Number = float | int | str
DETAILS = "details.json"
"""All numbers, beside the plots; the numbers file holds the headlines alone."""


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

    of_captions = tries.reshape(*tries.shape, *[1] * (hits.ndim - tries.ndim))
    return lambda weights: divide(np.tensordot(weights, hits, 1), np.tensordot(weights, of_captions, 1))


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


def paired_interval(first: Tensor, second: Tensor, *, resamples: int, seed: int) -> Estimate:
    """Mean of second − first over the same sets, with a percentile bootstrap over sets (Efron, 1979).

    Args:
        first, second: (sets, positions) at the same positions.
        resamples: bootstrap samples.
        seed: of their drawing.
    """
    differences = (second.double().mean(dim=1) - first.double().mean(dim=1)).cpu().numpy()
    chosen = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.quantile(differences[chosen].mean(axis=1), (0.025, 0.975))
    return Estimate(differences.mean(), low, high)


def estimated(key: str, estimate: Estimate, *, mean: str = "") -> dict[str, float]:
    """``key`` and its interval, ``key/low`` and ``key/high``; nothing where it does not tell.

    Args:
        mean: what ends the key of the value itself.
    """
    parts = {f"{key}{mean}": estimate.value, f"{key}/low": estimate.low, f"{key}/high": estimate.high}
    return told({name: float(value) for name, value in parts.items()})


def told(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those that say something: in a handful of sets it may be that no caption names, or leaves open, an attribute."""
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def by_position(name: str, values: Sequence[float]) -> dict[str, float]:
    """One metric's mean and (population) standard deviation over positions, and each position's value."""
    positions = {f"{name}/position/{position:02}": value for position, value in enumerate(values, start=1)}
    return {f"{name}/mean": float(np.mean(values)), f"{name}/std": float(np.std(values)), **positions}


def curves(numbers: Mapping[str, Number], given: int) -> dict[int, dict[str, float]]:
    """Of the model itself, what is measured at each position or view: curves ``position/NAME`` for a tracker.

    Args:
        given: how many given pictures they follow, of what is measured after several numbers of them.
    """
    places: dict[int, dict[str, float]] = {}
    for key, value in numbers.items():
        found = re.fullmatch(r"(\w+)(?:/given=(\d+))?/(?:position|view)/(\d+)(?:/given=(\d+))?", key)
        if found and isinstance(value, float):
            name, after, place = found[1], found[2] or found[4], int(found[3])
            if after in (None, str(given)):
                places.setdefault(place, {})[f"position/{name}"] = value
    return places


def require_gate(gate: GateParams, measured: Mapping[str, float], *, task: str) -> None:
    """Raises unless the figures that decide on the champion are among the measured ones, and not of the test.

    Raises:
        UserError: it is not; names the parameter, and what could stand there.
    """
    known = sorted(name for name in measured if name.startswith("validation/"))
    for part, metric in (("metric", gate.metric), *(("require", name) for name in gate.require)):
        if metric not in known:
            raise UserError(
                f"evaluate.{task}.gate.{part} is {metric}, which is not measured on validation sets; take one of "
                f"{', '.join(known)}"
            )


def to_json(numbers: Mapping[str, Number]) -> bytes:
    """Sorted JSON; measured numbers to six digits, more than they are worth."""
    rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in numbers.items()}
    return (json.dumps(rounded, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table for DVC's plots; fractions to six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return text.getvalue().encode()
