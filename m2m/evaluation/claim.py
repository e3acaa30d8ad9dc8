"""The paper's claim as numbers: does the model read all of its given images, and what do others make of them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from m2m import seeds
from m2m.evaluation.ground import Ground
from m2m.evaluation.measure import Readings
from m2m.evaluation.pattern import Lot, Pattern, Sums
from m2m.evaluation.pattern_numbers import ASPECTS, aspect, estimated, numbers_of, pairs
from m2m.evaluation.resampling import caption_weights, difference, interval
from m2m.params import EvaluateMis

PAINTED = "painted"
REPEATS = 20
"""How often the ideal reader draws: it costs nothing, and its score should not be a matter of luck."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the class network read, by number of given pictures."""

    ours: Mapping[int, Readings]
    baselines: Mapping[str, Mapping[int, Readings]]
    long: Readings | None
    compared: Mapping[str, Mapping[int, Readings]]
    """what was drawn of the first sets alone"""


def pattern_numbers(ground: Ground, read: Read, params: EvaluateMis) -> dict[str, float]:
    """Scores of the model and of what bounds it, after each number of given pictures, and how they differ."""
    numbers: dict[str, float] = {}
    ours: dict[int, Sums] = {}
    for given in params.given:
        pattern = ground.pattern(given, params.generated)
        sums = {
            "": pattern.count(ground.lot(read.ours[given])),
            "baseline/mis/": pattern.count(pattern.held_out),
            "baseline/copy/": pattern.count(copies(pattern)),
            "baseline/ideal/": ideal(ground, pattern, seed=params.seed),
            **{
                f"baseline/{name}/": pattern.count(ground.lot(of_given[given]))
                for name, of_given in read.baselines.items()
            },
        }
        weights = caption_weights(sums[""].captions, resamples=params.bootstrap, seed=params.seed)
        for prefix, of_lot in sums.items():
            numbers |= numbers_of(of_lot, weights, given=given, prefix=prefix)
        ours[given] = sums[""]
    for more, less in dict.fromkeys([(params.main, params.given[0]), (params.given[-1], params.main)]):
        if more != less:
            change = difference(ours[more].strict_score, ours[less].strict_score, weights)
            numbers |= estimated(f"difference/given={more}-minus-{less}", change)
    if read.long is not None:
        numbers |= drift(ground, read.long, params)
    return numbers | rival_numbers(ground, read, params)


def rival_numbers(ground: Ground, read: Read, params: EvaluateMis) -> dict[str, float]:
    """Scores of what is drawn of the first sets alone, and the model's differences from it over the same sets."""
    numbers: dict[str, float] = {}
    count = params.compared.sets
    for name, of_rival in read.compared.items():
        for given, readings in of_rival.items():
            pattern = ground.pattern(given, params.generated, count)
            theirs = pattern.count(ground.lot(readings))
            ours = pattern.count(_first(ground.lot(read.ours[given]), count))
            weights = caption_weights(theirs.captions, resamples=params.bootstrap, seed=params.seed)
            numbers |= numbers_of(theirs, weights, given=given, prefix=f"baseline/{name}/")
            changes = {
                f"{name}/pattern_score": difference(ours.strict_score, theirs.strict_score, weights),
                **{f"{name}/{one}": difference(aspect(ours, one), aspect(theirs, one), weights) for one in ASPECTS},
                f"{name}/pairs": difference(pairs(ours), pairs(theirs), weights),
                f"held_out-minus-{name}/pairs": difference(pairs(theirs, held_out=True), pairs(theirs), weights),
            }
            for key, change in changes.items():
                numbers |= estimated(f"difference/{key}/given={given}", change)
            if name == PAINTED:
                numbers |= estimated("difference/painted", difference(theirs.strict_score, ours.strict_score, weights))
    return numbers


def drift(ground: Ground, long: Readings, params: EvaluateMis) -> dict[str, float]:
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


def _first(lot: Lot, sets: int) -> Lot:
    return Lot(lot.values[:sets], lot.misses[:sets])


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
