"""Ranks that a cluster starts on two nodes train as those that `torchrun` starts here, whatever becomes of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.params import TrainCommon, TrainVariant
from m2m.runtime import Machine
from m2m.settings import Settings
from m2m.stages import train
from m2m.store import LocalStore
from m2m.training import loop, run
from m2m.training.state import Point
from tests.cluster import two_nodes
from tests.datasets import Dataset

pytestmark = pytest.mark.slow
pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
        with two_nodes() as nodes:
            yield nodes


@pytest.fixture
def params(make_common: Callable[..., TrainCommon], make_variant: Callable[..., TrainVariant]) -> tuple[Any, Any]:
    common = make_common(set_size=3, max_context=2, checkpoint_every=36, preview_sets=1, gradient_accumulation=2)
    return common, make_variant(images=96)


@pytest.fixture
def on_cluster(
    cluster: Any, dataset: Dataset, foundation: Path, params: tuple[Any, Any], tmp_path: Path
) -> Callable[..., Point]:
    """The command on the cluster, with two ranks."""

    def call(stage: Callable[..., Point] = train.run, **changes: Any) -> Point:
        dataset.copied(tmp_path)
        settings = Settings.from_environment(
            {
                "M2M_ENGINE": cluster.address,
                "M2M_RANKS": "2",
                "M2M_STORE": str(tmp_path / "store"),
                "M2M_DEVICE": "cpu",
                "MLFLOW_TRACKING_URI": "none",
                **changes,
            },
            checkout=tmp_path,
        )
        common, variant = params
        return Machine("train@self", settings=settings).train(
            stage,
            common,
            "self",
            variant,
            inputs={"manifest": dataset.manifest, "foundation": foundation},
            outputs={"out": tmp_path / "model", "curve": tmp_path / "curve.csv"},
        )

    return call


@pytest.fixture
def here(dataset: Dataset, foundation: Path, params: tuple[Any, Any], tmp_path: Path) -> Path:
    """The folder in which two processes of this machine did the same."""
    common, variant = params
    launch = {
        "variant": "self",
        "ranks": 2,
        "common": common.model_dump(),
        "params": variant.model_dump(),
        "manifest": str(dataset.manifest),
        "foundation": str(foundation),
        "store": dataset.store.uri,
        "out": str(tmp_path / "here"),
    }
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("launches.py")],
        input=json.dumps([launch]),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)[0]["codes"] == [0, 0], done.stderr
    return tmp_path / "here"


def dying(folder: Path, *arguments: Any, **named: Any) -> Point:
    """The stage, whose second rank is killed once, after its fifth step."""
    steps = loop.train_steps

    def counted(*given: Any) -> Iterator[int]:
        for step in steps(*given):
            if step == 5 and given[2].rank == 1 and not (folder / "died").exists():
                (folder / "died").write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            yield step

    run.train_steps = counted
    return train.run(*arguments, **named)


def test_two_nodes_train_what_two_processes_train_though_one_is_killed(
    on_cluster: Callable[..., Point], here: Path, tmp_path: Path
) -> None:
    point = on_cluster(partial(dying, tmp_path))
    assert (tmp_path / "died").exists()
    assert point.images_seen == 96
    assert folder_digest(tmp_path / "model") == folder_digest(here / "model")
    assert (tmp_path / "curve.csv").read_bytes() == (here / "curve.csv").read_bytes()
    assert not [*LocalStore(tmp_path / "store").objects("checkpoints/")]


def warned(folder: Path, *arguments: Any, **named: Any) -> Point:
    """The stage; in its fourth step the node of its second rank is said to leave, in the sixth it has left."""
    import ray
    from ray.train.v2._internal.execution.context import get_train_context

    from m2m.engines import ranks

    ranks.STEPS_BETWEEN = 1
    steps = loop.train_steps

    def counted(*given: Any) -> Iterator[int]:
        state, rank = given[0], given[2].rank
        with (folder / f"begins-{rank}").open("a") as file:
            file.write(f"{state.images_seen}\n")
        for step in steps(*given):
            if rank == 1 and not (folder / "left").exists():
                if step == 3:
                    this = ray.get_runtime_context()
                    asked = ["--address", this.gcs_address, "--node-id", this.get_node_id()]
                    asked += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot node"]
                    asked += ["--deadline-remaining-seconds", "300"]
                    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *asked], check=True)
                    began, told = time.monotonic(), get_train_context().preemption_context
                    while told.preemption_info is None and time.monotonic() < began + 180:
                        time.sleep(1)  # what looks for it is a process that may be starting still
                    time.sleep(2)  # the first rank, which waits for this one, is told by then: it says so a step later
                elif step == 5:
                    (folder / "left").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield step

    run.train_steps = counted
    return train.run(*arguments, **named)


def test_a_node_that_is_about_to_leave_has_a_checkpoint_saved_at_once(
    cluster: Any, on_cluster: Callable[..., Point], here: Path, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    point = on_cluster(partial(warned, tmp_path))
    begun = [[int(line) for line in (tmp_path / f"begins-{rank}").read_text().split()] for rank in (0, 1)]
    assert begun == [[0, 60], [0, 60]], "a checkpoint is due after 36 images and after 72"
    assert point.images_seen == 96
    assert folder_digest(tmp_path / "model") == folder_digest(here / "model")


def test_ranks_seldom_ask_whether_a_node_leaves_and_it_is_said_once() -> None:
    from m2m.engines.ranks import STEPS_BETWEEN, _Leaving

    asked: list[int] = []

    def notice() -> object | None:
        asked.append(step)
        return "a node" if step > 2 * STEPS_BETWEEN else None

    leaving, said = _Leaving(notice), []
    for step in range(1, 5 * STEPS_BETWEEN + 1):
        said += [step] * leaving()
    assert asked == [STEPS_BETWEEN * turn for turn in range(1, 6)]
    assert said == [3 * STEPS_BETWEEN]


def refusing(*_: Any, **__: Any) -> Point:
    raise UserError("the sets cannot be divided")


def test_what_the_stage_refuses_is_one_line_here(on_cluster: Callable[..., Point], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the sets cannot be divided$"):
        on_cluster(refusing)
    assert not (tmp_path / "model").exists()


def test_a_database_on_this_machine_is_refused(on_cluster: Callable[..., Point], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which the nodes of a cluster cannot reach; set it to a server, or to none"):
        on_cluster(MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")
