"""One stage, run by DVC in a process of its own, which ends with all that it started when the flow is cancelled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType

from m2m.cli.program import OUTSIDE_NOTE

ADVICE = "To track the changes with git, run:"
"""From this line on DVC tells what a person at a terminal might do next."""
GRACE = 5.0
"""Seconds for a cancelled stage to end by itself, before it is killed."""

_PROGRESS = re.compile(r"(?P<what>[\w@-]+): (?P<done>\d+)/(?P<total>\d+) .*")


class Verdict(Enum):
    """What DVC did."""

    RAN = "ran"
    SKIPPED = "skipped"
    CACHED = "cached"


class StageError(Exception):
    """A stage failed from what it was given: another attempt would fail as well."""


class UnansweredError(StageError):
    """A stage failed since a server did not answer: it may succeed later."""


def run_stage(
    name: str, checkout: Path, *, children: Children, env: Mapping[str, str], force: bool, say: Callable[[str], None]
) -> Verdict:
    """Runs one stage, whose parents are done, and gives each line of its output to `say`.

    Raises:
        UnansweredError: a server did not answer.
        StageError: it failed otherwise, or was cancelled; the message is the stage's own line.
    """
    # Stages run side by side in one checkout: each must wait while another takes DVC's lock.
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), name]
    verdict, reason, advised = Verdict.RAN, "", False

    def read(line: str) -> None:
        nonlocal verdict, reason, advised
        if line.startswith(f"Stage '{name}' "):
            verdict = Verdict.CACHED if "is cached" in line else Verdict.SKIPPED
        if line.startswith("m2m: ") or (line.startswith("ERROR: ") and not reason):
            reason = line
        advised = advised or line == ADVICE
        if not advised:
            say(line)

    with tempfile.TemporaryDirectory(prefix="m2m-") as folder:
        note = Path(folder) / "outside"
        code = children.run(command, cwd=checkout, env={**env, OUTSIDE_NOTE: str(note)}, say=read)
        if code:
            kind = UnansweredError if note.exists() else StageError
            raise kind(f"{name}: {reason.removeprefix('m2m: ') or f'ended with exit code {code}'}")
    return verdict


def progress_in(line: str) -> tuple[str, float] | None:
    """Of what a line of a stage says how far it is, and per cent of it; None if the line says something else.

    >>> progress_in("generate: 2048/4096 images, 69 images/s, 0:12 left")
    ('generate', 50.0)
    """
    found = _PROGRESS.fullmatch(line)
    if found is None or not int(found["total"]):
        return None
    return found["what"], 100 * int(found["done"]) / int(found["total"])


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
