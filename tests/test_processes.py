"""Processes of a pool start fresh, and end with their parent, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from m2m.processes import process_pool


def test_they_compute() -> None:
    with process_pool(1) as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
        assert pool.submit(os.getpid).result() != os.getpid()


def test_they_do_not_outlive_a_killed_parent() -> None:
    script = """
import os, sys, time
from m2m.processes import process_pool
pool = process_pool(1)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as status:  # noqa: PTH123
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
