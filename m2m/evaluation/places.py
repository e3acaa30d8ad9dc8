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
from m2m.evaluation.claim import Ground
from m2m.evaluation.continuations import Starts
from m2m.evaluation.figures import caption_weights, estimated, interval, share, spread
from m2m.params import EvaluateMis
from m2m.world.grammar import ATTRIBUTES

FOUR = 4
MIXED = {"A": 1, "AB": 2, "ABBBB": 5}
"""How many pictures are given; one is A."""
NOUN, COLOUR, STYLE = range(3)
IDEAL_DRAWS = 64


@dataclass(frozen=True)
class Probe:
    """Some sets of pictures, each in several orders: starts of one set follow each other."""

    name: str
    starts: tuple[ImageSet, ...]
    given: NDArray[np.int64]
    """(sets, orders, n, 3), what they show"""
    shared: NDArray[np.int64]
    """(sets,), the attribute that is shared; of mixed ones anything"""

    @property
    def count(self) -> int:
        """How many starts there are."""
        return len(self.starts)


class Pool:
    """Pictures of which it is known what they show."""

    def __init__(self, ground: Ground, sets: Starts) -> None:
        named = np.broadcast_to(ground.named[:, None], ground.values.shape)
        shown = (ground.values == ground.wanted[:, None]) | ~named
        sure = ground.confidences >= ground.thresholds.confidence
        self._where = np.argwhere((shown & sure).all(axis=2))  # (pictures, 2)
        self.values = ground.values[tuple(self._where.T)]  # (pictures, 3)
        self._sets = sets

    def image(self, number: int) -> NDArray[np.uint8]:
        """(H, W, 3)."""
        index, place = self._where[number]
        image: NDArray[np.uint8] = self._sets[int(index)].images[place]
        return image

    def sharing(
        self, shared: Mapping[int, int], count: int, random: np.random.Generator, avoid: Sequence[int] = ()
    ) -> list[int]:
        """Pictures that show the shared values and differ from each other in all else; fewer if there are no more.

        Args:
            shared: attribute -> value.
            avoid: pictures from which they differ in all else too.
        """
        fits = np.all([self.values[:, axis] == value for axis, value in shared.items()], axis=0)
        return self._different(
            np.flatnonzero(fits), [axis for axis in range(3) if axis not in shared], count, random, avoid
        )

    def outlier(self, among: Sequence[int], random: np.random.Generator) -> list[int]:
        """A picture that differs from others in everything, if there is one."""
        return self._different(np.arange(len(self.values)), range(3), 1, random, among)

    def alike(self, count: int) -> list[NDArray[np.int64]]:
        """Of each noun, colour and style that so many pictures show: their numbers."""
        _, kind = np.unique(self.values, axis=0, return_inverse=True)
        groups = [np.flatnonzero(kind.reshape(-1) == one) for one in range(int(kind.max(initial=-1)) + 1)]
        return [group for group in groups if len(group) >= count]

    def _different(
        self,
        candidates: NDArray[np.int64],
        axes: Sequence[int],
        count: int,
        random: np.random.Generator,
        avoid: Sequence[int],
    ) -> list[int]:
        found: list[int] = []
        for number in random.permutation(candidates).tolist():
            others = self.values[[*avoid, *found]][:, list(axes)]
            if not (others == self.values[number, list(axes)]).any():
                found.append(number)
            if len(found) == count:
                break
        return found


def probes(ground: Ground, sets: Starts, params: EvaluateMis) -> dict[str, Probe]:
    """All probes, of up to `params.probes.sets` sets each; one for which there are no pictures is left out."""
    pool = Pool(ground, sets)
    wanted = {
        "a": _rotated(pool, params),
        "b": _with_outlier(pool, params),
        **{name: _mixed(pool, params, name) for name in MIXED},
        "content": _of_one_content(pool, params),
    }
    listed = {name: list(rows) for name, rows in wanted.items()}
    return {name: _probe(pool, name, rows) for name, rows in listed.items() if rows}


def place_numbers(
    made: Mapping[str, Probe], drawn: Mapping[str, NDArray[np.int64]], reader: IdealReader, params: EvaluateMis
) -> dict[str, float]:
    """Flat numbers of all probes.

    Args:
        drawn: by probe, what drawn pictures show, (starts, generated, 3).
    """
    numbers: dict[str, float] = {}
    for name, hits_of in (("a", repeated), ("b", kept_beside_outlier)):
        if name not in made:
            continue
        probe = made[name]
        hits, tries = hits_of(probe, _ordered(probe, drawn[name]))
        weights = caption_weights(len(hits), resamples=params.bootstrap, seed=params.seed)
        shares = [share(hits[:, place], tries) for place in range(FOUR)]
        for place, one in enumerate(shares, start=1):
            numbers |= estimated(f"places/{name}/{place}", interval(one, weights))
        numbers |= estimated(f"places/{name}/spread", spread(shares, weights))
        numbers[f"places/{name}/sets"] = len(hits)
    for name in MIXED:
        if name in made:
            numbers |= _mixed_numbers(made[name], _ordered(made[name], drawn[name]), reader, params)
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
    rows = np.arange(len(drawn))
    common = probe.given[rows, 0, 1, probe.shared]  # the outlier of the first order comes first
    shown = drawn[
        rows[:, None, None], np.arange(drawn.shape[1])[:, None], np.arange(drawn.shape[2]), probe.shared[:, None, None]
    ]
    hits = (shown == common[:, None, None]).sum(axis=2)
    return hits.astype(np.float64), np.full(len(hits), drawn.shape[2], np.float64)


