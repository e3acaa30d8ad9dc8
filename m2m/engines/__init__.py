"""What the heavy work of a stage is done by: this machine, or a cluster that is named by its address.

A stage says what is to be done and never asks by whom. What it hands over can be pickled: on a cluster it is done in
other processes, on other machines, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from m2m.errors import UserError
from m2m.progress import Advance
from m2m.store import Store
from m2m.workers import Workers, in_order, thread_pool

__all__ = ["Cluster", "Engine", "Job", "LocalEngine", "Maker", "Place", "Train", "in_a_line", "open_engine"]


class Job(Protocol):
    """A part of the work that no other part depends on."""

    @property
    def images(self) -> int:
        """How many it makes."""


AJob = TypeVar("AJob", bound=Job)
Begun = TypeVar("Begun")
Made = TypeVar("Made")
AJob_contra = TypeVar("AJob_contra", bound=Job, contravariant=True)
Made_co = TypeVar("Made_co", covariant=True)


class Maker(Protocol[AJob_contra, Begun, Made_co]):
    """Does jobs, each in two halves: the first computes, the second waits for disk and store."""

    def begin(self, job: AJob_contra, advance: Advance) -> Begun: ...
    def finish(self, job: AJob_contra, begun: Begun) -> Made_co: ...


class Engine(Protocol):
    """Where shards are made, and pictures drawn."""

    @property
    def device(self) -> str:
        """What it computes on, as torch names it."""

    def make(
        self, maker: Maker[AJob, Begun, Made], jobs: Iterable[tuple[AJob, Made | None]], advance: Advance
    ) -> Generator[Made]:
        """What is made of each job, in the jobs' order; while one is finished the next is begun.

        An error of a job is raised here as itself. What a lost worker had begun is done again.

        Args:
            jobs: each with what was made of it before, if that was done.
        """

    def share(self, folder: Path) -> Callable[[], Path]:
        """What finds a folder that is here wherever the work is done."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one of the processes that train together works with, wherever it is."""

    store: Store
    work: Path
    """For what is unfinished."""
    device: str
    leaving: Callable[[], bool]
    """Says once that the machine will soon be gone; all processes ask equally often."""
    when_handed_over: Callable[[Callable[[], None]], None]
    """Keeps what is to be done when all that was made is where the command was typed."""


Result = TypeVar("Result")
Train: TypeAlias = Callable[[Mapping[str, Path], Mapping[str, Path], Place], Result]
"""Trains, from what goes in to what comes out, files and folders by name."""


class Cluster(Engine, Protocol):
    """Several machines, on which models are trained as well."""

    def train(self, run: Train[Result], *, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> Result:
        """What the first process gives; what it made comes to this machine, for which inputs and outputs are named.

        Raises:
            UserError: what one of them raises, or the cluster cannot do it.
        """


class LocalEngine:
    """This machine."""

    def __init__(self, workers: Workers, device: str) -> None:
        self._workers, self.device = workers, device

    def make(
        self, maker: Maker[AJob, Begun, Made], jobs: Iterable[tuple[AJob, Made | None]], advance: Advance
    ) -> Generator[Made]:
        """A job a worker."""

        def begin(item: tuple[AJob, Made | None]) -> Callable[[], Made]:
            job, done = item
            if done is not None:
                return lambda: done
            begun = maker.begin(job, advance)
            return lambda: maker.finish(job, begun)

        with (
            thread_pool(1, "store") as writer,
            closing(self._workers.map(begin, jobs)) as halves,
            closing(in_order(writer, _finish, halves, ahead=2)) as made,
        ):
            yield from made

    def share(self, folder: Path) -> Callable[[], Path]:
        return lambda: folder


def _finish(half: Callable[[], Made]) -> Made:
    return half()


def open_engine(address: str, *, store: Store, work: Path, device: str, ranks: int | None) -> Cluster | None:
    """The cluster at an address, see `Settings.engine`, `device` and `ranks`; None: this machine does the work.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be used.
    """
    if address == "local":
        return None
    try:
        from m2m.engines.cluster import RayEngine
    except ImportError as error:
        raise UserError(
            f"M2M_ENGINE is {address}, but Ray is not installed: pip install -c constraints.txt '.[ray]'"
        ) from error
    return RayEngine(address, store=store, work=work, device=device, ranks=ranks)


def in_a_line(error: Exception) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
