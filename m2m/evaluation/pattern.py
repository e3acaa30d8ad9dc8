"""Whether a model keeps what the pictures of a set share, and varies what they vary in.

A caption names some of the three attributes; its pictures share those and differ in the others. **Kept** asks of named
attributes whether drawn pictures show the named value; **Free** of the others whether they agree with the given ones,
and with each other, as seldom as held-out pictures do. Either is easy alone: copies keep all, random pictures vary all.
The **pattern score** is the harmonic mean of both, so that only who tells one from the other scores.

Misses (see `observations`) neither keep anything nor vary: a pair with one counts as the same.

Still, who redraws one of n given pictures, shape, colour and style, agrees with them by a mere 1/n too often, and Free
hardly sees it. **Fresh** does: it asks how often a free value is one that no given picture shows. The **strict score**
takes the worse of Free and Fresh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from m2m.evaluation.figures import Statistic, by_caption, divide, estimated, interval, told
from m2m.world.grammar import ATTRIBUTES


@dataclass(frozen=True)
class Lot:
    """What drawn pictures show."""

    values: NDArray[np.int64]
    """(sets, positions, 3), class numbers of noun, colour and style"""
    misses: NDArray[np.bool_]
    """(sets, positions, 3)"""

    @classmethod
    def without_misses(cls, values: NDArray[np.int64]) -> Lot:
        """Of values that no picture stands behind."""
        return cls(values, np.zeros(values.shape, bool))


@dataclass(frozen=True)
class Scores:
    """Shares of what held-out pictures reach, (…, 3), the last axis noun, colour and style; 1 is as good as they."""

    kept: NDArray[np.float64]
    free: NDArray[np.float64]
    fresh: NDArray[np.float64]

    @property
    def by_attribute(self) -> NDArray[np.float64]:
        """Pattern score of each attribute, (…, 3)."""
        return _harmonic(self.kept, self.free)

    @property
    def score(self) -> NDArray[np.float64]:
        """Pattern score, (…)."""
        return _mean(self.by_attribute)

    @property
    def strict(self) -> NDArray[np.float64]:
        """The score that also asks for fresh values, (…)."""
        return _mean(_harmonic(self.kept, np.minimum(self.free, self.fresh)))


@dataclass(frozen=True)
class Sums:
    """What all scores are made of, (captions, positions, 3) each: any weighting of captions is a matrix product."""

    named: NDArray[np.float64]
    """Pictures whose caption names the attribute; then those of them that show the value."""
    kept: NDArray[np.float64]
    kept_by_chance: NDArray[np.float64]
    kept_held_out: NDArray[np.float64]
    given_pairs: NDArray[np.float64]
    """Pairs of a given picture and the one at a position, whose caption leaves the attribute free; then equal ones."""
    given_same: NDArray[np.float64]
    given_same_held_out: NDArray[np.float64]
    drawn_pairs: NDArray[np.float64]
    """Pairs of the picture at a position and another drawn one, of the same captions; then equal ones."""
    drawn_same: NDArray[np.float64]
    drawn_same_held_out: NDArray[np.float64]
    fresh: NDArray[np.float64]
    """Pictures, of the same captions, with a value that no given one shows."""
    fresh_held_out: NDArray[np.float64]
    pairs: NDArray[np.float64]
    """Pairs of the picture at a position and another drawn one, of all captions; then those that agree."""
    agreeing: NDArray[np.float64]
    agreeing_held_out: NDArray[np.float64]

    def __add__(self, other: Sums) -> Sums:
        """Both lots as one, of the same captions: a sampled reader is scored the better, the oftener it draws."""
        return Sums(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def at(self, positions: slice) -> Sums:
        """Of some positions; pairs are still those with all others of the set."""
        return Sums(*(getattr(self, one.name)[:, positions] for one in fields(self)))

    @property
    def captions(self) -> int:
        """How many there are to be weighted."""
        return len(self.named)

    def scores(self, weights: NDArray[np.float64]) -> Scores:
        """Over all positions: weights (resamples, captions) to scores (resamples, 3)."""
        return _scores(self._weighted(weights)._all_positions())

    def by_position(self, weights: NDArray[np.float64]) -> Scores:
        """Weights (resamples, captions) to scores (resamples, positions, 3)."""
        return _scores(self._weighted(weights))

    def score(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pattern score: weights (resamples, captions) to (resamples,)."""
        return self.scores(weights).score

    def strict_score(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Strict score: weights (resamples, captions) to (resamples,)."""
        return self.scores(weights).strict

    def pair_agreement(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of pairs of drawn pictures of a set that agree, by attribute: (resamples, 3).

        Here a pair with a miss does not agree: neither garbage nor copies should look as if pictures went together.
        """
        sums = self._weighted(weights)._all_positions()
        return divide(sums.agreeing, sums.pairs)

    def held_out_pair_agreement(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same of held-out pictures."""
        sums = self._weighted(weights)._all_positions()
        return divide(sums.agreeing_held_out, sums.pairs)

    def _weighted(self, weights: NDArray[np.float64]) -> Sums:
        return Sums(*(np.tensordot(weights, getattr(self, one.name), 1) for one in fields(self)))

    def _all_positions(self) -> Sums:
        return Sums(*(getattr(self, one.name).sum(axis=-2) for one in fields(self)))


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Sets to be continued: what they share, the pictures given of them, and held-out ones that come next.

    Raises:
        ValueError: shapes do not belong together, or there is but one position, which makes no pairs.
    """

    named: NDArray[np.bool_]
    """(sets, 3), whether the caption names noun, colour, style"""
    wanted: NDArray[np.int64]
    """(sets, 3), class numbers; anything where not named"""
    given: NDArray[np.int64]
    """(sets, n, 3), what given pictures show"""
    held_out: Lot
    """(sets, positions, 3)"""
    chance: Sequence[NDArray[np.float64]]
    """Of each attribute, (classes,): how often a picture of the world shows each value"""

    def __post_init__(self) -> None:
        sets, positions, attributes = self.held_out.values.shape
        shapes = {self.named.shape, self.wanted.shape, (len(self.given), attributes)}
        if shapes != {(sets, attributes)} or len(self.chance) != attributes:
            raise ValueError(f"{sorted(shapes)} beside held-out {self.held_out.values.shape}: not of the same sets")
        if positions < 2:
            raise ValueError("one position: expected at least 2, to compare drawn pictures with each other")

    @property
    def captions(self) -> NDArray[np.int64]:
        """(sets,): numbers from 0, equal for sets that share the same, however that is worded."""
        told = np.where(self.named, self.wanted, -1)
        return np.unique(told, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def count(self, drawn: Lot) -> Sums:
        """The sums of a lot beside those of the held-out one.

        Raises:
            ValueError: it is not of these sets and positions.
        """
        if drawn.values.shape != self.held_out.values.shape or drawn.misses.shape != self.held_out.values.shape:
            raise ValueError(f"drawn {drawn.values.shape}, expected {self.held_out.values.shape} as held out")
        sets, positions, attributes = drawn.values.shape
        named = np.broadcast_to(self.named[:, None], drawn.values.shape)  # (sets, positions, 3)
        wanted = np.where(self.named, self.wanted, 0)
        chance = np.stack([self.chance[one][wanted[:, one]] for one in range(attributes)], axis=1)[
            :, None
        ]  # (sets, 1, 3)
        ours, theirs = self._of(drawn), self._of(self.held_out)
        captions = self.captions

        def total(values: NDArray[np.generic]) -> NDArray[np.float64]:
            return by_caption(values, captions)

        return Sums(
            named=total(named),
            kept=total(named * ours.shows),
            kept_by_chance=total(named * chance),
            kept_held_out=total(named * theirs.shows),
            given_pairs=total(~named * self.given.shape[1]),
            given_same=total(~named * ours.given_same),
            given_same_held_out=total(~named * theirs.given_same),
            drawn_pairs=total(~named * (positions - 1)),
            drawn_same=total(~named * ours.drawn_same),
            drawn_same_held_out=total(~named * theirs.drawn_same),
            fresh=total(~named & ours.fresh),
            fresh_held_out=total(~named & theirs.fresh),
            pairs=total(np.full((sets, positions, attributes), positions - 1)),
            agreeing=total(ours.agreeing),
            agreeing_held_out=total(theirs.agreeing),
        )

    def _of(self, lot: Lot) -> _Counts:
        values, misses = lot.values, lot.misses
        repeated = values[:, :, None] == self.given[:, None]  # (sets, positions, n, 3)
        equal = values[:, :, None] == values[:, None]  # (sets, positions, positions, 3)
        spoiled = misses[:, :, None] | misses[:, None]
        other = ~np.eye(values.shape[1], dtype=bool)[:, :, None]
        return _Counts(
            shows=(values == self.wanted[:, None]) & ~misses,
            given_same=(repeated | misses[:, :, None]).sum(axis=2),
            drawn_same=((equal | spoiled) & other).sum(axis=2),
            fresh=~(repeated.any(axis=2) | misses),
            agreeing=(equal & ~spoiled & other).sum(axis=2),
        )


@dataclass(frozen=True)
class _Counts:
    """Of each picture of a lot, (sets, positions, 3) each, whatever its caption names."""

    shows: NDArray[np.bool_]
    given_same: NDArray[np.int64]
    drawn_same: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    agreeing: NDArray[np.int64]


def frequencies(seen: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Of each attribute, (classes,): how often pictures show a value if all combinations of `seen` are as frequent."""
    counts = [seen.sum(axis=tuple(other for other in range(seen.ndim) if other != axis)) for axis in range(seen.ndim)]
    return [count / seen.sum() for count in counts]


def _scores(sums: Sums) -> Scores:
    kept = divide(sums.kept - sums.kept_by_chance, sums.kept_held_out - sums.kept_by_chance)
    # |g − g0| / (1 − g0), both multiplied by the number of pairs; d likewise
    of_given = divide(np.abs(sums.given_same - sums.given_same_held_out), sums.given_pairs - sums.given_same_held_out)
    of_drawn = divide(np.abs(sums.drawn_same - sums.drawn_same_held_out), sums.drawn_pairs - sums.drawn_same_held_out)
    # From below alone: values wider than training's are no laziness, and the two above see them.
    fresh = np.minimum(divide(sums.fresh, sums.fresh_held_out), 1)
    return Scores(kept, 1 - np.maximum(of_given, of_drawn), fresh)


def _harmonic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = a.clip(0, 1), b.clip(0, 1)
    none = (a == 0) & (b == 0)
    return 2 * a * b / np.where(none, 1, a + b)


def _mean(by_attribute: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = by_attribute.mean(axis=-1)
    return mean


ASPECTS: Mapping[str, Callable[[Scores], NDArray[np.float64]]] = {
    "kept": lambda scores: scores.kept,
    "free": lambda scores: scores.free,
    "fresh": lambda scores: scores.fresh,
}


def aspect(sums: Sums, name: str) -> Statistic:
    """One of `ASPECTS`, the mean over attributes."""
    return lambda weights: _mean(ASPECTS[name](sums.scores(weights)))


def pairs(sums: Sums, *, held_out: bool = False) -> Statistic:
    """Share of agreeing pairs of drawn pictures, or of held-out ones, the mean over attributes."""
    return lambda weights: _mean(sums.held_out_pair_agreement(weights) if held_out else sums.pair_agreement(weights))


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
        for place, value in enumerate(_mean(values(places)[0]), start=1):
            numbers[f"{prefix}{name}/position/{place:02}/{at}"] = float(value)
    for attribute, value in zip(ATTRIBUTES, agreeing, strict=True):
        numbers[f"{prefix}pair_agreement/{attribute}/{at}"] = float(value)
    return told(numbers)
