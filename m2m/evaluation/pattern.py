"""The paper's claim as numbers: does a model keep what the pictures of a set share, and vary what they vary in?

A caption names some of the three attributes; its pictures share those and differ in the others. **Kept** asks of named
attributes whether drawn pictures show the named value; **Free** of the others whether they agree with the given ones,
and with each other, as seldom as held-out pictures do. Either is easy alone: copies keep all, random pictures vary all.

Misses (see `networks`) neither keep anything nor vary: a pair with one counts as the same.

Still, who redraws one of n given pictures, shape, colour and style, agrees with them by a mere 1/n too often, and Free
hardly sees it. **Fresh** does: it asks how often a free value is one that no given picture shows. The **pattern score**
is the harmonic mean of Kept and the worse of Free and Fresh, so that only who tells one from the other scores.

All lots are judged on one ground: what sets share, and what their held-out pictures show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m2m import seeds
from m2m.evaluation.baselines import IdealReader
from m2m.evaluation.figures import Statistic, by_caption, caption_weights, difference, divide, estimated, interval, told
from m2m.evaluation.networks import Observations, Thresholds, read_values
from m2m.params import EvaluateMis
from m2m.world.grammar import ATTRIBUTES, parse, picture_captions

ASPECTS = ("kept", "free", "fresh")
COMPARED = {**{one: one for one in ("pattern_score", *ASPECTS)}, "pairs": "pair_agreement"}
"""What numbers call the scores by which rivals are compared."""
PAINTED = "painted"
REPEATS = 20
"""How often the ideal reader draws: it costs nothing, and its score should not be a matter of luck."""
LEAST_ERROR = 1e-3
"""Of a class network that errs in no held-out picture."""

Sums = NDArray[np.float64]
"""What all scores are made of, (14, captions, positions, 3): any weighting of captions is a matrix product.

Five rows of drawn pictures: those whose caption names the attribute and that show the value; where it leaves the
attribute free, equal pairs with a given picture, equal pairs with another drawn one, and pictures with a value that no
given one shows; equal pairs of drawn ones of all captions, here without misses: neither garbage nor copies should look
as if pictures went together. Then the same of held-out pictures, and of how many it could be: named ones that show the
value by chance, free pairs with given pictures, free pairs of drawn ones, all pairs of drawn ones.
"""


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

    def count(self, drawn: Lot) -> Sums:
        """The sums of a lot beside those of the held-out one; sets that share the same count as one caption.

        Raises:
            ValueError: it is not of these sets and positions.
        """
        if drawn.values.shape != self.held_out.values.shape or drawn.misses.shape != self.held_out.values.shape:
            raise ValueError(f"drawn {drawn.values.shape}, expected {self.held_out.values.shape} as held out")
        shape, others = drawn.values.shape, drawn.values.shape[1] - 1
        named = np.broadcast_to(self.named[:, None], shape)  # (sets, positions, 3)
        chance = [of[np.where(self.named, self.wanted, 0)[:, one]] for one, of in enumerate(self.chance)]
        rows = [*self._count(drawn), *self._count(self.held_out), named * np.stack(chance, axis=1)[:, None]]
        rows += [~named * self.given.shape[1], ~named * others, np.full(shape, others)]
        shared = np.where(self.named, self.wanted, -1)
        captions = np.unique(shared, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
        return np.stack([by_caption(row, captions) for row in rows])

    def _count(self, lot: Lot) -> list[NDArray[np.generic]]:
        """Of each picture of a lot, (sets, positions, 3) each."""
        values, misses, named = lot.values, lot.misses, self.named[:, None]
        repeated = values[:, :, None] == self.given[:, None]  # (sets, positions, n, 3)
        equal = values[:, :, None] == values[:, None]  # (sets, positions, positions, 3)
        spoiled = misses[:, :, None] | misses[:, None]
        other = ~np.eye(values.shape[1], dtype=bool)[:, :, None]
        return [
            named & (values == self.wanted[:, None]) & ~misses,
            ~named * (repeated | misses[:, :, None]).sum(axis=2),
            ~named * ((equal | spoiled) & other).sum(axis=2),
            ~named & ~(repeated.any(axis=2) | misses),
            (equal & ~spoiled & other).sum(axis=2),
        ]


def frequencies(seen: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Of each attribute, (classes,): how often pictures show a value if all combinations of `seen` are as frequent."""
    counts = [seen.sum(axis=tuple(other for other in range(seen.ndim) if other != axis)) for axis in range(seen.ndim)]
    return [count / seen.sum() for count in counts]


