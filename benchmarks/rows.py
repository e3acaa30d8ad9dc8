"""What was measured: rows, how they are kept, what they should come to, and the table in which both stand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

Kind = Literal["count", "wall", "gpu"]
RESULTS = Path(__file__).parent / "results"
HEAD = ("what", "ours", "other", "unit", "ours/other", "goal", "gap")


@dataclass(frozen=True)
class Goal:
    """A bound of a row's ratio, or (`absolute`) of what is ours."""

    bound: float
    least: bool = False
    """Not to be fallen short of; else not to be exceeded."""
    absolute: bool = False

    def gap(self, number: float) -> float:
        """How far a number is on the wrong side, as a share of the bound; 0: it is met."""
        beyond = self.bound - number if self.least else number - self.bound
        return max(0.0, beyond / self.bound)

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:.4g}{' (ours)' if self.absolute else ''}"


GOALS = {
    r"step/\d+px/dino/given=4": Goal(1.03),
    r"step/256px/self/given=4": Goal(1.12),
    r"step/512px/self/given=4": Goal(1.35),
    r"step/512px/self-pooled/given=4": Goal(1.15),
    r"growth/\d+px/dino": Goal(1.25),
    r"cache-(step|count)/\d+px/self(-pooled)?/plain": Goal(1 / 4),
    r"cache-(step|count)/\d+px/self(-pooled)?/guided": Goal(1 / 2.5),
    r"teacher-forcing-count/\d+px/self": Goal(1 / 3),
    r"sampling/\d+px/dino/given=4": Goal(1.1),
    r"cache/\d+px/self/plain": Goal(1 / (0.8 * 4)),
    r"cache/\d+px/self/guided": Goal(1 / (0.8 * 2.5)),
    r"training/64px/(self|dino)": Goal(1.0, least=True),
    r"training/(256|512)px/(self|dino)": Goal(1.3, least=True),
    r"training/\d+px/(self|dino)/wait": Goal(0.02),
    r"training/512px/(self|dino)/rate": Goal(0.4, least=True),
    r"teacher-forcing/\d+px/(self|dino)": Goal(1 / 3),
    r"generation/\d+px": Goal(1.3, least=True),
    r"generation/\d+px/beside-the-network": Goal(0.05),
    r"reading/\d+px": Goal(1.0, least=True),
    r"loading/\d+px/(self|dino)(/s3)?": Goal(1.0, least=True),
    r"start/import": Goal(0.3, absolute=True),
    r"start/help": Goal(1.0, absolute=True),
    r"start/repro": Goal(5.0, absolute=True),
}


def goal_of(name: str) -> Goal | None:
    return next((goal for pattern, goal in GOALS.items() if re.fullmatch(pattern, name)), None)


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
        return cls(name, float(f"{ours:.4g}"), float(f"{other:.4g}"), unit, round(ours / other, 4), kind)


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
