"""What a flow run shows on Prefect's pages.

While a stage runs, its lines in the task's log and its progress as one artifact that moves; in the end a page with
metrics beside the last run's and the paper's, pictures, and where to look.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State

from flows.record import Log
from flows.stage import progress_in
from m2m.page.tables import Numbers, Row, Table, pattern, quality
from m2m.params import Variant

GALLERY_BYTES = 1_000_000
"""A larger picture is left to the report: this page is read from a database."""
SECONDS_BETWEEN_UPDATES = 1.0

AllNumbers = Mapping[Variant, Numbers]


class Live:
    """Takes the lines of one stage."""

    def __init__(self, stage: str, log: Log) -> None:
        self._stage = re.sub(r"[^a-z0-9]+", "-", stage.lower())
        self._log = log
        self._artifacts: dict[str, UUID] = {}
        self._updated = 0.0

    def key(self, what: str = "") -> str:
        """Of an artifact of the stage's: Prefect allows letters, digits and dashes."""
        return f"{self._stage}-{what}".rstrip("-")

    def say(self, line: str) -> None:
        """Shows a line, or moves the bar of which it tells."""
        if (progress := progress_in(line)) is None:
            if line:
                self._log.info(line)
            return
        what, percent = progress
        if what not in self._artifacts:
            made = create_progress_artifact(percent, key=self.key(), description=line)
            self._artifacts[what] = cast(UUID, made)  # a coroutine only where an event loop runs
        elif percent == 100 or time.monotonic() - self._updated > SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            update_progress_artifact(self._artifacts[what], percent, description=line)


def read_metrics(checkout: Path) -> AllNumbers:
    """The numbers of each variant that has been evaluated."""
    files = {variant: checkout / "reports" / f"evaluate-{variant}" / "details.json" for variant in get_args(Variant)}
    return {variant: json.loads(file.read_text()) for variant, file in files.items() if file.exists()}


def gallery(checkout: Path, stage: str) -> str:
    """Markdown with the pictures of an evaluation, one given; empty where they are none, or too large for a page."""
    picture = checkout / "reports" / stage.replace("@", "-") / "given-1.png"
    if not picture.exists() or picture.stat().st_size > GALLERY_BYTES:
        return ""
    model, data = stage.partition("@")[2], base64.b64encode(picture.read_bytes()).decode()
    title = f"## M2M-{model}: the given picture, framed, and those drawn after it"
    return f"{title}\n\n![drawn by M2M-{model}](data:image/png;base64,{data})"


def summary(
    checkout: Path,
    *,
    before: AllNumbers,
    unfinished: Mapping[str, State[Any]],
    links: Sequence[str],
    experiment: str | None,
) -> Iterator[str]:
    """The paragraphs of the page that a flow run leaves.

    Args:
        before: the last run's numbers.
        unfinished: the states of stages that did not come to their end.
        links: lines of markdown, to the MLflow runs.
    """
    numbers = read_metrics(checkout)
    if unfinished:
        yield "## Not finished"
        yield "\n".join(f"- `{name}`: {state.message or state.name}" for name, state in unfinished.items())
    for title, table in (("Quality", quality), ("What is kept, and what varies", pattern)):
        if numbers:
            yield f"## {title}"
            yield _markdown(table(numbers), table(before) if before else None)
    if numbers:
        yield "Embedded and published figures come from different networks: compare rows of one kind only."
    yield from filter(None, (gallery(checkout, f"evaluate@{variant}") for variant in numbers))
    if links:
        yield "## MLflow"
        yield "\n".join(links)
    if experiment:
        yield "## Experiment"
        yield f"`dvc exp show` lists it; `dvc exp apply {experiment}; dvc repro` brings it back."


def _markdown(table: Table, before: Table | None) -> str:
    rows = [("this run", row) for row in table.rows if row.variant]
    rows += [("the last run", row) for row in (before.rows if before else ()) if row.variant]
    rows += [("", row) for row in table.rows if not row.variant] + [("the paper", row) for row in table.paper]
    lines = [("", *table.headings), ("---",) * (1 + len(table.headings)), *(_cells(*row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(whose: str, row: Row) -> tuple[str, ...]:
    return (f"{row.name}, {whose}" if whose else row.name, *row.cells)
