"""Processes that outlive the command that started them, and are found again: these, all of these, and no others.

Each server is started with a mark in its environment, which every process it starts inherits. The mark says whose a
process is without trusting a number: a process id that a file remembers may belong to somebody else after a crash or
a reboot, and the file itself may be gone. It also finds what a killed server left behind.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

MARK = "M2M_STACK"


def start(
    name: str, command: Sequence[str], *, home: Path, at: Path, environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Starts a server of the stack of `home` in a session of its own: no Ctrl-C or closed terminal reaches it.

    Args:
        at: its working folder.
        log: file for what it prints; replaces that of an earlier start.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=at,
            env={**environment, MARK: _mark(name, home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def find(name: str, home: Path) -> dict[int, Any]:
    """The running processes of one server and all that it started, by their id."""
    return {process.pid: process for process in psutil.process_iter() if _mark_of(process) == _mark(name, home)}


def end(name: str, home: Path, *, leader: int | None, patience: float) -> int:
    """Ends a server and whatever it started; says how many processes these were.

    Args:
        leader: the server's own process, if known: it is asked first, and may settle what it has begun.
        patience: seconds that each is given before it is killed.
    """
    found = find(name, home)
    first = {leader: found[leader]} if leader in found else found
    _signal(first, kill=False)
    _wait_until_none(name, home, patience, among=set(first))
    _signal(find(name, home), kill=False)
    _wait_until_none(name, home, patience)
    # What is killed may have started something in its last moment.
    while rest := find(name, home):
        _signal(rest, kill=True)
        _wait_until_none(name, home, 1.0)
    return len(found)


def holder(port: int) -> str:
    """Who listens on a TCP port, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:  # not everywhere may one ask for the sockets of others
        pass
    return "another process"


def _mark(name: str, home: Path) -> str:
    return f"{name}@{home}"


def _mark_of(process: Any) -> str | None:
    try:
        mark: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):  # gone, a zombie, or of another user
        return None
    return None if process.pid == os.getpid() else mark


def _signal(processes: Mapping[int, Any], *, kill: bool) -> None:
    for process in processes.values():
        try:
            # psutil compares start times first, so that a number which changed hands meanwhile is left alone.
            process.kill() if kill else process.terminate()
        except psutil.NoSuchProcess:
            continue


def _wait_until_none(name: str, home: Path, seconds: float, among: set[int] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = find(name, home)
        if not (left if among is None else left.keys() & among):
            return
        time.sleep(0.1)
