"""Clocks, turns, and what computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from m2m.evaluation import timing
from m2m.evaluation.timing import Clock, hardware, in_turn


def test_all_take_turns_and_the_first_turn_warms_up() -> None:
    called: list[str] = []

    def work(name: str) -> int:
        called.append(name)
        return len(called)

    assert in_turn([partial(work, "a"), partial(work, "b")], repeats=2) == [[3, 5], [4, 6]]
    assert called == ["a", "b"] * 3


def test_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = Clock("cuda:1")
    assert clock.taken(lambda: waited.append("work")) >= 0
    assert waited == ["cuda:1", "work", "cuda:1"]
    assert Clock("cpu").taken(lambda: None) >= 0
    assert len(waited) == 3


def test_what_computes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9000\nmodel name\t: Fast 9000\n")
    monkeypatch.setattr(timing, "PROCESSORS", tmp_path / "cpuinfo")
    assert hardware("cpu") == f"Fast 9000, {torch.get_num_threads()} threads, torch {torch.__version__}"
    monkeypatch.setattr(timing, "PROCESSORS", tmp_path / "none")
    assert hardware("cpu").endswith(f"torch {torch.__version__}")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert hardware("cuda:1") == f"GPU of cuda:1, torch {torch.__version__}"
