"""What orchestration costs on top of the stages: the smoke profile as Prefect flows, and by `dvc repro` alone.

``python -m benchmarks.orchestration`` works in clones of the last commit and writes ``results/orchestration.json``. The
time of the stages' own commands is taken by a program named python that stands before the real one on the PATH; what is
left of a run's time, when no command runs, is the orchestration's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from benchmarks.rows import RESULTS, Row, write
from infra import local, state
from infra.servers import PORTS, Stack, servers
from m2m.evaluation.efficiency import hardware
from m2m.settings import TELEMETRY_OFF

ROOT = Path(__file__).parents[1]
KEY = "m2m:bench"
LIMIT = 1800.0
"""Seconds for a run of the flow."""
CLOCK = """#!/bin/sh
begin=$(date +%s.%N)
"{python}" "$@"
code=$?
echo "$begin $(date +%s.%N)" >> "{times}"
exit $code
"""


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = measure(Path(folder))
    write(rows, RESULTS / "orchestration.json")
    for row in rows:
        print(f"{row.name}: {row.ours:g} {row.unit}, by dvc repro {row.other:g}")


def measure(folder: Path) -> list[Row]:
    bins = Path(sys.executable).parent
    times = folder / "times"
    clock = folder / "bin" / "python"
    clock.parent.mkdir()
    clock.write_text(CLOCK.format(python=sys.executable, times=times))
    clock.chmod(0o755)
    for name in ("M2M_STORE", "MLFLOW_TRACKING_URI", "M2M_DEVICE"):
        os.environ.pop(name, None)
    os.environ["PATH"] = os.pathsep.join([str(clock.parent), str(bins), os.environ["PATH"]])
    os.environ.update(TELEMETRY_OFF)

    alone, flows = clone(folder / "dvc" / "m2m"), clone(folder / "flows" / "m2m")
    stages = len(call(alone, "dvc", "stage", "list", "--name-only").splitlines())
    repro = [timed_repro(alone, times), timed_repro(alone, times)]
    with served(flows) as client:
        runs = [timed_flow(client, flows, times, **given) for given in ({}, {}, {"experiment": "unchanged"})]
    (made, own), (nothing, _), (experiment, _) = runs
    return [
        row("overhead of a flow that runs every stage, per stage", (made - own) / stages, per_stage(repro[0], stages)),
        row(f"flow over an up-to-date pipeline of {stages} stages", nothing, repro[1][0]),
        row(f"experiment, whose {stages} stages all come from DVC's cache", experiment, repro[1][0]),
    ]


def clone(folder: Path) -> Path:
    call(ROOT, "git", "clone", "--quiet", str(ROOT), str(folder))
    shutil.copy(folder / "profiles" / "smoke.yaml", folder / "params.yaml")
    call(folder, "git", "config", "user.name", "A")
    call(folder, "git", "config", "user.email", "a@example.org")
    call(folder, "git", "commit", "--quiet", "--all", "--message", "The smoke profile")
    return folder


def call(folder: Path, *command: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def timed_repro(folder: Path, times: Path) -> tuple[float, float]:
    """Seconds in all, and those in which a stage's command ran."""
    times.unlink(missing_ok=True)
    began = time.monotonic()
    call(folder, "dvc", "repro")
    return time.monotonic() - began, busy(times)


@contextmanager
def served(checkout: Path) -> Iterator[SyncPrefectClient]:
    """Prefect's server and the checkout's flows as `make up` starts both, beside the store and database of a checkout.

    The usual port must be free.
    """
    stack = Stack(
        home=checkout, ports={name: port for name, (_, port) in PORTS.items()}, keys=("", ""), prefect_key=KEY
    )
    stack.pages.mkdir(parents=True)
    api = f"{stack.address('prefect')}/api"
    own = {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": KEY, "PREFECT_HOME": str(stack.state / "prefect")}
    records: dict[str, state.Started] = {}
    try:
        for server in servers(stack):
            if server.name == "flows":
                server = replace(server, environment={**os.environ, **own, "PYTHONPATH": str(checkout)})
            if server.name in ("prefect", "flows"):
                started = {server.name: state.start(server, stack, records)}
                local.wait([server], started, records, stack)
        settings = {PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: KEY}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client
    finally:
        local.end(records, checkout, records)


def timed_flow(client: SyncPrefectClient, folder: Path, times: Path, **parameters: Any) -> tuple[float, float]:
    """The same of a flow run, from when its process begins with it."""
    times.unlink(missing_ok=True)
    deployment = client.read_deployment_by_name("pipeline/full")
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    deadline = time.monotonic() + LIMIT
    while run.state is None or not run.state.is_final():
        assert time.monotonic() < deadline, folder
        time.sleep(0.2)
        run = client.read_flow_run(run.id)
    assert run.state_name == "Completed", run.state
    assert run.start_time is not None
    assert run.end_time is not None
    return (run.end_time - run.start_time).total_seconds(), busy(times)


def busy(times: Path) -> float:
    """Seconds in which at least one command ran."""
    total = reached = 0.0
    lines = times.read_text().splitlines() if times.exists() else []
    for begin, end in sorted((float(a), float(b)) for a, b in map(str.split, lines)):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def per_stage(times: tuple[float, float], stages: int) -> float:
    return (times[0] - times[1]) / stages


def row(name: str, ours: float, other: float) -> Row:
    return replace(Row.of(name, ours, other, unit="s", kind="wall"), on=hardware("cpu"))


if __name__ == "__main__":
    main()
