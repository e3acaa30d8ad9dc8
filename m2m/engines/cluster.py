"""A cluster of Ray: the one module that knows it. Nothing imports this one unless an address asks for it.

Shards are made by actors, one for each GPU, or each CPU core where there is none. The driver plans, hands out jobs and
reads records of some hundred bytes; pictures go from an actor to the store. What an evaluation draws comes to the
driver, whose networks look at it. Ranks that train together are Ray Train's;
their checkpoints, and what they make, go through the store as well.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

import ray
from filelock import FileLock
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m2m.engines import AJob, Begun, Job, Made, Maker, Result, Train, in_a_line
from m2m.errors import UserError
from m2m.files import file_digest, listing_digest, write_atomically
from m2m.progress import Advance
from m2m.store import Store
from m2m.store.shared import Shared

HERE: Final = "ray"
"""The address of a cluster that is started on this machine, and ends with the command."""
JOBS_EACH = 2
"""Of an actor: one is begun while the other is finished."""
LEAD = 4
"""Jobs for each that an actor may have: so far ahead of the first that is not done. What is made waits for it here."""
PROBE_SECONDS = 300.0
"""For each node to say what it is: many import for minutes."""
LOOK_SECONDS = 10.0
"""Between two looks for nodes that have come."""
WORKERS_A_JOB = 5
"""That may be lost over it: nodes come and go, but what needs too much memory ends every worker."""
_UNIT = {"cpu": "CPU", "cuda": "GPU"}
"""What a process needs one of, by its device."""
COMPUTING = ("torch", "diffusers", "transformers", "numpy")
"""Packages whose versions decide on bits."""


class RayEngine:
    """The nodes of a cluster.

    Args:
        address: ``ray``, or where a cluster's head is: ``host:port`` or ``ray://host:port``.
        device: ``auto``: GPUs if there are any now; ``cuda``, too, where nodes with GPUs are yet to come.
        ranks: how many processes train together, and at least make shards; default: one for each GPU, or one. More than
            there is room for are waited for: an autoscaler then brings nodes.

    Raises:
        UserError: no cluster answers, or one of its nodes lacks this very package or cannot reach the store.
    """

    def __init__(self, address: str, *, store: Store, work: Path, device: str, ranks: int | None) -> None:
        self._store, self._work, self._ranks = store, work.absolute(), ranks
        if not ray.is_initialized():
            _connect(address)
        _check_nodes(store, self._work, address)
        if device == "auto":
            device = "cuda" if _room("GPU") else "cpu"
        self.device = device.partition(":")[0]

    def share(self, folder: Path) -> Callable[[], Path]:
        """See `Engine`: through the store, once a node."""
        return _Found(Shared.put(self._store, folder), self._work / "shared")

    def train(self, run: Train[Result], *, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> Result:
        """See `Cluster`: the processes are started again for as long as nodes are lost, from the newest checkpoint."""
        from m2m.engines.ranks import train_together  # who makes shards does without: it takes ten seconds to import

        on_gpu, unit = self.device == "cuda", _UNIT[self.device]
        ranks = self._ranks or (max(_room(unit), 1) if on_gpu else 1)
        if ranks > (room := _room(unit)):
            waited = f"{ranks} processes are to train, there are {unit}s for {room}: the others are waited for"
            print(waited, file=sys.stderr)
        found = {name: self.share(path) for name, path in inputs.items()}
        told = {"run": run, "found": found, "outputs": outputs, "store": self._store}
        result, made, afterwards = train_together(told | {"work": self._work, "device": self.device}, ranks=ranks)
        for name, path in outputs.items():
            made[name].get(path)
        for do in afterwards:
            do()
        return cast(Result, result)

    def make(
        self, maker: Maker[AJob, Begun, Made], jobs: Iterable[tuple[AJob, Made | None]], advance: Advance
    ) -> Generator[Made]:
        """See `Engine`."""
        pool = _Pool(ray.put(maker), _UNIT[self.device], least=self._ranks or 1)
        try:
            yield from pool.map(jobs, advance)
        finally:
            pool.end()


def _connect(address: str) -> None:
    """Joins a cluster, or starts one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address == HERE:
            # Never one that runs here already, or a file says has run.
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR)
        else:
            ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, RayError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        token = (
            "; one that asks for a token needs RAY_AUTH_MODE=token here, too" if address.startswith("ray://") else ""
        )
        raise UserError(
            f"M2M_ENGINE is {address}, but no cluster of Ray can be used there ({reason}{token})"
        ) from error


