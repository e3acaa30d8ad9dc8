"""The paper's claim as numbers: does the model read all of its given images, and what do others make of them?

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
from m2m.evaluation.figures import caption_weights, difference, estimated, interval
from m2m.evaluation.observations import Observations, Thresholds, read_values
from m2m.evaluation.pattern import ASPECTS, Lot, Pattern, Sums, aspect, frequencies, numbers_of, pairs
from m2m.params import EvaluateMis
from m2m.world.grammar import ATTRIBUTES, parse, picture_captions

PAINTED = "painted"
REPEATS = 20
"""How often the ideal reader draws: it costs nothing, and its score should not be a matter of luck."""
LEAST_ERROR = 1e-3
"""Of a class network that errs in no held-out picture."""


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
        parsed = [parse(caption) for caption in captions]
        told = [[getattr(caption, attribute) for attribute in ATTRIBUTES] for caption in parsed]
        numbers = [{name: number for number, name in enumerate(classes[attribute])} for attribute in ATTRIBUTES]
        values, confidences = read_of(held_out)
        return cls(
            named=np.array([[word is not None for word in words] for words in told]),
            wanted=np.array(
                [
                    [0 if word is None else known[word] for word, known in zip(words, numbers, strict=True)]
                    for words in told
                ]
            ),
            values=values,
            confidences=confidences,
            nearest=held_out.nearest,
            thresholds=Thresholds.of_held_out(confidences, nearest_others),
            seen=_seen(numbers),
        )

    def lot(self, seen: Observations, sets: int | None = None) -> Lot:
        """What the first sets (all, unless told) of a lot show, and where they miss."""
        values, confidences = read_of(seen)
        return Lot(values[:sets], self.thresholds.misses(confidences, seen.nearest)[:sets])

    def pattern(self, given: int, positions: int, sets: int | None = None) -> Pattern:
        """The first sets (all, unless told), to be continued after `given` pictures.

        Where there are fewer held-out pictures than positions, they are taken again from the first.
        """
        after = [given + place % (self.values.shape[1] - given) for place in range(positions)]
        held_out = Lot(
            self.values[:sets, after],
            self.thresholds.misses(self.confidences[:sets, after], self.nearest[:sets, after]),
        )
        return Pattern(
            named=self.named[:sets],
            wanted=self.wanted[:sets],
            given=self.values[:sets, :given],
            held_out=held_out,
            chance=frequencies(self.seen),
        )

    @cached_property
    def reader(self) -> IdealReader:
        """Who takes a value for another as often as held-out pictures do not show what their caption names."""
        shows = (self.values == self.wanted[:, None])[np.broadcast_to(self.named[:, None], self.values.shape)]
        return IdealReader(self.seen, epsilon=float(np.clip(1 - shows.mean(), LEAST_ERROR, 1 - LEAST_ERROR)))


def read_of(seen: Observations) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Values and confidences of noun, colour and style, (sets, positions, 3)."""
    return read_values([seen.logits[attribute] for attribute in ATTRIBUTES])


def _seen(numbers: Sequence[Mapping[str, int]]) -> NDArray[np.bool_]:
    """Of pictures alone: nothing of what solids and procedures show is a value that a set could share."""
    combinations = np.array(
        [[known[word] for known, word in zip(numbers, one.meaning, strict=True)] for one in picture_captions("train")]
    )
    seen = np.zeros(combinations.max(axis=0) + 1, bool)
    seen[tuple(combinations.T)] = True
    return seen


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
        sums = {
            "": pattern.count(ground.lot(ours[given])),
            "baseline/mis/": pattern.count(pattern.held_out),
            "baseline/copy/": pattern.count(copies(pattern)),
            "baseline/ideal/": ideal(ground, pattern, seed=params.seed),
            **{f"baseline/{name}/": pattern.count(ground.lot(of_given[given])) for name, of_given in baselines.items()},
        }
        weights = caption_weights(sums[""].captions, resamples=params.bootstrap, seed=params.seed)
        for prefix, of_lot in sums.items():
            numbers |= numbers_of(of_lot, weights, given=given, prefix=prefix)
        counted[given] = sums[""]
    for more, less in dict.fromkeys([(params.main, params.given[0]), (params.given[-1], params.main)]):
        if more != less:
            change = difference(counted[more].strict_score, counted[less].strict_score, weights)
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
    for name, of_rival in rivals.items():
        for given, seen in of_rival.items():
            pattern = ground.pattern(given, params.generated, count)
            theirs, same = pattern.count(ground.lot(seen)), pattern.count(ground.lot(ours[given], count))
            weights = caption_weights(theirs.captions, resamples=params.bootstrap, seed=params.seed)
            numbers |= numbers_of(theirs, weights, given=given, prefix=f"baseline/{name}/")
            changes = {
                f"{name}/pattern_score": difference(same.strict_score, theirs.strict_score, weights),
                **{f"{name}/{one}": difference(aspect(same, one), aspect(theirs, one), weights) for one in ASPECTS},
                f"{name}/pairs": difference(pairs(same), pairs(theirs), weights),
                f"held_out-minus-{name}/pairs": difference(pairs(theirs, held_out=True), pairs(theirs), weights),
            }
            for key, change in changes.items():
                numbers |= estimated(f"difference/{key}/given={given}", change)
            if name == PAINTED:
                numbers |= estimated("difference/painted", difference(theirs.strict_score, same.strict_score, weights))
    return numbers


def drift(ground: Ground, long: Observations, params: EvaluateMis) -> dict[str, float]:
    """What a longer continuation keeps by position, and its second half against its first quarter."""
    positions = params.long.generated
    sums = ground.pattern(params.long.given, positions, params.long.sets).count(ground.lot(long))
    weights = caption_weights(sums.captions, resamples=params.bootstrap, seed=params.seed)
    early, late = slice(0, max(positions // 4, 1)), slice(positions // 2, positions)
    kept = [sums.at(part) for part in (late, early)]
    key = f"difference/long/position={late.start + 1}-{late.stop}-minus-1-{early.stop}/kept"
    by_position = numbers_of(sums, weights, given=params.long.given, prefix="long/")
    return {
        **{name: value for name, value in by_position.items() if name.startswith("long/kept/")},
        **estimated(key, difference(aspect(kept[0], "kept"), aspect(kept[1], "kept"), weights)),
        **{
            f"long/kept/position={part.start + 1}-{part.stop}{end}": value
            for part, of_part in zip((late, early), kept, strict=True)
            for end, value in estimated("", interval(aspect(of_part, "kept"), weights)).items()
        },
    }


def copies(pattern: Pattern) -> Lot:
    """The given pictures in turn; each is a copy, and misses."""
    places = np.arange(pattern.held_out.values.shape[1]) % pattern.given.shape[1]
    values = pattern.given[:, places]
    return Lot(values, np.ones(values.shape, bool))


def ideal(ground: Ground, pattern: Pattern, *, seed: int) -> Sums:
    """What the ideal reader would draw, scored like pictures."""
    random = np.random.default_rng(seeds.derive(seed, "ideal reader", pattern.given.shape[1]))
    drawn = ground.reader.draw(pattern.given, pattern.held_out.values.shape[1], random, REPEATS)
    return reduce(add, (pattern.count(Lot.without_misses(values)) for values in drawn))
