"""Stages are processes that leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.stage import Children, progress_in

ENV = dict(os.environ)


def test_lines_come_as_they_are_written(tmp_path: Path) -> None:
    script = "import sys, time\nfor n in range(3): print(n, flush=True); time.sleep(0.3)\nprint('x', file=sys.stderr)"
    heard: list[tuple[str, float]] = []
    code = Children().run(
        [sys.executable, "-c", script], cwd=tmp_path, env=ENV, say=lambda line: heard.append((line, time.monotonic()))
    )
    assert code == 0
    assert [line for line, _ in heard] == ["0", "1", "2", "x"]
    assert heard[2][1] - heard[0][1] > 0.4


def test_the_exit_code_is_the_childs(tmp_path: Path) -> None:
    assert Children().run([sys.executable, "-c", "raise SystemExit(3)"], cwd=tmp_path, env=ENV, say=print) == 3


def test_a_child_ends_with_all_that_it_started(tmp_path: Path) -> None:
    script = "import subprocess; p = subprocess.Popen(['sleep', '300']); print(p.pid, flush=True); p.wait()"
    children, heard, codes = Children(), [], []

    def work() -> None:
        with children.held():
            codes.append(children.run([sys.executable, "-c", script], cwd=tmp_path, env=ENV, say=heard.append))

    thread = threading.Thread(target=work)
    thread.start()
    while not heard:
        time.sleep(0.02)
    grandchild = psutil.Process(int(heard[0]))
    began = time.monotonic()
    children.end_all()
    thread.join(timeout=10)
    assert time.monotonic() - began < 10
    assert codes == [-15]
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert children.run(["true"], cwd=tmp_path, env=ENV, say=print) == -15  # nothing is started any more


def test_what_does_not_end_by_itself_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    children, heard, codes = Children(), [], []
    thread = threading.Thread(
        target=lambda: codes.append(
            children.run([sys.executable, "-c", script], cwd=tmp_path, env=ENV, say=heard.append)
        )
    )
    thread.start()
    while not heard:
        time.sleep(0.02)
    children.end_all()
    thread.join(timeout=10)
    assert codes == [-9]


def test_sigterm_ends_the_children_and_then_does_what_it_did_before(tmp_path: Path) -> None:
    script = """
import signal, subprocess, sys, threading, time
from pathlib import Path
from flows.stage import Children
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
children = Children()
children.end_on_sigterm()
def work():
    children.run(["sh", "-c", "echo $$; sleep 300"], cwd=Path("."), env={}, say=lambda line: print(line, flush=True))
threading.Thread(target=work).start()
time.sleep(300)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**ENV, "PYTHONPATH": str(root)}
    ) as flow:
        assert flow.stdout is not None
        child = int(flow.stdout.readline())
        assert psutil.pid_exists(child)
        flow.terminate()
        assert flow.wait(timeout=20) == 42
    assert not psutil.pid_exists(child)


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        ("generate: 1232/4928 images, 69 images/s, 0:53 left", 25),
        ("train-self: 24/24 images", 100),
        ("generate: 0/0 images", None),
        ("data/mis.json: 12 train sets, 8 test sets of 4 images in 4 shards", None),
        ("Running stage 'generate':", None),
    ],
)
def test_progress_is_read_from_the_lines_that_tell_of_it(line: str, percent: int | None) -> None:
    progress = progress_in(line)
    assert (progress and progress[1]) == percent
    if progress:
        assert line.startswith(f"{progress[0]}: ")
