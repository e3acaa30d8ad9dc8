"""The local stack: Prefect, MLflow, an S3 server and the process that serves the flows, without Docker.

`python -m infra.local up | down | status`, or `make up`, `make down`. Ports come from ``M2M_PREFECT_PORT``,
``M2M_MLFLOW_PORT`` and ``M2M_S3_PORT``; everything listens on 127.0.0.1 only.

What must survive lies outside of ``work``: flow runs in ``prefect.db`` beside ``mlflow.db``, objects in ``data/s3`` and
``data/store``, their keys in ``data/s3.keys`` and ``data/prefect.key``. Logs, records and the file for a shell lie in
``work/stack``. All of it is the main checkout's, from whichever worktree one asks.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from infra import state
from infra.servers import PORTS, Server, Stack, servers
from infra.state import Started
from m2m.errors import UserError
from m2m.settings import main_checkout
from m2m.tracking import bring_artifacts_along

NAMES = (*PORTS, "flows")
START_PATIENCE = 180.0
"""Seconds for the servers to become healthy: at its first start each makes a database, and a machine may be busy."""
STOP_PATIENCE = 15.0
"""Seconds for a server to end when asked; for the flows this includes their runs."""


def up(home: Path) -> None:
    """Starts what is not running yet, and returns when all of it is healthy.

    Raises:
        UserError: a port is taken, or a server does not come up; then nothing that this call started is left running.
    """
    with state.alone(home):
        records = state.read_records(home)
        running = [name for name in NAMES if leader(name, home, records)]
        missing = [name for name in NAMES if name not in running]
        # While one of them runs, all keep their ports: the others know its address.
        kept = {name: port for name in PORTS if running and name in records and (port := records[name]["port"])}
        stack = Stack(
            home=home,
            ports=state.read_ports(os.environ) | kept,
            keys=state.read_or_make_keys(home),
            prefect_key=state.read_or_make_prefect_key(home),
        )
        for name in missing:
            state.end(name, home, leader=None, patience=STOP_PATIENCE)  # what outlived it may hold its port
        state.check_ports({name: port for name, port in stack.ports.items() if name in missing})
        state.make_bucket(home)
        bring_artifacts_along(home / "mlflow.db")
        state.keep_out_second_pages(stack)
        print("The local stack is already up:" if not missing else "Starting the local stack:", flush=True)
        try:
            # The flows need the others.
            for wanted in (NAMES[:-1], NAMES[-1:]):
                chosen = [server for server in servers(stack) if server.name in wanted]
                started = {s.name: state.start(s, stack, records) for s in chosen if s.name in missing}
                wait(chosen, started, records, stack)
        except BaseException:
            end(missing, home, records)
            raise
        state.write_shell_file(stack)
        print(f"Sign in to Prefect's pages with the line in {os.path.relpath(state.prefect_key_file(home))}")
        print(f"Point a shell at it: . {os.path.relpath(state.shell_file(home))}")
        print("End it: make down", flush=True)


def down(home: Path) -> None:
    """Ends the servers of this checkout and whatever they started; nothing else."""
    with state.alone(home):
        ended = end(NAMES, home, state.read_records(home))
        state.forget(home)
    print(f"Ended: {', '.join(ended)}." if ended else "Nothing of the local stack was running.")


def status(home: Path) -> bool:
    """Prints what runs where; whether all of it runs."""
    records = state.read_records(home)
    leaders = {name: leader(name, home, records) for name in NAMES}
    for name, pid in leaders.items():
        port = f", port {records[name]['port']}" if pid and records[name]["port"] else ""
        print(f"{name:8} up, process {pid}{port}" if pid else f"{name:8} down")
    return all(leaders.values())


def leader(name: str, home: Path, records: Mapping[str, Started]) -> int | None:
    """The process that was started as this server, if it still runs."""
    pid = records[name]["pid"] if name in records else None
    return pid if pid in state.find(name, home) else None


def wait(
    chosen: Iterable[Server],
    started: Mapping[str, subprocess.Popen[bytes]],
    records: Mapping[str, Started],
    stack: Stack,
) -> None:
    """Prints each server's address when it is healthy.

    Raises:
        UserError: one ended instead, or its time is up.
    """
    waiting = list(chosen)
    deadline = time.monotonic() + START_PATIENCE
    while waiting:
        for server in list(waiting):
            process, log = started.get(server.name), stack.log(server.name)
            if process and process.poll() is not None:
                raise UserError(f"{server.title} did not come up: {_last_line(log)}; its log: {log}")
            if server.healthy(records[server.name]["started"]):
                print(f"  {server.title:8} {server.address}", flush=True)
                waiting.remove(server)
            elif time.monotonic() > deadline:
                raise UserError(
                    f"{server.title} does not answer as it should at {server.address}: {_last_line(log)}; "
                    f"its log: {log}"
                )
        time.sleep(0.2)


def end(names: Iterable[str], home: Path, records: Mapping[str, Started]) -> list[str]:
    """Ends servers, the flows first; which of them there were."""
    asked = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return [
            name
            for name in sorted(names, key=NAMES.index, reverse=True)
            if state.end(name, home, leader=leader(name, home, records), patience=STOP_PATIENCE)
        ]
    finally:
        for number, handler in asked.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    """What a server said last, without colours and frames."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[│┃╭╮╰╯─━]", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 where a person has to do something, and status answers 1 unless all is up."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("up", "down", "status"))
    verb = parser.parse_args(arguments).verb
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end, it tidies up as after Ctrl-C
    home = main_checkout()
    try:
        if verb == "status":
            return 0 if status(home) else 1
        up(home) if verb == "up" else down(home)
    except UserError as error:
        print(f"local stack: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("local stack: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
