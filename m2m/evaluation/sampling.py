"""The pictures that a model draws to continue sets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2m import seeds
from m2m.data.shards import ImageSet
from m2m.diffusion.sampler import make_scheduler
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


class Starts(Protocol):
    """Sets to be continued, which need not be in memory all at once."""

    def __getitem__(self, index: int, /) -> ImageSet: ...


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """The first `count` of some sets, continued from their first `given` pictures by `generated` ones.

    A set's seed depends on its id alone, so neither the batch nor the number of given pictures changes it.
    """

    name: str
    """Of the lot, in the names of kept files."""
    pipeline: M2MPipeline
    starts: Starts
    count: int
    given: int
    generated: int
    params: EvaluateMis
    folder: Path
    """Where drawn batches are kept; it belongs to these parameters, this model and these sets alone."""
    independent: bool = False
    """Each drawn picture reads the given ones only, none that was drawn before; its noise stays the same."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    workers: Workers = ALONE

    @property
    def pictures(self) -> int:
        """How many are to be drawn."""
        return self.count * self.generated

    def batches(self, advance: Advance) -> Iterator[Batch]:
        """Given and drawn pictures of all sets, in order."""
        size = self.params.sets_per_batch
        blocks = (
            (start, [self.starts[index] for index in range(start, min(start + size, self.count))])
            for start in range(0, self.count, size)
        )
        yield from self.workers.map(partial(self._batch, advance), blocks)

    def first(self, count: int) -> NDArray[np.uint8]:
        """The drawn pictures of the first `count` sets, (count, generated, H, W, 3)."""
        parts, found = [], 0
        for batch in self.batches(silently):
            parts.append(batch.images)
            found += len(batch.images)
            if found >= count:
                break
        return np.concatenate(parts)[:count]

    def _batch(self, advance: Advance, block: tuple[int, Sequence[ImageSet]]) -> Batch:
        start, members = block
        path = self.folder / f"{self.name}-from-{start:06}.npy"
        pictures, kept = read_or_draw(path, partial(self._draw, members))
        advance(pictures.shape[0] * pictures.shape[1], skipped=kept)
        given = np.stack([member.images[: self.given] for member in members])
        return Batch([member.caption for member in members], given, pictures)

    def _draw(self, members: Sequence[ImageSet]) -> NDArray[np.uint8]:
        started = time.perf_counter()
        if self.independent:
            each = [
                _draw(self.pipeline, members, given=self.given, images=1, params=self.params, place=place)
                for place in range(self.generated)
            ]
            pictures = np.concatenate(each, axis=1)
        else:
            pictures = _draw(self.pipeline, members, given=self.given, images=self.generated, params=self.params)
        self.stopwatch.add(time.perf_counter() - started, pictures.shape[0] * pictures.shape[1])
        return pictures


def continue_sets(
    pipeline: M2MPipeline, members: Sequence[ImageSet], *, given: int, total: int, params: DrawingParams
) -> NDArray[np.uint8]:
    """Draws from the first `given` pictures of some sets up to `total`: (sets, total - given, H, W, 3).

    Views are drawn at the sets' own cameras. A set's seed depends on its id alone.
    """
    return _draw(pipeline, members, given=given, images=total - given, params=params)


def _draw(
    pipeline: M2MPipeline,
    members: Sequence[ImageSet],
    *,
    given: int,
    images: int,
    params: DrawingParams,
    place: int | None = None,
) -> NDArray[np.uint8]:
    """Pictures (sets, images, H, W, 3) that follow the given ones.

    Args:
        place: whose noise a single picture starts from: that of the one that would be drawn there.
    """
    scheduler = make_scheduler(params.solver, pipeline.scheduler.config)  # it remembers its own batch
    own = M2MPipeline(**{**pipeline.components, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    set_seeds = [seeds.derive(params.seed, "evaluate", member.id) for member in members]
    noise = None
    if place is not None:
        generators = [seeds.generator(seed, "image", place) for seed in set_seeds]
        noise = seeds.normal(own.latent_shape, *generators)[:, None]
    result: Any = own(
        [[Image.fromarray(image) for image in member.images[:given]] for member in members],
        images,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        context_timestep=params.context_timestep,
        generator=set_seeds,
        latents=noise,
        poses=[member.cameras()[: given + images] for member in members] if own.unet.pose_dim else None,
    )
    return np.stack([np.stack([np.asarray(image) for image in of_set]) for of_set in result.images])


def silently(count: int = 1, *, skipped: bool = False) -> None:
    """Advances nothing."""