def _room(unit: str) -> int:
    """How many GPUs or cores the nodes have that are there now."""
    return int(ray.cluster_resources().get(unit, 0))


@ray.remote(num_cpus=0, max_retries=0)
def _look(store: Store, note: tuple[str, str, int], work: Path) -> tuple[str, str, str]:
    """Of the node that this runs on: name, package, and what the store or the disk says.

    Args:
        note: what the driver stored, as `Store.get` takes it.
    """
    try:
        store.check()
        store.get(*note)
        write_atomically(work / "shared" / ".check", b"")
        fault = ""
    except UserError as error:
        fault = str(error)
    return socket.gethostname(), _package(), fault


def _package() -> str:
    """What this node would compute with: this package's code, and the versions of what it stands on."""
    root = Path(__file__).parent.parent
    code = listing_digest((path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*.py")))
    return " ".join([code, *(f"{name} {version(name)}" for name in COMPUTING)])


def _check_nodes(store: Store, work: Path, address: str) -> None:
    """Every node has this very code, reaches the store and has room for what is unfinished, or a line says why not."""
    nodes, mine = [node for node in ray.nodes() if node["Alive"]], _package()
    write_atomically(work / "shared" / ".package", mine.encode())
    sha256 = file_digest(work / "shared" / ".package")
    store.put(f"files/{sha256}", work / "shared" / ".package", sha256)
    note = f"files/{sha256}", sha256, len(mine.encode())
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [_look.options(scheduling_strategy=place).remote(store, note, work) for place in places]
    for node, answer in zip(nodes, asked, strict=True):
        where = f"node {node['NodeManagerAddress']} of the cluster at {address}"
        try:
            name, code, fault = ray.get(answer, timeout=PROBE_SECONDS)
        except GetTimeoutError as error:
            raise UserError(f"{where} says nothing for {PROBE_SECONDS:.0f} s; look at its log") from error
        except (RayError, ModuleNotFoundError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{where} cannot run this package ({reason}); install it there, as it is here") from error
        if code != mine:
            raise UserError(f"{where} ({name}) has {code}; here it is {mine}; install the same on all nodes")
        if fault:
            shared = "" if "://" in store.uri else "; a store in a folder must be on a disk that all nodes share"
            raise UserError(f"{where} ({name}): {fault}{shared}")


class _Found:
    """Finds what is shared on whatever machine it is called."""

    def __init__(self, shared: Shared, work: Path) -> None:
        self._shared, self._work = shared, work

    def __call__(self) -> Path:
        place = self._work / self._shared.digest / self._shared.name
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                self._shared.get(place)
        return place


class _Worker:
    """Makes shards, or pictures, in a process of its own, one while the one before is stored."""

    def __init__(self, maker: Maker[Any, Any, Any]) -> None:
        self._maker, self._computing = maker, Lock()

    def name(self) -> str:
        return socket.gethostname()

    def make(self, job: Any) -> Any:
        with self._computing:
            begun = self._maker.begin(job, _tell_nobody)
        return self._maker.finish(job, begun)


def _tell_nobody(count: int = 1, *, skipped: bool = False) -> None:
    """The driver counts the jobs that are done."""


@dataclass(eq=False)
class _Hired:
    """A worker, and what it is at."""

    handle: Any
    node: str = ""
    """Its machine's name; empty until it is there."""
    at: int = 0
    """Jobs."""


class _Pool:
    """As many workers as the cluster has room for, those of nodes that come later too."""

    def __init__(self, maker: ray.ObjectRef[Any], unit: str, *, least: int) -> None:
        self._maker, self._unit, self._least = maker, unit, least
        self._hired: set[_Hired] = set()
        self._coming: dict[ray.ObjectRef[Any], _Hired] = {}
        self._given: dict[ray.ObjectRef[Any], tuple[int, Job, _Hired]] = {}
        self._lost: Counter[int] = Counter()
        self._images: Counter[str] = Counter()
        self._looked, self._failed = -inf, 0

    def map(self, jobs: Iterable[tuple[AJob, Made | None]], advance: Advance) -> Generator[Made]:
        """What is made of each job, in order."""
        upcoming, again, made, turn = enumerate(jobs), deque[tuple[int, Job]](), dict[int, Made](), 0
        began = time.monotonic()

        def next_job() -> tuple[int, Job] | None:
            for index, (job, done) in upcoming:
                if done is None:
                    return index, job
                made[index] = done
            return None

        ahead = next_job()
        while ahead or again or self._given:
            self._hire()
            while turn in made:
                yield made.pop(turn)
                turn += 1
            for worker in [one for one in self._hired if one.node for _ in range(JOBS_EACH - one.at)]:
                if again:  # before all others: what comes after them waits for them
                    self._give(worker, *again.popleft())
                elif ahead and ahead[0] - turn < LEAD * JOBS_EACH * len(self._hired):
                    self._give(worker, *ahead)
                    ahead = next_job()
            done, lost = self._settle(advance)
            made.update(done)
            again.extend(lost)
            ahead = ahead or next_job()
        for node, images in sorted(self._images.items()):
            print(f"{node}: {images} images, {images / (time.monotonic() - began):.3g} images/s", file=sys.stderr)
        yield from (made[index] for index in sorted(made))

    def end(self) -> None:
        """Sends all workers home, whatever they are at."""
        for worker in self._hired:
            ray.kill(worker.handle)

    def _hire(self) -> None:
        """Now and then, a worker for all that the cluster has grown by."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        hire: Any = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=int(self._unit == "GPU"), max_concurrency=JOBS_EACH
        )
        for _ in range(max(_room(self._unit), self._least) - len(self._hired)):
            worker = _Hired(hire.remote(self._maker))
            self._hired.add(worker)
            self._coming[worker.handle.name.remote()] = worker

    def _give(self, worker: _Hired, index: int, job: Job) -> None:
        worker.at += 1
        self._given[worker.handle.make.remote(job)] = index, job, worker

    def _settle(self, advance: Advance) -> tuple[dict[int, Any], list[tuple[int, Job]]]:
        """Waits for news: what was made, by the jobs' numbers, and the jobs of workers that were lost.

        Raises:
            UserError: a job ended as many workers as are spent on one.
            Exception: whatever a job raised.
        """
        made, lost = dict[int, Any](), list[tuple[int, Job]]()
        if not self._given and not self._coming:
            time.sleep(1)
        ready, _ = ray.wait([*self._given, *self._coming], num_returns=1, timeout=LOOK_SECONDS)
        for answer in ready:
            if worker := self._coming.pop(answer, None):
                try:
                    worker.node, self._failed = ray.get(answer), 0
                except RayError as error:  # it was gone before it began
                    self._hired.discard(worker)
                    self._failed += 1
                    if self._failed == WORKERS_A_JOB:
                        raise UserError(f"{self._failed} workers could not begin: {in_a_line(error)}") from error
                continue
            index, job, worker = self._given.pop(answer)
            worker.at -= 1
            try:
                made[index] = ray.get(answer)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                self._hired.discard(worker)
                self._lost[index] += 1
                if self._lost[index] == WORKERS_A_JOB:
                    text = f"a job ended {WORKERS_A_JOB} workers, the last by: {in_a_line(error)}"
                    raise UserError(text) from error
                lost.append((index, job))
            else:
                advance(job.images)
                self._images[worker.node] += job.images
        return made, lost
