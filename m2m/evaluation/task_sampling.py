"""The pictures that a model draws for a task: test sets of different lengths, each continued to its own end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m2m.data.shards import ImageSet
from m2m.evaluation.kept import read_or_draw
from m2m.evaluation.sampling import Stopwatch, continue_sets
from m2m.params import EvaluateNvs, EvaluateVpg
from m2m.pipeline import M2MPipeline
from m2m.progress import Advance
from m2m.workers import ALONE, Workers

Model = Literal["tuned", "untuned"]
Pictures = list[NDArray[np.uint8]]
"""Of each set, (n, H, W, 3); sets differ in length."""


@dataclass(frozen=True, kw_only=True)
class TaskDraws:
    """Draws with a fine-tuned model, and with the one that it comes from, to continue test sets to their ends."""

    tuned: M2MPipeline
    untuned: M2MPipeline
    members: Sequence[ImageSet]
    params: EvaluateNvs | EvaluateVpg
    folder: Path
    """Where drawn batches are kept; it belongs to these parameters, these models and these sets alone."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    workers: Workers = ALONE

    def pictures(self, given: int) -> int:
        """How many are to be drawn, after so many given ones."""
        return sum(len(member.images) - given for member in self.members)

    def by(self, model: Model, given: int, advance: Advance) -> Pictures:
        """Of each set, in order, the pictures after the given ones."""
        found: dict[int, NDArray[np.uint8]] = {}
        batches = list(self._batches())
        drawn = self.workers.map(partial(self._batch, model, given, advance), batches)
        for places, pictures in zip(batches, drawn, strict=True):
            found |= dict(zip(places, pictures, strict=True))
        return [found[place] for place in range(len(self.members))]

    def _batches(self) -> Iterator[list[int]]:
        """Places of sets of one length each: none is drawn beyond its end."""
        places = sorted(range(len(self.members)), key=self._length)
        for _, group in groupby(places, key=self._length):
            while batch := list(islice(group, self.params.sets_per_batch)):
                yield batch

    def _length(self, place: int) -> int:
        return len(self.members[place].images)

    def _batch(self, model: Model, given: int, advance: Advance, places: Sequence[int]) -> NDArray[np.uint8]:
        path = self.folder / f"{model}-given-{given}-from-{places[0]:06}.npy"
        members = [self.members[place] for place in places]
        pictures, kept = read_or_draw(path, partial(self._draw, model, given, members))
        advance(pictures.shape[0] * pictures.shape[1], skipped=kept)
        return pictures

    def _draw(self, model: Model, given: int, members: Sequence[ImageSet]) -> NDArray[np.uint8]:
        started, total = time.perf_counter(), len(members[0].images)
        pipeline = self.tuned if model == "tuned" else self.untuned
        pictures = continue_sets(pipeline, members, given=given, total=total, params=self.params)
        self.stopwatch.add(time.perf_counter() - started, pictures.shape[0] * pictures.shape[1])
        return pictures
