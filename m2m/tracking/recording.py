"""Runs that MLflow remembers: a run writes its journal, a thread delivers it.

No server can make a run wait or fail.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil

from m2m.errors import OutsideError, UserError
from m2m.params import GateParams
from m2m.settings import sqlite_file, without_password
from m2m.tracking import Run
from m2m.tracking.journal import Entry, Header, Journal
from m2m.tracking.remote import DESCRIPTIONS, NOTE, ServerRun, open_run

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS_BETWEEN_REQUESTS = 2.0
"""With metrics."""
SECONDS_BETWEEN_ATTEMPTS = 10.0
SECONDS_BETWEEN_SAMPLES = 10.0
ENTRIES_AT_ONCE = 1000
"""Of metrics: each is a point of one or more curves."""
PATIENCE = 120.0
"""Seconds that the end of a run may wait for a slow server before it leaves the rest to a later run."""
MEGABYTE = 2**20
_log = logging.getLogger("m2m.tracking")


@dataclass(frozen=True)
class MlflowTracker:
    """Records runs on an MLflow server or in its database; implements `m2m.tracking.Tracker`."""

    uri: str
    spool: Path
    tags: Mapping[str, str]
    """For every run."""

    @contextmanager
    def run(self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None) -> Iterator[Run]:
        key = resume_key or uuid4().hex
        database = sqlite_file(self.uri)
        beside = os.path.relpath(database, self.spool) if database else ""
        said = {NOTE: DESCRIPTIONS[stage]} if stage in DESCRIPTIONS else {}
        header = Header(key, name, stage, {**said, **self.tags, **tags}, without_password(self.uri), now(), beside)
        journal = Journal.create(self.spool, header)
        if resume_key:
            journal.append("resume")
            journal.append("tags", values=header.tags)  # it may be another flow run that goes on with it
        delivery = Delivery(journal, self.uri)
        run = JournaledRun(journal, delivery)
        status, patience = "FAILED", PATIENCE
        try:
            with system_metrics(run.metrics):
                yield run
            status = "FINISHED"
        except BaseException as error:
            if not isinstance(error, Exception):  # an interrupt, an exit, Prefect's signal of a cancelled flow
                status, patience = "KILLED", 5.0
            raise
        finally:
            journal.append("end", status=status, time=now())
            delivery.leave(patience=patience)


class JournaledRun(Run):
    """Writes a run's journal."""

    def __init__(self, journal: Journal, delivery: Delivery) -> None:
        super().__init__(journal.header.key)
        self._journal, self._delivery = journal, delivery

    def server_id(self, *, patience: float) -> str | None:
        run = self._delivery.drain(patience=patience)
        return run.id if run else None

    def tags(self, values: Mapping[str, str]) -> None:
        self._journal.append("tags", values=dict(values))

    def params(self, values: Mapping[str, object]) -> None:
        self._journal.append("params", values=dict(_flatten(values)))

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        time = now()
        points = [(key, value, step or 0, time) for key, value in _figures(values).items()]
        self._journal.append("metrics", points=points)

    def image(self, image: Image, *, key: str, step: int) -> None:
        place = self._journal.place("image.png")
        image.save(self._journal.kept(place))
        self._journal.append("image", key=_allowed(key), step=step, time=now(), file=place)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._journal.append("artifact", file=self._journal.keep(path), folder=folder)

    def dataset(self, name: str, *, source: str, digest: str, context: str, sets: Mapping[str, int]) -> None:
        self._journal.append("dataset", name=name, source=source, digest=digest[:36], context=context, sets={**sets})

    def register(
        self, model_folder: Path, name: str, *, metrics: Mapping[str, float], tags: Mapping[str, str], gate: GateParams
    ) -> str | None:
        self._journal.append(
            "register",
            name=name,
            file=self._journal.keep(model_folder),
            metrics=_figures(metrics),
            tags=dict(tags),
            gate={"metric": _allowed(gate.metric), "better": gate.better, "require": _figures(gate.require)},
            time=now(),
        )
        run = self._delivery.drain()
        return run.version if run else None


def _allowed(key: str) -> str:
    """A name as MLflow allows them."""
    return re.sub(r"[^\w\-./: ]", "-", key, flags=re.ASCII)


def _figures(values: Mapping[str, float]) -> dict[str, float]:
    return {_allowed(key): float(value) for key, value in values.items()}


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield _allowed(prefix + key), value if isinstance(value, str) else json.dumps(value, default=str)


