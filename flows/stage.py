"""One stage, run by DVC in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from flows.processes import Children
from m2m.console import OUTSIDE_NOTE

ADVICE = "To track the changes with git, run:"
"""From this line on DVC tells what a person at a terminal might do next."""


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
    name: str,
    checkout: Path,
    *,
    children: Children,
    env: Mapping[str, str],
    force: bool,
    say: Callable[[str], None],
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
