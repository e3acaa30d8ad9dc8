"""What sets share, and what their held-out pictures show: the ground that all lots are judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m2m.evaluation.ideal_reader import IdealReader
from m2m.evaluation.measure import Readings
from m2m.evaluation.misses import Thresholds, read_values
from m2m.evaluation.pattern import Lot, Pattern, frequencies
from m2m.world.grammar import parse, picture_captions
from m2m.world.vocabulary import ATTRIBUTES

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
        held_out: Readings,
        nearest_others: NDArray[np.float64],
        classes: Mapping[str, Sequence[str]],
    ) -> Self:
        """From held-out sets.

        Args:
            nearest_others: (sets, N), from each picture to the nearest other one of its set (`misses.nearest_other`).
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

    def lot(self, readings: Readings) -> Lot:
        """What a lot shows, and where it misses."""
        values, confidences = read_of(readings)
        return Lot(values, self.thresholds.misses(confidences, readings.nearest))

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


def read_of(readings: Readings) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Values and confidences of noun, colour and style, (sets, positions, 3)."""
    return read_values([readings.logits[attribute] for attribute in ATTRIBUTES])


def _seen(numbers: Sequence[Mapping[str, int]]) -> NDArray[np.bool_]:
    """Of pictures alone: nothing of what solids and procedures show is a value that a set could share."""
    combinations = np.array(
        [[known[word] for known, word in zip(numbers, one.meaning, strict=True)] for one in picture_captions("train")]
    )
    seen = np.zeros(combinations.max(axis=0) + 1, bool)
    seen[tuple(combinations.T)] = True
    return seen
