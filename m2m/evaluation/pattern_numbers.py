"""The numbers of a lot's pattern: scores by number of given pictures, attribute and position, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from m2m.evaluation.pattern import Scores, Sums
from m2m.evaluation.resampling import Estimate, Statistic, interval
from m2m.world.vocabulary import ATTRIBUTES

ASPECTS: Mapping[str, Callable[[Scores], NDArray[np.float64]]] = {
    "kept": lambda scores: scores.kept,
    "free": lambda scores: scores.free,
    "fresh": lambda scores: scores.fresh,
}


def aspect(sums: Sums, name: str) -> Statistic:
    """One of `ASPECTS`, the mean over attributes."""
    return lambda weights: _over_attributes(ASPECTS[name](sums.scores(weights)))


def pairs(sums: Sums, *, held_out: bool = False) -> Statistic:
    """Share of agreeing pairs of drawn pictures, or of held-out ones, the mean over attributes."""
    return lambda weights: _over_attributes(
        sums.held_out_pair_agreement(weights) if held_out else sums.pair_agreement(weights)
    )


def numbers_of(sums: Sums, weights: NDArray[np.float64], *, given: int, prefix: str = "") -> dict[str, float]:
    """All numbers of a lot that follows `given` pictures; what does not tell is left out."""
    at = f"given={given}"
    numbers = {
        **estimated(f"{prefix}pattern_score/{at}", interval(sums.strict_score, weights)),
        **estimated(f"{prefix}pair_agreement/{at}", interval(pairs(sums), weights)),
    }
    alike = np.ones((1, sums.captions))
    whole, places, agreeing = sums.scores(alike), sums.by_position(alike), sums.pair_agreement(alike)[0]
    for name, values in ASPECTS.items():
        numbers |= estimated(f"{prefix}{name}/{at}", interval(aspect(sums, name), weights))
        for attribute, value in zip(ATTRIBUTES, values(whole)[0], strict=True):
            numbers[f"{prefix}{name}/{attribute}/{at}"] = float(value)
        for place, value in enumerate(_over_attributes(values(places)[0]), start=1):
            numbers[f"{prefix}{name}/position/{place:02}/{at}"] = float(value)
    for attribute, value in zip(ATTRIBUTES, agreeing, strict=True):
        numbers[f"{prefix}pair_agreement/{attribute}/{at}"] = float(value)
    return told(numbers)


def estimated(key: str, estimate: Estimate) -> dict[str, float]:
    """``key`` and its interval, ``key/low`` and ``key/high``; nothing where it does not tell."""
    parts = {key: estimate.value, f"{key}/low": estimate.low, f"{key}/high": estimate.high}
    return told({name: float(value) for name, value in parts.items()})


def told(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those that say something: in a handful of sets it may be that no caption names, or leaves open, an attribute."""
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _over_attributes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = values.mean(axis=-1)
    return mean
