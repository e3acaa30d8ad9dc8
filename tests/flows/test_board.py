"""What is shown of stages that run side by side, and what is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from flows.board import Board
from flows.stage import Verdict
from tests.flows.serving import plan
from tests.flows.test_side_by_side import COMMAND, python_path


def test_without_a_terminal_there_are_lines_and_each_stage_has_its_own_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(tmp_path, ["generate", "report"], 2, bars=False)
    with board.shown():
        board.begins("generate")
        board.line("generate", "generate: 1/2 images, 5 images/s, 0:01 left")
        board.ends("generate", Verdict.RAN)
        board.begins("report")
        board.line("report", "m2m: wrong")
        board.ends("report", None)
    assert capsys.readouterr().out.splitlines() == [
        "[generate] begins",
        "[generate] generate: 1/2 images, 5 images/s, 0:01 left",
        "[generate] made, 1 of 2 after 0:00",
        "[report] begins",
        "[report] m2m: wrong",
        f"[report] failed, see {tmp_path}/report.log, 2 of 2 after 0:00",
    ]
    assert (tmp_path / "generate.log").read_text() == "generate: 1/2 images, 5 images/s, 0:01 left\n"
    assert list(json.loads((tmp_path / "seconds.json").read_text())) == ["generate"], "what failed took no time"


def test_what_is_no_progress_is_told_above_the_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever signs it has; and a stage that DVC names by its path has a log, too."""
    board = Board(tmp_path / "[/old]", ["data/raw.dvc"], 1, bars=True)
    with board.shown():
        board.begins("data/raw.dvc")
        board.line("data/raw.dvc", "Running stage 'data/raw.dvc':")
        board.line("data/raw.dvc", "left out 2 [bad] lines")
        board.ends("data/raw.dvc", None)
    said = capsys.readouterr().out
    assert "[data/raw.dvc] left out 2 [bad] lines" in said
    assert "Running stage" not in said
    assert f"failed, see {board.log('data/raw.dvc')}" in said
    assert len(board.log("data/raw.dvc").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("kept", "left"),
    [('{"generate": 60, "train": 100}', "0 of 2, about 1:20 left"), ('{"generate": 60}', "0 of 2"), ("{", "0 of 2")],
)
def test_what_stages_took_tells_what_is_left(kept: str, left: str, tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text(kept)
    assert Board(tmp_path, ["generate", "train"], 2, bars=False).meter() == left


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_a_terminal_there_are_bars(checkout: Path) -> None:
    plan(checkout, generate={"steps": 5})
    ours, theirs = os.openpty()
    environment = {**os.environ, "PYTHONPATH": python_path(checkout), "TERM": "xterm-256color", "COLUMNS": "100"}
    said = b""
    with subprocess.Popen(COMMAND, cwd=checkout, env=environment, stdout=theirs, stderr=subprocess.STDOUT) as process:
        os.close(theirs)
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))
    assert process.returncode == 0, shown
    assert "all stages" in shown
    assert "7 of 7" in shown
    assert "report: made, 0:" in shown
    assert "Running stage" not in shown, "that is in the log"
    assert "Running stage 'report'" in (checkout / "work" / "logs" / "report.log").read_text()
