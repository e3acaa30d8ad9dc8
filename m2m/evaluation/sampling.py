"""The pictures that a model draws to continue test sets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2m import seeds
from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet
from m2m.diffusion.solvers import make_scheduler
from m2m.evaluation.kept import read_or_draw
from m2m.evaluation.measure import Batch
from m2m.params import DrawingParams, EvaluateMis
from m2m.pipeline import M2MPipeline
from m2m.progress import Advance
from m2m.workers import ALONE, Workers


@dataclass
class Stopwatch:
    """What drawing took a worker; pictures kept from an earlier run do not count."""

    seconds: float = 0.0
    pictures: int = 0
    _lock: Lock = field(default_factory=Lock)

    def add(self, seconds: float, pictures: int) -> None:
        with self._lock:
            self.seconds += seconds
            self.pictures += pictures


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """The first `count` of some sets, continued from their first `given` pictures up to `total`.

    A set's seed depends on its id alone, so neither the batch nor the number of given pictures changes it.
    """

    pipeline: M2MPipeline
    sets: ImageSets
    count: int
    given: int
    total: int
    params: EvaluateMis
    folder: Path
    """Where drawn batches are kept; it belongs to these parameters, this model and these sets alone."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    workers: Workers = ALONE

    @property
    def pictures(self) -> int:
        """How many are to be drawn."""
        return self.count * (self.total - self.given)

    def batches(self, advance: Advance) -> Iterator[Batch]:
        """Captions and drawn pictures (sets, total - given, H, W, 3), in order."""
        size = self.params.sets_per_batch
        blocks = (
            (start, [self.sets[index] for index in range(start, min(start + size, self.count))])
            for start in range(0, self.count, size)
        )
        yield from self.workers.map(partial(self._batch, advance), blocks)

    def first(self, count: int) -> NDArray[np.uint8]:
        """The drawn pictures of the first `count` sets, (count, total - given, H, W, 3)."""
        parts, found = [], 0
        for _, pictures in self.batches(_silently):
            parts.append(pictures)
            found += len(pictures)
            if found >= count:
                break
        return np.concatenate(parts)[:count]

    def _batch(self, advance: Advance, block: tuple[int, Sequence[ImageSet]]) -> Batch:
        start, members = block
        path = self.folder / f"given-{self.given}-from-{start:06}.npy"
        kept = path.exists()
        pictures = read_or_draw(path, partial(self._draw, members))
        advance(pictures.shape[0] * pictures.shape[1], skipped=kept)
        return [member.caption for member in members], pictures

    def _draw(self, members: Sequence[ImageSet]) -> NDArray[np.uint8]:
        started = time.perf_counter()
        pictures = continue_sets(self.pipeline, members, given=self.given, total=self.total, params=self.params)
        self.stopwatch.add(time.perf_counter() - started, pictures.shape[0] * pictures.shape[1])
        return pictures


def continue_sets(
    pipeline: M2MPipeline, members: Sequence[ImageSet], *, given: int, total: int, params: DrawingParams
) -> NDArray[np.uint8]:
    """Draws from the first `given` pictures of some sets up to `total`: (sets, total - given, H, W, 3).

    Views are drawn at the sets' own cameras. A set's seed depends on its id alone.
    """
    scheduler = make_scheduler(params.solver, pipeline.scheduler.config)  # it remembers its own batch
    own = M2MPipeline(**{**pipeline.components, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    result: Any = own(
        [[Image.fromarray(image) for image in member.images[:given]] for member in members],
        total - given,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        context_timestep=params.context_timestep,
        generator=[seeds.derive(params.seed, "evaluate", member.id) for member in members],
        poses=[member.cameras()[:total] for member in members] if own.unet.pose_dim else None,
    )
    return np.stack([np.stack([np.asarray(image) for image in of_set]) for of_set in result.images])


def _silently(count: int = 1, *, skipped: bool = False) -> None:
    """Advances nothing."""
