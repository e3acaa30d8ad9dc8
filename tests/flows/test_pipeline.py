"""The flow, on a real Prefect server: what runs when, what it shows, and what is left when it fails or is cancelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

pytestmark = pytest.mark.timeout(900)  # many runs in one test, on a machine that may be busy
DONE = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LIMIT = 300.0
"""Seconds for a flow of quick stages; machines are noisy."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client


@contextmanager
def served(checkout: Path, api: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The checkout's deployments, offered by a process of their own, as `make serve` does."""
    log = (checkout.parent / "serve.log").open("a+")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.deploy", "serve"],
        cwd=checkout,
        env={**os.environ, "PREFECT_API_URL": api, "PYTHONPATH": str(checkout), "DO_NOT_TRACK": "true", **env},
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

    def wait(self) -> FlowRun:
        deadline = time.monotonic() + LIMIT
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


def plan(checkout: Path, **stages: Any) -> None:
    (checkout.parent / "plan.json").write_text(json.dumps(stages))


def events(checkout: Path) -> list[list[str]]:
    return [line.split() for line in (checkout.parent / "log").read_text().splitlines()]


def experiments(checkout: Path) -> list[str]:
    return sorted(subprocess.check_output(["dvc", "exp", "list", "--names-only"], cwd=checkout, text=True).split())


def test_from_the_form_to_the_experiment(checkout: Path, client: SyncPrefectClient, prefect_server: str) -> None:
    """One server of flows for all of it: starting one takes longer than the runs."""
    names = {"captions", "generate", "train@self", "train@dino", "evaluate@self", "evaluate@dino", "report"}
    plan(checkout, **{"generate": {"steps": 5}, "train@self": {"seconds": 2}, "train@dino": {"seconds": 2}})
    with served(checkout, prefect_server):
        # Nothing is changed: the checkout itself is brought up to date, every stage a task.
        first = Run(client, checkout)
        assert first.wait().state_name == "Completed", (checkout.parent / "serve.log").read_text()
        assert first.tasks() == dict.fromkeys(names, "Completed")
        times = {(name, what): float(at) for name, what, at, *_ in events(checkout)}
        assert times["train@dino", "begins"] < times["train@self", "ends"]  # side by side
        assert times["train@self", "begins"] < times["train@dino", "ends"]
        assert times["evaluate@self", "begins"] > times["train@self", "ends"]
        assert all(event[4] == str(first.id) for event in events(checkout) if event[1] == "begins")
        kinds = [artifact.type for artifact in first.artifacts()]
        assert kinds.count("progress") == 1
        (summary,) = [artifact for artifact in first.artifacts() if artifact.key == "summary"]
        assert summary.type == "markdown"
        assert experiments(checkout) == []

        # Once more: all of it is up to date.
        second = Run(client, checkout, targets=["train"], variants=["self"])
        second.wait()
        assert second.tasks() == {"captions": "Skipped", "generate": "Skipped", "train@self": "Skipped"}

        # Two experiments at once, both made elsewhere; what an earlier run made comes from DVC's cache.
        plan(checkout)
        changed = {"captions_train": 9}
        one = Run(client, checkout, experiment="nine", changes=changed)
        other = Run(client, checkout, experiment="again", targets=["evaluate"])
        assert {one.wait().state_name, other.wait().state_name} == {"Completed"}, (
            checkout.parent / "serve.log"
        ).read_text()
        assert other.tasks()["generate"] in ("Cached", "Skipped")
        assert one.tasks()["captions"] == "Completed"
        assert experiments(checkout) == ["again", "nine"]
        assert {event[5] for event in events(checkout) if len(event) == 6} == {"nine"}

        # A server that does not answer is asked again; what is wrong with the input is not tried twice.
        plan(checkout, generate={"unanswered": 1}, **{"train@self": {"wrong": True}})
        for file in checkout.parent.glob("tries-*"):
            file.unlink()
        third = Run(client, checkout, experiment="ten", changes={"captions_train": 10})
        run = third.wait()
        assert run.state_name == "Failed"
        assert "train@self failed" in (run.state.message or "")
        tasks = third.tasks()
        assert (tasks["generate"], tasks["train@dino"], tasks["train@self"]) == ("Completed", "Completed", "Failed")
        assert tasks["report"] == "NotReady"
        assert (checkout.parent / "tries-generate").read_text() == "2"
        assert (checkout.parent / "tries-train@self").read_text() == "1"
        assert experiments(checkout) == ["again", "nine"]

        # A value that the parameters do not allow never becomes a run.
        with pytest.raises(Exception, match="captions_train"):
            Run(client, checkout, changes={"captions_train": 0})


def test_a_cancelled_run_ends_its_processes_and_gives_its_slot_back(
    checkout: Path, client: SyncPrefectClient, prefect_server: str
) -> None:
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=1))
    plan(checkout, **{stage: {"seconds": 300, "child": True} for stage in ("train@self", "train@dino")})
    with served(checkout, prefect_server):
        run = Run(client, checkout, experiment="cancelled")
        deadline = time.monotonic() + LIMIT
        while not (child := checkout.parent / "child").exists() or not child.read_text():
            assert time.monotonic() < deadline, (checkout.parent / "serve.log").read_text()
            time.sleep(0.1)
        grandchild = psutil.Process(int(child.read_text()))
        assert len([event for event in events(checkout) if event[0].startswith("train")]) == 1  # there is one slot
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 1
        began = time.monotonic()
        client.set_flow_run_state(run.id, Cancelling())
        while grandchild.is_running() and grandchild.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        while run.read().state_name != "Cancelled":  # the process's own last word, Crashed, comes first
            assert time.monotonic() - began < 30
            time.sleep(0.1)
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0
        assert experiments(checkout) == []

        plan(checkout)
        again = Run(client, checkout, experiment="cancelled")
        assert again.wait().state_name == "Completed"
        assert again.tasks()["generate"] == "Cached"
        assert experiments(checkout) == ["cancelled"]
    client.delete_global_concurrency_limit_by_name("gpu")
