"""What a stage says while it runs: its lines in the task's log, its progress as one artifact that moves."""

from __future__ import annotations

import logging
import re
import time
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.processes import Progress

SECONDS_BETWEEN_UPDATES = 1.0


class Live:
    """Takes the lines of one stage."""

    def __init__(self, stage: str, log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", stage.lower())
        self._log = log
        self._artifacts: dict[str, UUID] = {}
        self._updated = 0.0

    def say(self, line: str) -> None:
        """Shows a line, or moves the bar of which it tells."""
        progress = Progress.of(line)
        if progress is None:
            if line:
                self._log.info(line)
        elif progress.what not in self._artifacts:
            made = create_progress_artifact(
                progress.percent, key=self._key, description=f"{progress.what}: {progress.text}"
            )
            self._artifacts[progress.what] = cast(UUID, made)  # a coroutine only where an event loop runs
        elif progress.percent == 100 or time.monotonic() - self._updated > SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            update_progress_artifact(
                self._artifacts[progress.what], progress.percent, description=f"{progress.what}: {progress.text}"
            )
