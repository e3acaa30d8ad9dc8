"""What was measured: rows, how they are kept, and the table in which they stand beside their goals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from benchmarks.goals import goal_of

Kind = Literal["count", "wall", "gpu"]
RESULTS = Path(__file__).parent / "results"
HEAD = ("what", "ours", "other", "unit", "ours/other", "goal", "gap")


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    ours: float
    other: float
    unit: str
    ratio: float
    """Ours over the other's: small is good for times and counts, large for rates."""
    kind: Kind
    """Counted; timed on a CPU; timed on a GPU."""
    on: str = ""
    """What was timed: a processor's or a card's name, and torch's version."""

    @classmethod
    def of(cls, name: str, ours: float, other: float, *, unit: str, kind: Kind) -> Self:
        """Four digits are kept: no clock is better."""
        return cls(name, *(float(f"{number:.4g}") for number in (ours, other)), unit, round(ours / other, 4), kind)


def write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def read(path: Path) -> list[Row]:
    return [Row(**fields) for fields in json.loads(path.read_text())]


def renewed(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of a file that the same processor or card made, with those that were measured again."""
    before = {row.name: row for row in read(path) if row.on == rows[0].on} if path.exists() else {}
    return list({**before, **{row.name: row for row in rows}}.values())


def table(rows: Sequence[Row]) -> str:
    """Aligned columns in Markdown; the gap is what is missing to the goal, in per cent of it."""
    lines = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    goal = goal_of(row.name)
    measured = (row.name, f"{row.ours:g}", f"{row.other:g}", row.unit, f"{row.ratio:.3f}")
    if goal is None:
        return (*measured, "", "")
    gap = goal.gap(row.ours if goal.absolute else row.ratio)
    return (*measured, str(goal), f"{gap:.0%}" if gap else "met")
