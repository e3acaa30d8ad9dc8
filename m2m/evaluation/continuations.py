"""The pictures that a model draws to continue sets, kept while an evaluation may still need them.

A killed evaluation goes on where it was. Neither the sets nor what is drawn of them is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

from m2m import seeds
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.diffusion.sampler import make_scheduler
from m2m.evaluation.figures import Number
from m2m.evaluation.networks import Batch, Networks
from m2m.files import is_intact, sealed_file, write_atomically
from m2m.manifest import Manifest, Split
from m2m.params import DrawingParams
from m2m.pipeline import M2MPipeline
from m2m.progress import Advance, progress
from m2m.runtime import Runtime
from m2m.workers import ALONE, Workers

RUN = "run"
Asked = TypeVar("Asked", bound=DrawingParams)

_log = logging.getLogger(__name__)


class Starts(Protocol):
    """Sets to be continued, which need not be in memory all at once."""

    def __getitem__(self, index: int, /) -> ImageSet: ...


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """The first `count` of some sets, continued from their first `given` pictures by `generated` ones or to their ends.

    Views are drawn at the sets' own cameras. A set's seed depends on its id alone, so neither the batch nor the number
    of given pictures changes it.
    """

    name: str
    """In the names of kept files."""
    pipeline: M2MPipeline
    starts: Starts
    count: int
    given: int
    generated: int | None = None
    """None: each set is continued to its own end."""
    params: DrawingParams
    folder: Path
    """Where drawn batches are kept; it belongs to these parameters, these models and these sets alone."""
    timed: list[tuple[float, int]] = field(default_factory=list)
    """Seconds that drawing a batch took a worker, and its pictures; those kept from an earlier run do not count."""
    workers: Workers = ALONE

    @property
    def pictures(self) -> int:
        """How many are to be drawn."""
        return sum(self._lengths)

    @cached_property
    def _lengths(self) -> Sequence[int]:
        """How many pictures are drawn of each set."""
        if self.generated is not None:
            return [self.generated] * self.count
        return [len(self.starts[place].images) - self.given for place in range(self.count)]

    @cached_property
    def _blocks(self) -> Sequence[Sequence[int]]:
        """Places of the sets of each batch, which are of one length: none is drawn beyond its end."""
        length = self._lengths.__getitem__
        groups = [[*group] for _, group in groupby(sorted(range(self.count), key=length), length)]
        step = self.params.sets_per_batch
        return [group[start : start + step] for group in groups for start in range(0, len(group), step)]

    def batches(self, advance: Advance) -> Iterator[Batch]:
        """Given and drawn pictures of all sets, the shorter ones first, else in order."""
        blocks = ((places, [self.starts[place] for place in places]) for places in self._blocks)
        yield from self.workers.map(partial(self._batch, advance), blocks)

    def draw(self, advance: Advance) -> None:
        """Draws what is not kept yet."""
        for _ in self.batches(advance):
            pass

    def by_set(self) -> Iterator[NDArray[np.uint8]]:
        """Of each set, in order, the pictures (n, H, W, 3) that were drawn, from where they are kept."""
        where = {place: (block, row) for block in self._blocks for row, place in enumerate(block)}
        for block, row in map(where.__getitem__, range(self.count)):
            yield np.array(np.load(self._path(block), mmap_mode="r", allow_pickle=False)[row])

    def rows(self, count: int) -> list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        """Of the first sets, as many as there are, captions, given pictures and what was drawn."""
        found = [(self.starts[place], drawn) for place, drawn in zip(range(count), self.by_set(), strict=False)]
        return [(one.caption, one.images[: self.given], drawn) for one, drawn in found]

    def _path(self, places: Sequence[int]) -> Path:
        return self.folder / f"{self.name}-from-{places[0]:06}.npy"

    def _batch(self, advance: Advance, block: tuple[Sequence[int], Sequence[ImageSet]]) -> Batch:
        places, members = block
        pictures, kept = read_or_draw(self._path(places), partial(self._draw, members, self._lengths[places[0]]))
        advance(pictures.shape[0] * pictures.shape[1], skipped=kept)
        given = np.stack([member.images[: self.given] for member in members])
        return Batch([member.caption for member in members], given, pictures)

    def _draw(self, members: Sequence[ImageSet], images: int) -> NDArray[np.uint8]:
        started = time.perf_counter()
        pictures = continue_sets(self.pipeline, members, given=self.given, images=images, params=self.params)
        self.timed.append((time.perf_counter() - started, pictures.shape[0] * pictures.shape[1]))
        return pictures


def continue_sets(
    pipeline: M2MPipeline, members: Sequence[ImageSet], *, given: int, images: int, params: DrawingParams
) -> NDArray[np.uint8]:
    """Pictures (sets, images, H, W, 3) that follow the given ones."""
    scheduler = make_scheduler(params.solver, pipeline.scheduler.config)  # it remembers its own batch
    own = M2MPipeline(**{**pipeline.components, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    drawing = params.model_dump(include={"num_inference_steps", "guidance_scale", "context_timestep", "drawn_context"})
    result: Any = own(
        [[Image.fromarray(image) for image in member.images[:given]] for member in members],
        images,
        generator=[seeds.derive(params.seed, "evaluate", member.id) for member in members],
        poses=[member.cameras()[: given + images] for member in members] if own.unet.pose_dim else None,
        **drawing,
    )
    return np.stack([np.stack([np.asarray(image) for image in of_set]) for of_set in result.images])


@dataclass(frozen=True, kw_only=True)
class Subject(Generic[Asked]):
    """A model that is evaluated on the sets of a dataset, and all that this takes."""

    params: Asked
    name: str
    """Of the evaluation."""
    sets: Mapping[Split, ImageSets]
    data: Manifest
    pipeline: M2MPipeline
    untuned: M2MPipeline
    """Of a fine-tuned model the one that it comes from; else itself."""
    networks: Networks
    stable_diffusion: Path
    folder: Path
    """Where drawn batches are kept."""
    runtime: Runtime
    timed: list[tuple[float, int]] = field(default_factory=list)
    """Of all continuations."""

    def after(self, name: str, starts: Starts, **options: Any) -> Continuations:
        """Sets that are to be continued, by the model unless another is named; options as of `Continuations`."""
        shared = {"params": self.params, "folder": self.folder, "timed": self.timed, "pipeline": self.pipeline}
        return Continuations(name=name, starts=starts, **{"workers": self.runtime.workers, **shared, **options})

    def draw(self, lots: Sequence[Continuations], about: str = "") -> None:
        """Draws all of them, and tells how far it is."""
        with progress(sum(lot.pictures for lot in lots), f"{self.name}{about}", unit="images") as advance:
            for lot in lots:
                lot.draw(advance)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation found."""

    numbers: Mapping[str, float]
    headlines: Sequence[str]
    """Of these the numbers file holds those that there are, besides the figure that decides on the champion."""
    about: Mapping[str, Number]
    """What the numbers rest on, besides the sets."""
    galleries: Mapping[str, Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]]
    """By name; rows of a caption, given and drawn pictures"""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What else lies beside the galleries."""


def folder_of(work: Path, made_from: Mapping[str, JsonValue]) -> Path:
    """The folder below `work` for pictures made from just these things, so that no others are ever taken for them."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return work / digest[:24]


def run_before(folder: Path) -> str | None:
    """The id of the tracked run of an evaluation of the same things that was killed.

    If there are only pictures of other things, it says that none of them is used.
    """
    if not folder.exists() and any(folder.parent.glob("*/")):
        _log.warning("starts afresh: the pictures in %s are of other parameters, data, models or code", folder.parent)
    note = folder / RUN
    return note.read_text(errors="replace") if note.exists() else None


def note_run(folder: Path, run_id: str) -> None:
    """Leaves the id of the tracked run, should this evaluation be killed."""
    write_atomically(folder / RUN, run_id.encode())


def read_or_draw(path: Path, draw: Callable[[], NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], bool]:
    """The pictures kept at `path`, and whether they were there: if not, or not as they were kept, they are drawn.

    Raises:
        UserError: the disk refuses.
    """
    if is_intact(path):
        return np.load(path, allow_pickle=False), True
    pictures = draw()
    with sealed_file(path) as draft, draft.open("wb") as file:
        np.save(file, pictures, allow_pickle=False)
    return pictures, False
