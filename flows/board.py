"""What a person sees of stages that run side by side: bars on a terminal, else lines. Files keep what each said."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from flows.stage import Verdict, progress_in
from m2m.errors import UserError
from m2m.files import write_atomically
from m2m.progress import clock

SAID = {Verdict.RAN: "made", Verdict.CACHED: "restored from DVC's cache", Verdict.SKIPPED: "unchanged"}

CHATTER = ("Running stage ", "> ", "Updating lock file ", "Generating lock file ", "Stage '", "Use `dvc push`")
"""How lines of DVC's begin that say nothing new beside a bar."""


LOGS, SECONDS = Path("work/logs"), "seconds.json"
"""What each stage said when it ran last, and the file of what they took."""
_keeping = Lock()


class Board:
    """Takes what stages say, from the thread of each.

    Args:
        folder: for the logs, and for what each stage took, by which the next run knows what is left.
        stale: the stages that are going to run.
        at_once: how many at a time.
        bars: on a terminal.
    """

    def __init__(self, folder: Path, stale: Sequence[str], at_once: int, *, bars: bool) -> None:
        self._folder, self._left, self._at_once = folder, list(stale), at_once
        self._count, self._began = len(stale), time.monotonic()
        self._seconds, self._failed = read_seconds(folder), list[str]()
        self._running: dict[str, tuple[float, TextIO]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._lock = Lock()
        name, meter = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[meter]}"))
        self._bars = Progress(name, BarColumn(), meter, console=Console()) if bars else None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it is, bars move."""
        with self._bars or nullcontext():
            if self._bars:
                self._tasks[""] = self._bars.add_task("all stages", total=self._count, meter=self.meter())
            yield

    def log(self, stage: str) -> Path:
        """All that a stage said when it ran last."""
        return self._folder / f"{stage.replace('/', '-')}.log"  # one of DVC's may be named by its path

    def begins(self, stage: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._running[stage] = time.monotonic(), self.log(stage).open("w")
            if self._bars:
                self._tasks[stage] = self._bars.add_task(f"  {stage}", total=None, meter="")
            else:
                _print(f"[{stage}] begins")

    def line(self, stage: str, line: str) -> None:
        """One of the stage's output."""
        if not line:
            return
        with self._lock:
            _, log = self._running[stage]
            log.write(f"{line}\n")
            log.flush()
            if not self._bars:
                _print(f"[{stage}] {line}")
            elif found := progress_in(line):
                meter = line.partition(": ")[2]
                self._bars.update(self._tasks[stage], total=100, completed=found[1], meter=meter)
                self._bars.update(self._tasks[""], meter=self.meter())
            elif not line.startswith(CHATTER):
                self.tell(f"[{stage}] {line}")

    def ends(self, stage: str, verdict: Verdict | None) -> None:
        """Without a verdict it failed."""
        with self._lock:
            began, log = self._running.pop(stage)
            log.close()
            took = time.monotonic() - began
            self._left.remove(stage)
            self._failed += [] if verdict else [stage]
            if verdict is Verdict.RAN:
                self._seconds = note_seconds(self._folder, stage, took)
            done = self._count - len(self._left)
            said = SAID[verdict] if verdict else f"failed, see {self.log(stage)}"
            whole = clock(time.monotonic() - self._began)
            if self._bars:
                self._bars.remove_task(self._tasks.pop(stage))
                self.tell(f"{stage}: {said}, {clock(took)}")
                self._bars.update(self._tasks[""], completed=done, meter=self.meter())
            else:
                _print(f"[{stage}] {said}, {done} of {self._count} after {whole}")

    def left(self) -> list[str]:
        """Stages that have not ended well."""
        with self._lock:
            return [*self._left, *self._failed]

    def tell(self, text: str) -> None:
        """What is not of one stage."""
        if self._bars:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _print(text)

    def meter(self) -> str:
        """How many stages are done, and how long the others take if they take as long as last time."""
        done = f"{self._count - len(self._left)} of {self._count}"
        if not all(stage in self._seconds for stage in self._left):
            return done
        now = time.monotonic()
        passed = sum(min(now - began, self._seconds[stage]) for stage, (began, _) in self._running.items())
        left = (sum(self._seconds[stage] for stage in self._left) - passed) / self._at_once
        return f"{done}, about {clock(left)} left" if self._left else done


def note_seconds(folder: Path, stage: str, took: float) -> dict[str, float]:
    """Keeps what a stage took, for who wants to know how long it takes; returns those of all stages."""
    with _keeping:
        seconds = {**read_seconds(folder), stage: round(took, 1)}
        with suppress(UserError):  # that an estimate cannot be kept stops nothing
            write_atomically(folder / SECONDS, json.dumps(seconds, indent=1).encode())
    return seconds


def read_seconds(folder: Path) -> dict[str, float]:
    """What stages took when they ran last."""
    try:
        kept = json.loads((folder / SECONDS).read_text())
        return {str(stage): float(seconds) for stage, seconds in kept.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # there is none, or no good one: nothing is known
        return {}


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece: several threads print
    sys.stdout.flush()