def scores(sums: Sums, weights: NDArray[np.float64], *, by_position: bool = False) -> dict[str, NDArray[np.float64]]:
    """Shares of what held-out pictures reach, the last axis noun, colour and style; 1 is as good as they.

    Args:
        weights: (resamples, captions).

    Returns:
        `ASPECTS` and ``pattern_score``, and of pairs of drawn pictures the share that agrees, ``pair_agreement``, with
        that of held-out ones, ``held_out_agreement``: (resamples, 3), or (resamples, positions, 3). NaN where nothing
        can be told.
    """
    weighted = np.stack([np.tensordot(weights, row, 1) for row in sums])  # (14, resamples, positions, 3)
    kept, same_given, same_drawn, new, agreeing, *rest = weighted if by_position else weighted.sum(axis=2)
    true_kept, true_given, true_drawn, true_new, true_agreeing, by_chance, pairs_given, pairs_drawn, pairs = rest
    kept = divide(kept - by_chance, true_kept - by_chance)
    # |g − g0| / (1 − g0), both multiplied by the number of pairs; d likewise
    of_given = divide(np.abs(same_given - true_given), pairs_given - true_given)
    of_drawn = divide(np.abs(same_drawn - true_drawn), pairs_drawn - true_drawn)
    free = 1 - np.maximum(of_given, of_drawn)
    # From below alone: values wider than training's are no laziness, and the two above see them.
    fresh = np.minimum(divide(new, true_new), 1)
    a, b = kept.clip(0, 1), np.minimum(free, fresh).clip(0, 1)
    return {
        "kept": kept,
        "free": free,
        "fresh": fresh,
        "pattern_score": 2 * a * b / np.where((a == 0) & (b == 0), 1, a + b),
        "pair_agreement": divide(agreeing, pairs),
        "held_out_agreement": divide(true_agreeing, pairs),
    }


def statistic(sums: Sums, name: str) -> Statistic:
    """One of the `scores`, the mean over attributes: weights (resamples, captions) to (resamples,)."""
    return lambda weights: scores(sums, weights)[name].mean(axis=-1)


