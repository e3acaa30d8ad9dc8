"""Probes of the places of given pictures: does it matter which of them comes first?

All are made of pictures of the test sets whose noun, colour and style the class network reads with confidence, and as
their captions say. A probe's pictures change places while the noise stays the same:

- a: four that share one value and differ in the rest, rotated. Nobody should repeat a free value because of its place.
- b: four that share one value, but for an outlier, which goes through the places.
- A, AB, ABBBB: two contents and styles that have nothing in common, A at each place. What follows should go with the
  majority, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2m import seeds
from m2m.data.sets import ImageSet
from m2m.evaluation.baselines import IdealReader
from m2m.evaluation.continuations import Starts
from m2m.evaluation.figures import caption_weights, estimated, interval, share, spread
from m2m.evaluation.pattern import Ground
from m2m.params import EvaluateMis
from m2m.world.grammar import ATTRIBUTES

FOUR = 4
MIXED = {"A": 1, "AB": 2, "ABBBB": 5}
"""How many pictures are given; one is A."""
NOUN, COLOUR, STYLE = range(3)
IDEAL_DRAWS = 64


Values = NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """Some sets of pictures, each in several orders: starts of one set follow each other."""

    starts: tuple[ImageSet, ...]
    given: Values
    """(sets, orders, n, 3), what they show"""
    shared: Values
    """(sets,), the attribute that is shared; of mixed ones anything"""


def probes(ground: Ground, sets: Starts, params: EvaluateMis) -> dict[str, Probe]:
    """All probes, of up to `params.probes.sets` sets each; one for which there are no pictures is left out."""
    named = np.broadcast_to(ground.named[:, None], ground.values.shape)
    shown = (ground.values == ground.wanted[:, None]) | ~named
    sure = ground.confidences >= ground.thresholds.confidence
    where = np.argwhere((shown & sure).all(axis=2))  # (pictures, 2)
    values = ground.values[tuple(where.T)]  # (pictures, 3)
    wanted = {
        "a": _rotated(values, params),
        "b": _with_outlier(values, params),
        **{name: _mixed(values, params, count) for name, count in MIXED.items()},
        "content": _of_one_content(values, params),
    }
    made = {}
    for name, rows in ((name, list(rows)) for name, rows in wanted.items()):
        starts = [
            ImageSet(
                id=f"places-{name}-{number}",
                caption="",
                images=np.stack([sets[index].images[place] for index, place in where[order].tolist()]),
            )
            for number, (_, orders) in enumerate(rows)
            for order in orders
        ]
        if rows:
            given = values[np.array([orders for _, orders in rows])]
            made[name] = Probe(tuple(starts), given, np.array([axis for axis, _ in rows]))
    return made


def place_numbers(
    made: Mapping[str, Probe], drawn: Mapping[str, NDArray[np.int64]], reader: IdealReader, params: EvaluateMis
) -> dict[str, float]:
    """Flat numbers of all probes.

    Args:
        drawn: by probe, what drawn pictures show, (starts, generated, 3).
    """
    numbers: dict[str, float] = {}
    ordered = {name: drawn[name].reshape(*one.given.shape[:2], *drawn[name].shape[1:]) for name, one in made.items()}
    for name, hits_of in (("a", repeated), ("b", kept_beside_outlier)):
        if name in made:
            hits, tries = hits_of(made[name], ordered[name])
            weights = caption_weights(len(hits), resamples=params.bootstrap, seed=params.seed)
            shares = [share(hits[:, place], tries) for place in range(FOUR)]
            for place, one in enumerate(shares, start=1):
                numbers |= estimated(f"places/{name}/{place}", interval(one, weights))
            numbers |= estimated(f"places/{name}/spread", spread(shares, weights))
            numbers[f"places/{name}/sets"] = len(hits)
    for name in MIXED:
        if name in made:
            numbers |= _mixed_numbers(name, made[name].given, ordered[name], reader, params)
    return numbers


def repeated(probe: Probe, drawn: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probe a: how often drawn pictures show the free value of the picture at each place, (sets, places), and tries.

    Args:
        drawn: (sets, orders, generated, 3).
    """
    same = drawn[:, :, :, None] == probe.given[:, :, None]  # (sets, orders, generated, places, 3)
    free = np.arange(3) != probe.shared[:, None]  # (sets, 3)
    hits = (same & free[:, None, None, None]).sum(axis=(1, 2, 4))
    tries = np.full(len(hits), drawn.shape[1] * drawn.shape[2] * 2)
    return hits.astype(np.float64), tries.astype(np.float64)


