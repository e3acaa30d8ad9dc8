import sys

import pytest

from m2m import progress as module
from m2m.progress import progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(100, "generate", unit="images") as advance:
        for _ in range(10):
            clock.now += 6
            advance(10)
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "generate: 30/100 images, 1.67 images/s, 0:42 left",
        "generate: 60/100 images, 1.67 images/s, 0:24 left",
        "generate: 90/100 images, 1.67 images/s, 0:06 left",
        "generate: 100/100 images, 1.67 images/s",
    ]


def test_skipped_work_counts_as_done_but_not_as_fast(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10_000, "generate", unit="images") as advance:
        advance(1_000, skipped=True)
        clock.now += 20
        advance(20)
    assert capsys.readouterr().err == "generate: 1020/10000 images, 1 images/s, 2:29:40 left\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(2, "verify", unit="shards") as advance:
        advance()
        advance()
    out, err = capsys.readouterr()
    assert not out
    assert "verify" in err
    assert "2/2 shards" in err