class Delivery:
    """The thread that sends what stands in a run's journal, and what earlier runs left behind."""

    def __init__(self, journal: Journal, uri: str) -> None:
        self._journal, self._uri, self._spool = journal, uri, journal.folder.parent
        self._run: ServerRun | None = None
        self._change = threading.Condition()
        self._hurry = self._leaving = self._away = False
        self._failures = 0
        self._left_behind = True
        """Whether earlier runs may have left something."""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def drain(self, *, patience: float | None = None) -> ServerRun | None:
        """Waits until all that was said so far has arrived; None if the server is away or takes `patience` seconds."""
        with self._change:
            wanted, failures = self._journal.size, self._failures
            self._hurry = True
            self._change.notify_all()
            self._change.wait_for(
                lambda: (self._run and self._journal.sent >= wanted) or self._failures > failures, patience
            )
            return self._run if self._journal.sent >= wanted else None

    def leave(self, *, patience: float) -> None:
        """Drains and ends; the journal goes if everything has arrived, and is left for a later run if not."""
        arrived = self.drain(patience=patience) is not None
        with self._change:
            failures = self._failures
            if arrived:
                self._change.wait_for(lambda: not self._left_behind or self._failures > failures, patience)
            self._leaving = True
            self._change.notify_all()
        self._thread.join(min(patience, 5.0))
        if self._thread.is_alive():  # it hangs in a request: the journal stays its own until the process ends
            return
        self._journal.remove() if arrived else self._journal.close()

    def _work(self) -> None:
        while not self._leaving:
            server = self._journal.header.server
            try:
                try:
                    self._run = self._run or open_run(self._uri, self._journal.header)
                    self._send_own()
                except OutsideError:
                    raise
                except Exception as error:  # a thread that died would let the end of the run wait for ever
                    self._failed(f"{server} cannot record the run: {error}", self._journal.folder)
                if self._left_behind:
                    self._send_left_behind()
            except OutsideError as error:
                self._failed(f"{server} does not answer: {error}", self._spool)
            except Exception as error:
                self._failed(f"what earlier runs left cannot be read: {error}", self._spool)
                self._left_behind = False
            with self._change:
                pause = SECONDS_BETWEEN_ATTEMPTS if self._away else SECONDS_BETWEEN_REQUESTS
                self._change.wait_for(lambda: self._hurry or self._leaving, pause)
                self._hurry = False

    def _send_own(self) -> None:
        if self._run is not None:
            for _ in _deliver(self._journal, self._run):
                self._arrived()
            self._arrived()

    def _send_left_behind(self) -> None:
        """Brings what earlier runs left, each for itself: one that cannot be recorded holds up no other."""
        for journal in Journal.left_behind(self._spool, self._journal.header):
            name = journal.header.name
            with closing(journal):
                try:
                    if not journal.ended:
                        journal.append("end", status="KILLED", time=now())
                    for _ in _deliver(journal, open_run(self._uri, journal.header)):
                        if self._leaving:
                            return
                        self._send_own()  # weights of an earlier run may take long
                except OutsideError:
                    raise
                except Exception as error:
                    text = "tracking: the earlier run %s cannot be recorded, and waits in %s: %s"
                    _log.warning(text, name, journal.folder, error)
                    continue
                _log.warning("tracking: sent what was left of the earlier run %s", name)
                journal.remove()
        self._left_behind = False
        with self._change:
            self._change.notify_all()

    def _arrived(self) -> None:
        with self._change:
            if self._away:
                _log.warning("tracking: %s answers again; sending what waited", self._journal.header.server)
            self._away = False
            self._change.notify_all()

    def _failed(self, reason: str, place: Path) -> None:
        with self._change:
            if not self._away:
                _log.warning("tracking: %s; what is not sent waits in %s and is sent later", reason, place)
            self._away = True
            self._failures += 1
            self._change.notify_all()


def _deliver(journal: Journal, run: ServerRun) -> Iterator[None]:
    """Sends the pending entries in order; yields after each request.

    Metrics that follow each other go together, everything else alone.

    Raises:
        OutsideError: what has not arrived stays pending.
    """
    for kind, entries in groupby(journal.pending(), lambda entry: entry.kind):
        while batch := list(islice(entries, ENTRIES_AT_ONCE if kind == "metrics" else 1)):
            _send(batch, journal, run)
            journal.mark_sent(batch[-1].end)
            yield


def _send(batch: list[Entry], journal: Journal, run: ServerRun) -> None:
    """Sends entries; of several, of which any may be refused, each alone."""
    try:
        run.send(batch, journal)
    except OutsideError:
        raise
    except UserError as error:
        if len(batch) > 1:
            for entry in batch:
                _send([entry], journal, run)
            return
        names = ", ".join(point[0] for point in batch[0].values.get("points", ()))
        what = f"{batch[0].kind} {names}".rstrip()
        _log.warning("tracking: %s of run %s was refused: %s", what, journal.header.name, error)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@contextmanager
def system_metrics(log: Callable[..., None], *, interval: float = SECONDS_BETWEEN_SAMPLES) -> Iterator[None]:
    """Logs processor, memory and GPU use in the background; the step is the seconds since the start."""
    done, started = threading.Event(), time.monotonic()

    def work() -> None:
        psutil.cpu_percent()  # the first call only starts the measurement
        while not done.wait(interval):
            try:
                log(sample(), step=int(time.monotonic() - started))
            except OSError as error:
                _log.warning("tracking: no more system metrics: %s", error)
                return

    thread = threading.Thread(target=work, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def sample() -> Mapping[str, float]:
    """The state of the machine now, under MLflow's own names where it has one."""
    memory = psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
    }
    torch = sys.modules.get("torch")  # whoever computes on a GPU has imported it
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(device)
            values[f"system/gpu_{device}_memory_usage_megabytes"] = (total - free) / MEGABYTE
            values[f"system/gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
    return values