def _mixed_numbers(
    probe: Probe, drawn: NDArray[np.int64], reader: IdealReader, params: EvaluateMis
) -> dict[str, float]:
    numbers: dict[str, float] = {}
    weights = caption_weights(len(drawn), resamples=params.bootstrap, seed=params.seed)
    random = np.random.default_rng(seeds.derive(params.seed, "ideal reader", probe.name))
    for order in range(drawn.shape[1]):
        given = probe.given[:, order]  # (sets, n, 3)
        whose = {"a": given[:, order]} | ({"b": given[:, order - 1]} if given.shape[1] > 1 else {})
        expected = reader.draw(given, IDEAL_DRAWS, random)[0]  # (sets, IDEAL_DRAWS, 3)
        for letter, values in whose.items():
            key = f"probe/{probe.name}/at={order + 1}/{letter}"
            for prefix, of_drawn in (("", drawn[:, order]), ("baseline/ideal/", expected)):
                for aspect, hits in _shown(of_drawn, values).items():
                    each = share(hits.sum(axis=1).astype(np.float64), np.full(len(hits), float(hits.shape[1])))
                    numbers |= estimated(f"{prefix}{key}/{aspect}", interval(each, weights))
            for attribute, odds in zip(ATTRIBUTES, reader.shows(given, values).mean(axis=0), strict=True):
                numbers[f"baseline/ideal/{key}/{attribute}"] = float(odds)
    return numbers


def _shown(drawn: NDArray[np.int64], values: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    same = drawn == values[:, None]  # (sets, generated, 3)
    singly = {attribute: same[..., axis] for axis, attribute in enumerate(ATTRIBUTES)}
    return {**singly, "content": same[..., NOUN] & same[..., COLOUR]}


_Rows = Iterator[tuple[int, list[list[int]]]]
"""Of each set the shared attribute, and its pictures in each order."""


def _rotated(pool: Pool, params: EvaluateMis) -> _Rows:
    for axis, four, _ in _quartets(pool, params, "a", FOUR):
        yield axis, [[four[(place + turn) % FOUR] for place in range(FOUR)] for turn in range(FOUR)]


def _with_outlier(pool: Pool, params: EvaluateMis) -> _Rows:
    for axis, three, random in _quartets(pool, params, "b", FOUR - 1):
        for outlier in pool.outlier(three, random):
            yield axis, [[*three[:place], outlier, *three[place:]] for place in range(FOUR)]


def _mixed(pool: Pool, params: EvaluateMis, name: str) -> _Rows:
    groups, others = pool.alike(max(MIXED.values()) - 1), MIXED[name] - 1
    for number in range(params.probes.sets if groups else 0):
        random = np.random.default_rng(seeds.derive(params.seed, "places", "mixed", number))
        b = random.permutation(groups[int(random.integers(len(groups)))]).tolist()
        for a in pool.outlier(b[:1], random):
            yield NOUN, [[*b[:place], a, *b[place:others]] for place in range(others + 1)]


def _of_one_content(pool: Pool, params: EvaluateMis) -> _Rows:
    """For the picture of examples: one noun and colour in four styles."""
    contents = np.unique(pool.values[:, :STYLE], axis=0)
    random, found = np.random.default_rng(seeds.derive(params.seed, "places", "content")), 0
    for noun, colour in random.permutation(contents).tolist():
        four = pool.sharing({NOUN: noun, COLOUR: colour}, FOUR, random)
        if found < min(params.gallery_sets, params.probes.sets) and len(four) == FOUR:
            found += 1
            yield STYLE, [four]


def _quartets(
    pool: Pool, params: EvaluateMis, name: str, count: int
) -> Iterator[tuple[int, list[int], np.random.Generator]]:
    for number in range(params.probes.sets):
        random, axis = np.random.default_rng(seeds.derive(params.seed, "places", name, number)), number % 3
        for value in random.permutation(np.unique(pool.values[:, axis])).tolist():
            found = pool.sharing({axis: value}, count, random)
            if len(found) == count:
                yield axis, found, random
                break


def _probe(pool: Pool, name: str, rows: Sequence[tuple[int, list[list[int]]]]) -> Probe:
    starts = [
        ImageSet(id=f"places-{name}-{number}", caption="", images=np.stack([pool.image(one) for one in order]))
        for number, (_, orders) in enumerate(rows)
        for order in orders
    ]
    given = pool.values[np.array([orders for _, orders in rows])]  # (sets, orders, n, 3)
    return Probe(name, tuple(starts), given, np.array([axis for axis, _ in rows]))


def _ordered(probe: Probe, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    return drawn.reshape(*probe.given.shape[:2], *drawn.shape[1:])
