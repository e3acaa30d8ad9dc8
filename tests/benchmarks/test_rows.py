"""Rows, their goals, and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rows import RESULTS, Goal, Row, goal_of, read, renewed, table, write


@pytest.mark.parametrize(
    ("goal", "number", "gap"),
    [(Goal(2.0), 1.0, 0), (Goal(2.0), 3.0, 0.5), (Goal(2.0, least=True), 3.0, 0), (Goal(2.0, least=True), 1.0, 0.5)],
)
def test_the_gap_is_what_is_missing(goal: Goal, number: float, gap: float) -> None:
    assert goal.gap(number) == pytest.approx(gap)


def test_the_table_tells_goal_and_gap() -> None:
    rows = [
        Row.of("growth/256px/dino", 3.0, 2.0, unit="GFLOP", kind="count"),
        Row.of("start/import", 0.2, 0.01, unit="s", kind="wall"),
        Row.of("of no goal", 1.0, 2.0, unit="s", kind="wall"),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()]
    assert lines[2] == ["growth/256px/dino", "3", "2", "GFLOP", "1.500", "≤ 1.25", "20%"]
    assert lines[3][5:] == ["≤ 0.3 (ours)", "met"]
    assert lines[4] == ["of no goal", "1", "2", "s", "0.500", "", ""]


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [replace(Row.of("a", 1 / 3, 7.0, unit="s", kind="gpu"), on="a card")]
    write(rows, tmp_path / "results" / "a.json")
    assert read(tmp_path / "results" / "a.json") == rows
    assert rows[0].ours == 0.3333


def test_what_is_measured_again_takes_its_place_and_another_card_s_rows_go(tmp_path: Path) -> None:
    def on(card: str, **seconds: float) -> list[Row]:
        return [replace(Row.of(name, s, 1.0, unit="s", kind="gpu"), on=card) for name, s in seconds.items()]

    path = tmp_path / "rows.json"
    assert renewed(path, on("card", a=1.0)) == on("card", a=1.0)
    write(on("card", a=1.0, b=2.0), path)
    assert renewed(path, on("card", b=3.0, c=4.0)) == on("card", a=1.0, b=3.0, c=4.0)
    assert renewed(path, on("another", b=3.0)) == on("another", b=3.0)


def test_what_is_committed_reads_and_says_what_timed_it() -> None:
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        assert all(bool(row.on) == (row.kind != "count") for row in read(file))


def test_a_goal_belongs_to_a_whole_name() -> None:
    assert goal_of("generation/64px") == Goal(1.3, least=True)
    assert goal_of("generation/64px/beside-the-network") == Goal(0.05)
    assert goal_of("generation") is None
