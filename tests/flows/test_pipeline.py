"""The flow, on a real Prefect server: what runs when, what it shows, and what is left when it fails or is cancelled."""

from __future__ import annotations

import logging
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.graph import Stage, stages_at_once
from flows.pipeline import await_limit, held_slots, room
from m2m.params_file import load_params
from m2m.tracking import open_history
from tests.flows.serving import LIMIT, Run, events, experiments, plan, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # many runs in one test, on a machine that may be busy


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client


def test_from_the_form_to_the_experiment(
    checkout: Path, client: SyncPrefectClient, prefect_server: str, database: str
) -> None:
    """One server of flows for all of it: starting one takes longer than the runs."""
    names = {"captions", "generate", "train@self", "train@dino", "evaluate@self", "evaluate@dino", "report"}
    plan(
        checkout,
        **{"generate": {"steps": 5, "recorded": True}, "train@self": {"seconds": 2}, "train@dino": {"seconds": 2}},
    )
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
        said = (checkout.parent / "serve.log").read_text()
        assert "Running stage 'generate'" in said
        assert not re.search("git add|dvc push|limits .* do not exist", said)
        kinds = [artifact.type for artifact in first.artifacts()]
        assert kinds.count("progress") == 1
        (summary,) = [artifact for artifact in first.artifacts() if artifact.key == "summary"]
        assert summary.type == "markdown"
        parent, child = open_history(database).of_flow_run(str(first.id))
        assert (parent.stage, parent.name, parent.status) == ("pipeline", first.read().name, "FINISHED")
        assert (child.stage, child.status, child.origin.stage) == ("generate", "FINISHED", "generate")
        assert child.origin.flow_run_url == parent.origin.flow_run_url != ""
        assert open_history(database).trace(parent.id).run == child, "it is the parent of its stages' runs"
        assert "`make ui` opens MLflow" in summary.data
        assert f"run `{parent.id}`" in summary.data
        assert f"- `generate`: generate, run `{child.id}`" in summary.data
        assert experiments(checkout) == []

        # Once more: all of it is up to date.
        second = Run(client, checkout, targets=["train"], variants=["self"])
        second.wait()
        assert second.tasks() == {"captions": "Skipped", "generate": "Skipped", "train@self": "Skipped"}
        (summary,) = [artifact for artifact in second.artifacts() if artifact.key == "summary"]
        assert "- `train@self`: reused" in summary.data

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
        (parent,) = open_history(database).of_flow_run(str(third.id))
        assert (parent.status, parent.origin.experiment) == ("FAILED", "ten")
        assert (checkout.parent / "tries-generate").read_text() == "2"
        assert (checkout.parent / "tries-train@self").read_text() == "1"
        assert experiments(checkout) == ["again", "nine"]

        # Values changed in the checkout while the flows are served: an untouched form runs them, committed or not.
        plan(checkout)
        params = checkout / "params.yaml"
        before = load_params(params).captions.train
        params.write_text(params.read_text().replace(f"  train: {before}\n", "  train: 11\n", 1))
        untouched = {"targets": [], "variants": ["self", "dino"], "profile": "params.yaml", "experiment": ""}
        fourth = Run(client, checkout, **untouched, force=False, changes={})
        assert fourth.wait().state_name == "Completed", (checkout.parent / "serve.log").read_text()
        assert fourth.tasks()["captions"] == "Completed"
        assert load_params(params).captions.train == 11
        assert experiments(checkout) == ["again", "nine"]
        # An experiment would leave out what is not committed.
        fifth = Run(client, checkout, changes={"generate_seed": 5}).wait()
        assert fifth.state_name == "Failed"
        assert "params.yaml has values that are not committed" in (fifth.state.message or "")
        subprocess.run(["git", "commit", "-qam", "Eleven"], cwd=checkout, check=True)
        sixth = Run(client, checkout, experiment="eleven", changes={"generate_seed": 5})
        assert sixth.wait().state_name == "Completed", (checkout.parent / "serve.log").read_text()
        assert experiments(checkout) == ["eleven"]  # of the last commit
        subprocess.run(["dvc", "exp", "apply", "eleven"], cwd=checkout, check=True, capture_output=True)
        applied = load_params(params)
        assert (applied.captions.train, applied.generate.seed) == (11, 5)

        # A value that the parameters do not allow never becomes a run.
        with pytest.raises(Exception, match="captions_train"):
            Run(client, checkout, changes={"captions_train": 0})


def test_a_limit_of_nothing_is_waited_for(client: SyncPrefectClient, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("test")
    one = Stage(name="train", description="", parents=(), slot="held", alone=False)
    assert await_limit(one, log) == 0  # nobody made such a limit
    assert room("held") == stages_at_once()
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="held", limit=0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(copy_context().run, await_limit, one, log)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=3)
        client.update_global_concurrency_limit("held", GlobalConcurrencyLimitUpdate(limit=3))
        assert waiting.result(timeout=60) == 1
    assert await_limit(replace(one, alone=True), log) == room("held") == 3

    # Lowered while a stage waits for a slot, which would else fail.
    begun = threading.Event()

    def run() -> None:
        with held_slots(one, log):
            begun.set()

    client.update_global_concurrency_limit("held", GlobalConcurrencyLimitUpdate(limit=1))
    with ThreadPoolExecutor(1) as pool:
        with held_slots(one, log):
            waiting = pool.submit(copy_context().run, run)
            assert not begun.wait(3)
            client.update_global_concurrency_limit("held", GlobalConcurrencyLimitUpdate(limit=0))
            assert not begun.wait(10)
            client.update_global_concurrency_limit("held", GlobalConcurrencyLimitUpdate(limit=1))
        waiting.result(timeout=120)
    assert client.read_global_concurrency_limit_by_name("held").active_slots == 0

    # Lowered while it runs: what is done stays done, though the server cannot count the slot that comes back.
    with caplog.at_level(logging.WARNING, "test"), held_slots(one, log):
        client.update_global_concurrency_limit("held", GlobalConcurrencyLimitUpdate(limit=0))
    assert "comes back in some minutes" in caplog.text
    client.update_global_concurrency_limit("held", GlobalConcurrencyLimitUpdate(limit=0, active=False))
    assert await_limit(one, log) == 0  # it is off
    client.delete_global_concurrency_limit_by_name("held")


def test_a_cancelled_run_ends_its_processes_and_gives_its_slot_back(
    checkout: Path, client: SyncPrefectClient, prefect_server: str, database: str
) -> None:
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=0))
    plan(checkout, **{stage: {"seconds": 300, "child": True} for stage in ("train@self", "train@dino")})
    with served(checkout, prefect_server):
        run = Run(client, checkout, experiment="cancelled")
        deadline = time.monotonic() + LIMIT
        while run.tasks().get("generate") != "Completed":
            assert time.monotonic() < deadline, (checkout.parent / "serve.log").read_text()
            time.sleep(0.1)
        time.sleep(3)
        assert not [event for event in events(checkout) if event[0].startswith("train")]  # a limit of 0 holds them back
        client.update_global_concurrency_limit("gpu", GlobalConcurrencyLimitUpdate(limit=1))
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
        assert [one.status for one in open_history(database).of_flow_run(str(run.id))] == ["KILLED"]

        plan(checkout)
        again = Run(client, checkout, experiment="cancelled")
        assert again.wait().state_name == "Completed"
        assert again.tasks()["generate"] == "Cached"
        assert experiments(checkout) == ["cancelled"]
    client.delete_global_concurrency_limit_by_name("gpu")