def numbers_of(sums: Sums, weights: NDArray[np.float64], *, given: int, prefix: str = "") -> dict[str, float]:
    """All numbers of a lot that follows `given` pictures; what does not tell is left out."""
    numbers: dict[str, float] = {}
    alike, at = np.ones((1, sums.shape[1])), f"given={given}"
    whole, places = scores(sums, alike), scores(sums, alike, by_position=True)
    for name in ("pattern_score", "pair_agreement", *ASPECTS):
        key = f"{prefix}{name}"
        numbers |= estimated(f"{key}/{at}", interval(statistic(sums, name), weights))
        if name != "pattern_score":
            of_attributes = zip(ATTRIBUTES, whole[name][0].tolist(), strict=True)
            numbers |= {f"{key}/{attribute}/{at}": value for attribute, value in of_attributes}
        if name in ASPECTS:
            of_places = enumerate(places[name][0].mean(axis=-1).tolist(), start=1)
            numbers |= {f"{key}/position/{place:02}/{at}": value for place, value in of_places}
    return told(numbers)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Sets whose captions are of the embedded world, and all their pictures as the class network reads them."""

    named: NDArray[np.bool_]
    """(sets, 3), whether the caption names noun, colour, style"""
    wanted: NDArray[np.int64]
    """(sets, 3), class numbers; 0 where not named"""
    values: NDArray[np.int64]
    """(sets, N, 3), what held-out pictures show"""
    confidences: NDArray[np.float64]
    nearest: NDArray[np.float64]
    """(sets, N), the distance to the nearest earlier picture of the set"""
    thresholds: Thresholds
    seen: NDArray[np.bool_]
    """(nouns, colours, styles), the combinations of training"""

    @classmethod
    def of(
        cls,
        captions: Sequence[str],
        held_out: Observations,
        nearest_others: NDArray[np.float64],
        classes: Mapping[str, Sequence[str]],
    ) -> Self:
        """From held-out sets.

        Args:
            nearest_others: (sets, N), from each picture to the nearest other one of its set (`nearest_other`).
            classes: names of the classes of each head.

        Raises:
            UserError: a caption does not parse.
        """
        told_of = [[getattr(caption, attribute) for attribute in ATTRIBUTES] for caption in map(parse, captions)]
        numbers = [{None: 0} | {word: number for number, word in enumerate(classes[one])} for one in ATTRIBUTES]

        def numbered(rows: Sequence[Sequence[str | None]]) -> NDArray[np.int64]:
            return np.array([[known[word] for known, word in zip(numbers, row, strict=True)] for row in rows])

        # Of pictures alone: nothing of what solids and procedures show is a value that a set could share.
        combinations = numbered([one.meaning for one in picture_captions("train")])
        seen = np.zeros(combinations.max(axis=0) + 1, bool)
        seen[tuple(combinations.T)] = True
        values, confidences = read_values(held_out.logits)
        return cls(
            named=np.array([[word is not None for word in row] for row in told_of]),
            wanted=numbered(told_of),
            values=values,
            confidences=confidences,
            nearest=held_out.nearest,
            thresholds=Thresholds.of_held_out(confidences, nearest_others),
            seen=seen,
        )

    def lot(self, seen: Observations, sets: int | None = None) -> Lot:
        """What the first sets (all, unless told) of a lot show, and where they miss."""
        values, confidences = read_values(seen.logits)
        return Lot(values[:sets], self.thresholds.misses(confidences, seen.nearest)[:sets])

    def pattern(self, given: int, positions: int, sets: int | None = None) -> Pattern:
        """The first sets (all, unless told), to be continued after `given` pictures.

        Where there are fewer held-out pictures than positions, they are taken again from the first.
        """
        after = [given + place % (self.values.shape[1] - given) for place in range(positions)]
        misses = self.thresholds.misses(self.confidences, self.nearest)
        return Pattern(
            named=self.named[:sets],
            wanted=self.wanted[:sets],
            given=self.values[:sets, :given],
            held_out=Lot(self.values[:sets, after], misses[:sets, after]),
            chance=frequencies(self.seen),
        )

    @cached_property
    def reader(self) -> IdealReader:
        """Who takes a value for another as often as held-out pictures do not show what their caption names."""
        shows = (self.values == self.wanted[:, None])[np.broadcast_to(self.named[:, None], self.values.shape)]
        return IdealReader(self.seen, epsilon=float(np.clip(1 - shows.mean(), LEAST_ERROR, 1 - LEAST_ERROR)))


def pattern_numbers(
    ground: Ground,
    ours: Mapping[int, Observations],
    baselines: Mapping[str, Mapping[int, Observations]],
    params: EvaluateMis,
) -> dict[str, float]:
    """Scores of the model and of what bounds it, after each number of given pictures, and how they differ."""
    numbers: dict[str, float] = {}
    counted: dict[int, Sums] = {}
    for given in params.given:
        pattern = ground.pattern(given, params.generated)
        copies = pattern.given[:, np.arange(params.generated) % given]  # in turn; each is a copy, and misses
        random = np.random.default_rng(seeds.derive(params.seed, "ideal reader", given))
        drawn = ground.reader.draw(pattern.given, params.generated, random, REPEATS)
        sums = {
            "": pattern.count(ground.lot(ours[given])),
            "baseline/mis/": pattern.count(pattern.held_out),
            "baseline/copy/": pattern.count(Lot(copies, np.ones(copies.shape, bool))),
            # More draws of a reader are one lot: the oftener it draws, the less its score is a matter of luck.
            "baseline/ideal/": reduce(add, (pattern.count(Lot.without_misses(values)) for values in drawn)),
            **{f"baseline/{name}/": pattern.count(ground.lot(of_given[given])) for name, of_given in baselines.items()},
        }
        weights = caption_weights(sums[""].shape[1], resamples=params.bootstrap, seed=params.seed)
        for prefix, of_lot in sums.items():
            numbers |= numbers_of(of_lot, weights, given=given, prefix=prefix)
        counted[given] = sums[""]
    for more, less in dict.fromkeys([(params.main, params.given[0]), (params.given[-1], params.main)]):
        if more != less:
            after, before = (statistic(counted[given], "pattern_score") for given in (more, less))
            change = difference(after, before, weights)
            numbers |= estimated(f"difference/given={more}-minus-{less}", change)
    return numbers


def rival_numbers(
    ground: Ground,
    ours: Mapping[int, Observations],
    rivals: Mapping[str, Mapping[int, Observations]],
    params: EvaluateMis,
) -> dict[str, float]:
    """Scores of what is drawn of the first sets alone, and the model's differences from it over the same sets."""
    numbers: dict[str, float] = {}
    count = params.compared.sets
    for name, given, seen in ((name, *one) for name, of_rival in rivals.items() for one in of_rival.items()):
        pattern = ground.pattern(given, params.generated, count)
        theirs, same = pattern.count(ground.lot(seen)), pattern.count(ground.lot(ours[given], count))
        weights = caption_weights(theirs.shape[1], resamples=params.bootstrap, seed=params.seed)
        numbers |= numbers_of(theirs, weights, given=given, prefix=f"baseline/{name}/")
        for key, score in COMPARED.items():
            change = difference(statistic(same, score), statistic(theirs, score), weights)
            numbers |= estimated(f"difference/{name}/{key}/given={given}", change)
            if name == PAINTED and key == "pattern_score":
                change = difference(statistic(theirs, score), statistic(same, score), weights)
                numbers |= estimated("difference/painted", change)
        gain = difference(statistic(theirs, "held_out_agreement"), statistic(theirs, "pair_agreement"), weights)
        numbers |= estimated(f"difference/held_out-minus-{name}/pairs/given={given}", gain)
    return numbers


def drift(ground: Ground, long: Observations, params: EvaluateMis) -> dict[str, float]:
    """What a longer continuation keeps by position, and its second half against its first quarter."""
    positions, given = params.long.generated, params.long.given
    sums = ground.pattern(given, positions, params.long.sets).count(ground.lot(long))
    weights = caption_weights(sums.shape[1], resamples=params.bootstrap, seed=params.seed)
    parts = (positions // 2, positions), (0, max(positions // 4, 1))
    # Pairs are still those with all others of the set.
    late, early = (statistic(sums[:, :, slice(*part)], "kept") for part in parts)
    names = [f"{start + 1}-{stop}" for start, stop in parts]
    by_position = numbers_of(sums, weights, given=given, prefix="long/")
    return {
        **{name: value for name, value in by_position.items() if name.startswith("long/kept/")},
        **estimated(f"difference/long/position={'-minus-'.join(names)}/kept", difference(late, early, weights)),
        **estimated(f"long/kept/position={names[0]}", interval(late, weights)),
        **estimated(f"long/kept/position={names[1]}", interval(early, weights)),
    }
