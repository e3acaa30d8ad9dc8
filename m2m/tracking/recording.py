"""Runs that MLflow remembers: a run writes its journal, a thread delivers it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from m2m.params import GateParams
from m2m.settings import sqlite_file, without_password
from m2m.tracking.contract import Run
from m2m.tracking.delivery import Delivery, now
from m2m.tracking.journal import Header, Journal
from m2m.tracking.remote import PARAMS_PER_REQUEST, POINTS_PER_REQUEST, Remote
from m2m.tracking.system import sampling

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class MlflowTracker:
    """Records runs on an MLflow server or in its database; implements `m2m.tracking.Tracker`."""

    uri: str
    spool: Path
    tags: Mapping[str, str]
    """For every run."""
    interval: float
    """Seconds between two requests with metrics."""
    patience: float
    """Seconds that the end of a run may wait for a slow server."""

    @contextmanager
    def run(self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None) -> Iterator[Run]:
        key = resume_key or uuid4().hex
        database = sqlite_file(self.uri)
        beside = os.path.relpath(database, self.spool) if database else ""
        header = Header(key, name, stage, {**self.tags, **tags}, without_password(self.uri), now(), beside)
        journal = Journal.create(self.spool, header)
        if resume_key:
            journal.append("resume")
            journal.append("tags", values=header.tags)  # it may be another flow run that goes on with it
        delivery = Delivery(journal, Remote(self.uri), spool=self.spool, interval=self.interval)
        recording = Recording(journal, delivery)
        status, patience = "FAILED", self.patience
        try:
            with sampling(recording.metrics):
                yield recording
            status = "FINISHED"
        except BaseException as error:
            if not isinstance(error, Exception):  # an interrupt, an exit, Prefect's signal of a cancelled flow
                status, patience = "KILLED", min(self.patience, 5.0)
            raise
        finally:
            journal.append("end", status=status, time=now())
            delivery.leave(patience=patience)


class Recording:
    """Writes a run's journal; implements `m2m.tracking.Run`."""

    def __init__(self, journal: Journal, delivery: Delivery) -> None:
        self.id = journal.header.key
        self._journal, self._delivery = journal, delivery

    def server_id(self, *, patience: float) -> str | None:
        run = self._delivery.drain(patience=patience)
        return run.id if run else None

    def tags(self, values: Mapping[str, str]) -> None:
        self._journal.append("tags", values=dict(values))

    def params(self, values: Mapping[str, object]) -> None:
        flat = iter(_flatten(values))
        while part := dict(islice(flat, PARAMS_PER_REQUEST)):
            self._journal.append("params", values=part)

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        time = now()
        points = ((_allowed(key), float(value), step or 0, time) for key, value in values.items())
        while part := list(islice(points, POINTS_PER_REQUEST)):
            self._journal.append("metrics", points=part)

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
            metrics={_allowed(key): float(value) for key, value in metrics.items()},
            tags=dict(tags),
            gate={
                "metric": _allowed(gate.metric),
                "better": gate.better,
                "require": {_allowed(key): value for key, value in gate.require.items()},
            },
            time=now(),
        )
        run = self._delivery.drain()
        return run.version if run else None


def _allowed(key: str) -> str:
    """A name as MLflow allows them."""
    return re.sub(r"[^\w\-./: ]", "-", key, flags=re.ASCII)


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield _allowed(prefix + key), value if isinstance(value, str) else json.dumps(value, default=str)
