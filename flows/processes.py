"""Stages as processes that end when the flow is cancelled: each with its own session, and all that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

GRACE = 5.0
"""Seconds for a cancelled stage to end by itself, before it is killed."""

_PROGRESS = re.compile(r"(?P<what>[\w@-]+): (?P<done>\d+)/(?P<total>\d+) (?P<rest>.*)")


@dataclass(frozen=True)
class Progress:
    """What a line of a stage says of how far it is."""

    what: str
    percent: float
    text: str
    """``4096/4928 images, 69 images/s, 0:12 left``"""

    @classmethod
    def of(cls, line: str) -> Progress | None:
        """None if the line says something else."""
        found = _PROGRESS.fullmatch(line)
        if found is None or not int(found["total"]):
            return None
        percent = 100 * int(found["done"]) / int(found["total"])
        return cls(found["what"], percent, line.partition(": ")[2])


class Children:
    """The processes that run now, and the threads that wait for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._held = 0
        self.cancelled = False

    def run(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], say: Callable[[str], None]) -> int:
        """Runs a command to its end; `say` gets each line of its output as it comes. Gives its exit code."""
        with self._lock:
            if self.cancelled:
                return -signal.SIGTERM
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that one signal reaches all that it starts, and none of ours reaches it
            )
            self._running.add(child)
        try:
            assert child.stdout is not None
            with child.stdout as lines:
                for line in lines:
                    say(line.rstrip())
            return child.wait()
        except BaseException:
            _signal_group(child.pid, signal.SIGKILL)
            raise
        finally:
            with self._lock:
                self._running.discard(child)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While a thread holds something that it must give back, a cancelled flow waits for it."""
        with self._lock:
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1

    def end_all(self) -> None:
        """Ends every child with all that it started, and waits until nothing is held any more."""
        self.cancelled = True
        groups = [child.pid for child in tuple(self._running)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            groups = [group for group in groups if _signal_group(group, number)]
            _wait_until(lambda: not any(_signal_group(group, 0) for group in groups), GRACE)  # noqa: B023
        _wait_until(lambda: not self._held, GRACE / 2)

    def end_on_sigterm(self) -> None:
        """From now on SIGTERM, by which Prefect cancels a flow run, ends the children first; main thread only."""
        before = signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: FrameType | None) -> None:
            self.end_all()
            if callable(before):
                before(number, frame)
            else:
                signal.signal(number, before if before is not None else signal.SIG_DFL)
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, end)


def _signal_group(group: int, number: int) -> bool:
    """Whether there was a process left in the group; 0 only asks."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
