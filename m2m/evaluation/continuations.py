"""The pictures that a model draws to continue sets, kept while an evaluation may still need them.

A killed evaluation goes on where it was. Neither the sets nor what is drawn of them is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

from m2m import seeds
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, StoredSet
from m2m.diffusion.sampler import make_scheduler
from m2m.engines import Engine, Job, Maker
from m2m.evaluation.figures import Number
from m2m.evaluation.networks import Batch, Networks
from m2m.files import is_intact, sealed_file, write_atomically
from m2m.manifest import Manifest, Split
from m2m.params import DrawingParams
from m2m.pipeline import M2MPipeline
from m2m.progress import Advance, progress
from m2m.runtime import Runtime

RUN = "run"
Asked = TypeVar("Asked", bound=DrawingParams)
Pictures: TypeAlias = NDArray[np.uint8]
Load: TypeAlias = Callable[[], tuple[M2MPipeline, M2MPipeline]]
"""Loads, where it is called, a model and the one that it was fine-tuned from, or itself once more. Both in one thread:
libraries make networks in ways that do not bear a second one at the same time."""

_log = logging.getLogger(__name__)


class Starts(Protocol):
    """Sets to be continued, which need not be in memory all at once."""

    def __getitem__(self, index: int, /) -> ImageSet: ...


class Kept:
    """Stands for pictures that are kept."""


class KeptJob(Job, Protocol):
    """A batch of pictures that is kept, or is to be drawn."""

    @property
    def path(self) -> Path:
        """Where it is kept."""

    def work(self) -> Any:
        """What a maker is given, read when it is to be drawn."""


AJob = TypeVar("AJob", bound=KeptJob)


def keep_drawn(
    engine: Engine, maker: Maker[Any, Any, tuple[Pictures, float] | Kept], jobs: Iterable[AJob], advance: Advance
) -> Generator[tuple[AJob, float | None]]:
    """Each job whose pictures are kept now, in order, and the seconds that drawing took; None: they were there.

    Raises:
        UserError: what a job raises, or the disk refuses.
    """
    asked = deque[AJob]()

    def known() -> Iterator[tuple[Job, Kept | None]]:
        for job in jobs:
            asked.append(job)
            if is_intact(job.path):
                advance(job.images, skipped=True)
                yield job, Kept()
            else:
                yield job.work(), None

    with closing(engine.make(maker, known(), advance)) as made:
        for one in made:
            job = asked.popleft()
            if isinstance(one, Kept):
                yield job, None
                continue
            pictures, seconds = one
            with sealed_file(job.path) as draft, draft.open("wb") as file:
                np.save(file, pictures, allow_pickle=False)
            yield job, seconds


@dataclass(frozen=True, kw_only=True)
class Continued:
    """Some sets that are continued together, with what is read of them."""

    members: Sequence[ImageSet]
    given: int
    length: int
    """How many pictures are drawn of each."""
    params: DrawingParams
    untuned: bool

    @property
    def images(self) -> int:
        return len(self.members) * self.length


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The same, before anything is read."""

    path: Path
    images: int
    work: Callable[[], Continued]


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Continues sets, on this machine or, pickled, on another."""

    load: Load

    def begin(self, job: Continued, advance: Advance) -> tuple[Pictures, float]:
        tuned, untuned = self.load()
        started, pipeline = time.perf_counter(), untuned if job.untuned else tuned
        pictures = continue_sets(pipeline, job.members, given=job.given, images=job.length, params=job.params)
        seconds = time.perf_counter() - started
        advance(job.images)
        return pictures, seconds

    def finish(self, job: Continued, begun: tuple[Pictures, float]) -> tuple[Pictures, float]:
        return begun


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """The first `count` of some sets, continued from their first `given` pictures by `generated` ones or to their ends.

    Views are drawn at the sets' own cameras. A set's seed depends on its id alone, so neither the batch nor the number
    of given pictures changes it. What is read here is what a `Drawer` made of the jobs, and was kept.
    """

    name: str
    """In the names of kept files."""
    starts: Starts
    count: int
    given: int
    generated: int | None = None
    """None: each set is continued to its own end."""
    params: DrawingParams
    folder: Path
    """Where drawn batches are kept; it belongs to these parameters, these models and these sets alone."""
    untuned: bool = False
    """By the model that a fine-tuned one comes from."""

    @property
    def pictures(self) -> int:
        """How many are to be drawn."""
        return sum(self._lengths)

    @cached_property
    def _lengths(self) -> Sequence[int]:
        """How many pictures are drawn of each set."""
        if self.generated is not None:
            return [self.generated] * self.count
        return [self._of(place).count - self.given for place in range(self.count)]

    @cached_property
    def _blocks(self) -> Sequence[Sequence[int]]:
        """Places of the sets of each batch, which are of one length: none is drawn beyond its end."""
        length = self._lengths.__getitem__
        groups = [[*group] for _, group in groupby(sorted(range(self.count), key=length), length)]
        step = self.params.sets_per_batch
        return [group[start : start + step] for group in groups for start in range(0, len(group), step)]

    def jobs(self) -> Iterator[Planned]:
        """The batches that are to be drawn, the shorter sets first, else in order."""
        for places in self._blocks:
            images = len(places) * self._lengths[places[0]]
            yield Planned(path=self._path(places), images=images, work=partial(self._continued, places))

    def _continued(self, places: Sequence[int]) -> Continued:
        return Continued(
            members=[*map(self._start, places)],
            given=self.given,
            length=self._lengths[places[0]],
            params=self.params,
            untuned=self.untuned,
        )

    def _of(self, place: int) -> ImageSet | StoredSet:
        """A set, decoded no further than it must be."""
        return self.starts.stored(place) if isinstance(self.starts, ImageSets) else self.starts[place]

    def _start(self, place: int) -> ImageSet:
        """What is read of a set: what is given; of views all, since each has a camera."""
        one = self._of(place)
        if isinstance(one, StoredSet) and "poses" not in one.extras:
            return ImageSet(id=one.id, caption=one.caption, images=one.pictures(range(self.given)))
        return replace(one.whole() if isinstance(one, StoredSet) else one, latents=None)

    def batches(self) -> Iterator[Batch]:
        """Given and drawn pictures of all sets, in the order of the jobs."""
        for places in self._blocks:
            members = [*map(self._start, places)]
            given = np.stack([member.images[: self.given] for member in members])
            drawn = np.load(self._path(places), allow_pickle=False)
            yield Batch([member.caption for member in members], given, drawn)

    def by_set(self) -> Iterator[NDArray[np.uint8]]:
        """Of each set, in order, the pictures (n, H, W, 3) that were drawn."""
        where = {place: (block, row) for block in self._blocks for row, place in enumerate(block)}
        for block, row in map(where.__getitem__, range(self.count)):
            yield np.array(np.load(self._path(block), mmap_mode="r", allow_pickle=False)[row])

    def rows(self, count: int) -> list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
        """Of the first sets, as many as there are, captions, given pictures and what was drawn."""
        found = [(self._start(place), drawn) for place, drawn in zip(range(count), self.by_set(), strict=False)]
        return [(one.caption, one.images[: self.given], drawn) for one, drawn in found]

    def _path(self, places: Sequence[int]) -> Path:
        return self.folder / f"{self.name}-from-{places[0]:06}.npy"


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
    drawer: Drawer
    networks: Networks
    stable_diffusion: Path
    folder: Path
    """Where drawn batches are kept."""
    runtime: Runtime
    timed: list[tuple[float, int]] = field(default_factory=list)
    """Seconds that drawing a batch took, and its pictures; those kept from an earlier run do not count."""

    def after(self, name: str, starts: Starts, **options: Any) -> Continuations:
        """Sets that are to be continued; options as of `Continuations`."""
        return Continuations(name=name, starts=starts, **{"params": self.params, "folder": self.folder, **options})

    def draw(self, lots: Sequence[Continuations], about: str = "") -> None:
        """Draws what is not kept yet of all of them, and tells how far it is."""
        jobs = chain.from_iterable(lot.jobs() for lot in lots)
        with (
            progress(sum(lot.pictures for lot in lots), f"{self.name}{about}", unit="images") as advance,
            closing(keep_drawn(self.runtime.engine, self.drawer, jobs, advance)) as made,
        ):
            self.timed.extend((seconds, job.images) for job, seconds in made if seconds is not None)


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
