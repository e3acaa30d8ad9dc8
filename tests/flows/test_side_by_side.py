"""The pipeline without a server: what may run beside what, and what is left when a stage fails or a person stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.graph import Stage, in_turn, read_graph, with_descendants
from flows.side_by_side import side_by_side
from flows.stage import StageError, Verdict
from m2m.errors import UserError
from tests.flows.serving import LIMIT, events, plan, python_path

ROOT = Path(__file__).parents[2]

COMMAND = [sys.executable, "-m", "flows.side_by_side"]


def started(checkout: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": python_path(checkout), "M2M_DEVICE": "cpu"}
    return subprocess.Popen(
        [*COMMAND, *options],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # who runs tests in the background ignores them, and what they start inherits it
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def repro(checkout: Path, *options: str) -> tuple[int, str, str]:
    process = started(checkout, *options)
    out, error = process.communicate(timeout=LIMIT)
    return process.returncode, out, error


def at(checkout: Path) -> dict[tuple[str, str], float]:
    """When stages began and ended."""
    return {(name, what): float(time) for name, what, time, *_ in events(checkout)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_stages_side_by_side_and_then_dvc_finds_nothing_to_do(checkout: Path) -> None:
    plan(checkout, generate={"steps": 3}, **{"train@self": {"seconds": 2}, "train@dino": {"seconds": 2}})
    code, out, error = repro(checkout, "--at-once", "2")
    assert code == 0, error
    assert out.startswith("0 of 7 stages are up to date\n")
    assert "[generate] generate: 3/3 images, 5 images/s, 0:01 left\n" in out
    assert "[report] made, 7 of 7 after 0:" in out
    times = at(checkout)
    assert times["train@dino", "begins"] < times["train@self", "ends"]
    assert times["train@self", "begins"] < times["train@dino", "ends"]
    assert times["report", "begins"] > max(times["evaluate@self", "ends"], times["evaluate@dino", "ends"])

    serial = subprocess.run(["dvc", "repro"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert serial.count("didn't change, skipping") == 7
    assert repro(checkout)[:2] == (0, "7 of 7 stages are up to date\n")

    # What an earlier run made comes from DVC's cache.
    (checkout / "models" / "self.txt").unlink()
    code, out, error = repro(checkout)
    assert code == 0, error
    assert "[train@self] restored from DVC's cache, 1 of 3" in out
    assert "[evaluate@self] unchanged, 2 of 3" in out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_failed_stage_lets_those_beside_it_end_and_the_next_run_goes_on_there(checkout: Path) -> None:
    plan(checkout, **{"train@self": {"wrong": True}, "train@dino": {"seconds": 3}})
    code, _, error = repro(checkout, "--at-once", "2")
    assert (code, error) == (2, "m2m: train@self: params.yaml:3: wrong\n")
    times = at(checkout)
    assert ("train@dino", "ends") in times
    assert ("evaluate@dino", "begins") not in times
    assert "m2m: params.yaml:3: wrong" in (checkout / "work" / "logs" / "train@self.log").read_text()

    plan(checkout)
    code, out, error = repro(checkout, "--at-once", "2")
    assert code == 0, error
    assert out.startswith("3 of 7 stages are up to date\n")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_person_who_stops_it_ends_all_of_it(checkout: Path, number: signal.Signals) -> None:
    plan(checkout, **{stage: {"seconds": 300, "child": True} for stage in ("train@self", "train@dino")})
    process = started(checkout, "--at-once", "1")
    deadline = time.monotonic() + LIMIT
    while not (child := checkout.parent / "child").exists() or not child.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    grandchild = psutil.Process(int(child.read_text()))
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "m2m: interrupted; the same command goes on where it was\n"
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert len([name for name, what in at(checkout) if name.startswith("train") and what == "begins"]) == 1


def stage(name: str, *parents: str, slot: str | None = "gpu", **meta: bool) -> Stage:
    return Stage(name=name, description="", parents=parents, slot=slot, **{"alone": False, **meta})


GRAPH = [
    stage("captions", slot=None),
    stage("train", "captions"),
    stage("evaluate", "train"),
    stage("sampling", "train", alone=True),
    stage("views", "captions"),
    stage("finetune", "train", "views"),
    stage("report", "evaluate", "sampling", "finetune", slot=None),
]


def ran(stages: Sequence[Stage], stale: set[str], at_once: int) -> tuple[list[str], set[frozenset[str]]]:
    """In which order stages ended, and which ones were seen together."""
    lock, running, together = threading.Lock(), set[str](), set[frozenset[str]]()

    def run(one: Stage) -> Verdict:
        with lock:
            running.add(one.name)
            together.add(frozenset(running))
        time.sleep(0.05)
        with lock:
            running.remove(one.name)
        return Verdict.RAN

    return [one.name for one, _ in side_by_side(stages, stale, at_once, run)], together


def test_a_stage_that_measures_time_runs_alone_and_the_longest_way_to_the_end_goes_first() -> None:
    names = {one.name for one in GRAPH}
    one_by_one, together = ran(GRAPH, names, at_once=1)
    assert one_by_one == ["captions", "train", "views", "evaluate", "finetune", "sampling", "report"]
    assert all(len(group) == 1 for group in together)
    ended, together = ran(GRAPH, names, at_once=2)
    assert ended[-2:] == ["sampling", "report"]
    assert {"train", "views"} in together
    assert {"evaluate", "finetune"} in together
    assert [group for group in together if "sampling" in group] == [{"sampling"}]


def test_what_has_something_to_show_goes_before_what_has_a_long_way_to_go() -> None:
    graph = [replace(one, shown=one.name == "evaluate") for one in GRAPH]
    one_by_one, _ = ran(graph, {one.name for one in graph}, at_once=1)
    assert one_by_one == ["captions", "train", "evaluate", "views", "finetune", "sampling", "report"]

    # Where several may run, what it does not need waits for it, but for what is up to date or fails.
    ended, together = ran(graph, {one.name for one in graph}, at_once=2)
    assert ended[:3] == ["captions", "train", "evaluate"]
    assert all(len(group) == 1 for group in together if group & {"captions", "train", "evaluate"})
    assert {"views", "sampling"} - {name for group in together for name in group} == set()
    ended, together = ran(graph, {"views", "finetune", "sampling", "report"}, at_once=2)
    assert ended == ["views", "finetune", "sampling", "report"]
    shown = {one.name for one in read_graph(ROOT) if one.shown}
    assert shown == {f"evaluate@{variant}{task}" for variant in ("self", "dino") for task in ("", "-nvs", "-vpg")}


def test_only_what_is_stale_runs() -> None:
    assert ran(GRAPH, with_descendants(GRAPH, {"finetune"}), at_once=2)[0] == ["finetune", "report"]
    assert ran(GRAPH, set(), at_once=2)[0] == []


def test_every_failure_is_told() -> None:
    both = threading.Barrier(2)

    def run(one: Stage) -> Verdict:
        if one.name in ("train", "views"):
            both.wait(timeout=10)
            raise StageError(f"{one.name}: no space")
        return Verdict.RAN

    with pytest.raises(UserError, match=r"no space; .*no space"):
        list(side_by_side(GRAPH, {one.name for one in GRAPH}, 2, run))


def test_a_stage_that_waits_begins_when_there_is_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after somebody raised a limit of Prefect's."""
    monkeypatch.setattr("flows.graph.ROOM_ASKED_EVERY", 0.01)
    both, asked = threading.Barrier(2), list[str]()

    def room(slot: str) -> int:
        asked.append(slot)
        return min(len(asked), 2)

    stages = [stage("self"), stage("dino")]
    with ThreadPoolExecutor(2) as pool:
        ended = list(in_turn(stages, {"self", "dino"}, room=room, begin=lambda _: pool.submit(both.wait, 10)))
    assert {one.name for one, _ in ended} == {"self", "dino"}
    assert asked == ["gpu", "gpu"]