def kept_beside_outlier(probe: Probe, drawn: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probe b: how often drawn pictures keep the shared value, by the outlier's place, (sets, places), and tries."""
    # The outlier of the first order comes first, so that any other picture there shows what is shared.
    common = np.take_along_axis(probe.given[:, 0, 1], probe.shared[:, None], axis=1)  # (sets, 1)
    shown = np.take_along_axis(drawn, probe.shared[:, None, None, None], axis=3)[..., 0]  # (sets, orders, generated)
    hits = (shown == common[:, None]).sum(axis=2)
    return hits.astype(np.float64), np.full(len(hits), drawn.shape[2], np.float64)


def _mixed_numbers(
    name: str, given: Values, drawn: Values, reader: IdealReader, params: EvaluateMis
) -> dict[str, float]:
    numbers: dict[str, float] = {}
    weights = caption_weights(len(drawn), resamples=params.bootstrap, seed=params.seed)
    random = np.random.default_rng(seeds.derive(params.seed, "ideal reader", name))
    for order in range(drawn.shape[1]):
        here = given[:, order]  # (sets, n, 3)
        whose = {"a": here[:, order]} | ({"b": here[:, order - 1]} if here.shape[1] > 1 else {})
        expected = reader.draw(here, IDEAL_DRAWS, random)[0]  # (sets, IDEAL_DRAWS, 3)
        for letter, values in whose.items():
            key = f"probe/{name}/at={order + 1}/{letter}"
            for prefix, of_drawn in (("", drawn[:, order]), ("baseline/ideal/", expected)):
                same = of_drawn == values[:, None]  # (sets, generated, 3)
                shown = {
                    **dict(zip(ATTRIBUTES, np.moveaxis(same, 2, 0), strict=True)),
                    "content": same[..., :STYLE].all(2),
                }
                for aspect, hits in shown.items():
                    each = share(hits.sum(axis=1).astype(np.float64), np.full(len(hits), float(hits.shape[1])))
                    numbers |= estimated(f"{prefix}{key}/{aspect}", interval(each, weights))
            for attribute, odds in zip(ATTRIBUTES, reader.shows(here, values).mean(axis=0), strict=True):
                numbers[f"baseline/ideal/{key}/{attribute}"] = float(odds)
    return numbers


_Rows = Iterator[tuple[int, list[list[int]]]]
"""Of each set the shared attribute, and its pictures in each order."""


def _different(
    values: Values, shared: Mapping[int, int], count: int, random: np.random.Generator, avoid: Sequence[int] = ()
) -> list[int]:
    """Pictures that show the shared values and differ from each other in all else; fewer if there are no more.

    Args:
        values: (pictures, 3), what all show.
        shared: attribute -> value.
        avoid: pictures from which they differ in all else too.
    """
    found: list[int] = []
    fits = (values[:, list(shared)] == list(shared.values())).all(axis=1)
    free = [axis for axis in range(3) if axis not in shared]
    for number in random.permutation(np.flatnonzero(fits)).tolist():
        if not (values[[*avoid, *found]][:, free] == values[number, free]).any():
            found.append(number)
        if len(found) == count:
            break
    return found


def _rotated(values: Values, params: EvaluateMis) -> _Rows:
    for axis, four, _ in _quartets(values, params, "a", FOUR):
        yield axis, [four[turn:] + four[:turn] for turn in range(FOUR)]


def _with_outlier(values: Values, params: EvaluateMis) -> _Rows:
    for axis, three, random in _quartets(values, params, "b", FOUR - 1):
        for outlier in _different(values, {}, 1, random, three):
            yield axis, [[*three[:place], outlier, *three[place:]] for place in range(FOUR)]


def _mixed(values: Values, params: EvaluateMis, count: int) -> _Rows:
    _, kinds, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    groups = [np.flatnonzero(kinds.reshape(-1) == one) for one in np.flatnonzero(counts >= max(MIXED.values()) - 1)]
    for number in range(params.probes.sets if groups else 0):
        random = np.random.default_rng(seeds.derive(params.seed, "places", "mixed", number))
        b = random.permutation(groups[int(random.integers(len(groups)))]).tolist()
        for a in _different(values, {}, 1, random, b[:1]):
            yield NOUN, [[*b[:place], a, *b[place : count - 1]] for place in range(count)]


def _of_one_content(values: Values, params: EvaluateMis) -> _Rows:
    """For the picture of examples: one noun and colour in four styles."""
    contents = np.unique(values[:, :STYLE], axis=0)
    random, found = np.random.default_rng(seeds.derive(params.seed, "places", "content")), 0
    for noun, colour in random.permutation(contents).tolist():
        four = _different(values, {NOUN: noun, COLOUR: colour}, FOUR, random)
        if found < min(params.gallery_sets, params.probes.sets) and len(four) == FOUR:
            found += 1
            yield STYLE, [four]


def _quartets(
    values: Values, params: EvaluateMis, name: str, count: int
) -> Iterator[tuple[int, list[int], np.random.Generator]]:
    for number in range(params.probes.sets):
        random, axis = np.random.default_rng(seeds.derive(params.seed, "places", name, number)), number % 3
        for value in random.permutation(np.unique(values[:, axis])).tolist():
            found = _different(values, {axis: value}, count, random)
            if len(found) == count:
                yield axis, found, random
                break
