"""Brings journals to the server, in a thread of its own: no server can make a run wait or fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from m2m.tracking.connection import AwayError, RefusedError
from m2m.tracking.journal import Entry, Journal
from m2m.tracking.remote import POINTS_PER_REQUEST, Remote, RemoteRun

SECONDS_BETWEEN_ATTEMPTS = 10.0
_logger = logging.getLogger("m2m.tracking")


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Delivery:
    """The thread that sends what stands in a run's journal, and what earlier runs left behind."""

    def __init__(self, journal: Journal, remote: Remote, *, spool: Path, interval: float) -> None:
        self._journal, self._remote, self._spool, self._interval = journal, remote, spool, interval
        self._run: RemoteRun | None = None
        self._change = threading.Condition()
        self._hurry = self._leaving = self._away = False
        self._failures = 0
        self._left_behind = True
        """Whether earlier runs may have left something."""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def drain(self, *, patience: float | None = None) -> RemoteRun | None:
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
        if arrived:
            self._journal.remove()
        else:
            self._journal.close()

    def _work(self) -> None:
        while not self._leaving:
            server = self._journal.header.server
            try:
                try:
                    self._run = self._run or self._remote.open_run(self._journal.header)
                    self._send_own()
                except AwayError:
                    raise
                except Exception as error:  # a thread that died would let the end of the run wait for ever
                    self._failed(f"{server} cannot record the run: {error}", self._journal.folder)
                if self._left_behind:
                    self._send_left_behind()
            except AwayError as error:
                self._failed(f"{server} does not answer: {error}", self._spool)
            except Exception as error:
                self._failed(f"what earlier runs left cannot be read: {error}", self._spool)
                self._left_behind = False
            with self._change:
                pause = SECONDS_BETWEEN_ATTEMPTS if self._away else self._interval
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
            try:
                if not journal.ended:
                    journal.append("end", status="KILLED", time=now())
                run = self._remote.open_run(journal.header)
                for _ in _deliver(journal, run):
                    if self._leaving:
                        journal.close()
                        return
                    self._send_own()  # weights of an earlier run may take long
            except AwayError:
                journal.close()
                raise
            except Exception as error:
                journal.close()
                text = "tracking: the earlier run %s cannot be recorded, and waits in %s: %s"
                _logger.warning(text, name, journal.folder, error)
                continue
            _logger.warning("tracking: sent what was left of the earlier run %s", name)
            journal.remove()
        self._left_behind = False
        with self._change:
            self._change.notify_all()

    def _arrived(self) -> None:
        with self._change:
            if self._away:
                _logger.warning("tracking: %s answers again; sending what waited", self._journal.header.server)
            self._away = False
            self._change.notify_all()

    def _failed(self, reason: str, place: Path) -> None:
        with self._change:
            if not self._away:
                _logger.warning("tracking: %s; what is not sent waits in %s and is sent later", reason, place)
            self._away = True
            self._failures += 1
            self._change.notify_all()


def _deliver(journal: Journal, run: RemoteRun) -> Iterator[None]:
    """Sends the pending entries in order; yields after each request.

    Raises:
        AwayError: what has not arrived stays pending.
    """
    for batch in _batches(journal.pending()):
        try:
            run.send(batch, journal)
        except RefusedError as error:
            if len(batch) > 1:
                _one_by_one(batch, journal, run)
            else:
                _logger.warning("tracking: %s of run %s was refused: %s", batch[0].kind, journal.header.name, error)
        journal.mark_sent(batch[-1].end)
        yield


def _one_by_one(batch: list[Entry], journal: Journal, run: RemoteRun) -> None:
    for entry in batch:
        try:
            run.send([entry], journal)
        except RefusedError as error:
            names = ", ".join(point[0] for point in entry.values["points"])
            _logger.warning("tracking: metrics %s of run %s were refused: %s", names, journal.header.name, error)


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Metrics that follow each other together, up to the size of a request; everything else alone."""
    batch: list[Entry] = []
    points = 0
    for entry in entries:
        size = len(entry.values["points"]) if entry.kind == "metrics" else POINTS_PER_REQUEST
        if batch and points + size > POINTS_PER_REQUEST:
            yield batch
            batch, points = [], 0
        batch.append(entry)
        points += size
    if batch:
        yield batch
