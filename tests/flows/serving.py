"""Flows served as `make serve` does, and runs of them, created through the API as the pages do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from m2m.settings import TELEMETRY_OFF

DONE = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LIMIT = 300.0
"""Seconds for a flow of quick stages; machines are noisy."""


@contextmanager
def started_server(home: Path, **env: str) -> Iterator[str]:
    """A Prefect server; gives the address of its API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_API_URL": api,
        **TELEMETRY_OFF,
        **env,
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240  # machines are noisy
        while not _answers(f"{api}/health"):
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
        yield api
    finally:
        server.terminate()
        server.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except HTTPError as error:
        return error.code == 401  # up, and it asks for a password
    except OSError:
        return False


@contextmanager
def served(checkout: Path, api: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The checkout's deployments, offered by a process of their own, as `make serve` does."""
    log = (checkout.parent / "serve.log").open("a+")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.deploy", "serve"],
        cwd=checkout,
        env={
            **os.environ,
            "PREFECT_API_URL": api,
            "PYTHONPATH": python_path(checkout),
            **TELEMETRY_OFF,
            "M2M_DEVICE": "cpu",
            **env,
        },
        stdout=log,
        stderr=log,
        text=True,
    )
    try:
        deadline = time.monotonic() + LIMIT
        while "You can also trigger your deployments" not in (said := (checkout.parent / "serve.log").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


class Run:
    """A run of a deployment, created through the API as the UI does."""

    def __init__(self, client: SyncPrefectClient, checkout: Path, name: str = "full", **parameters: Any) -> None:
        self._client, self._log = client, checkout.parent / "serve.log"
        deployment = client.read_deployment_by_name(f"pipeline/{name}")
        self.id = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def read(self) -> FlowRun:
        return self._client.read_flow_run(self.id)

    def wait(self, limit: float = LIMIT) -> FlowRun:
        deadline = time.monotonic() + limit
        while (run := self.read()).state_type is None or run.state_type.value not in DONE:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)
        return run

    def tasks(self) -> dict[str, str]:
        """By name of the task the name of its state."""
        runs = self._client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [self.id]}))
        return {run.name: run.state_name or "" for run in runs}

    def artifacts(self) -> list[Any]:
        return self._client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [self.id]}), limit=200)


def python_path(checkout: Path) -> str:
    """The checkout's own flows, with the code that is tested."""
    return os.pathsep.join([str(checkout), str(Path(__file__).parents[2])])


def plan(checkout: Path, **stages: Any) -> None:
    (checkout.parent / "plan.json").write_text(json.dumps(stages))


def events(checkout: Path) -> list[list[str]]:
    return [line.split() for line in (checkout.parent / "log").read_text().splitlines()]


def experiments(checkout: Path) -> list[str]:
    return sorted(subprocess.check_output(["dvc", "exp", "list", "--names-only"], cwd=checkout, text=True).split())
