"""``m2m lineage`` on what the tracker recorded: from any of its names to the whole chain, in a moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from m2m.cli import app
from m2m.settings import Caller, Revision
from m2m.tracking import open_tracker, origin_tags

MANIFEST, MODEL, FOUNDATION, COMMIT = "a" * 64, "b" * 64, "c" * 64, "d" * 40
FLOW = Caller(flow_run="flow-1", flow_run_url="http://127.0.0.1:4200/runs/flow-run/flow-1", experiment="more")


def record(
    database: str, spool: Path, stage: str, caller: Caller, *, dirty: bool = False, model: str = MODEL, parent: str = ""
) -> str:
    """A run as the stage records it, registration apart; gives MLflow's id."""
    tags = {**origin_tags(caller, Revision(COMMIT, dirty=dirty)), "dvc.stage": f"{stage}@dino"}
    made = {"manifest": MANIFEST, **({"model": model} if stage == "evaluate" else {})}
    tracker = open_tracker(database, spool=spool, tags=tags)
    with tracker.run(f"{stage}-dino", stage=stage, tags=made) as run:
        run.dataset(
            "mis",
            source="store",
            digest=MANIFEST,
            context="training",
            sets={"train": 256, "validation": 48, "test": 192},
        )
        if stage == "train":
            made_from = {"parent": {"before": parent}} if parent else {"foundation": {"stable-diffusion": FOUNDATION}}
            run.params({**made_from, "seed": 0})
            run.tags({"model": model})
        if stage == "evaluate":
            run.metrics({"content_agreement/mean": 0.91, "fid/position/01": 3.0, "baseline/mis/fid/mean": 1.0})
        return run.server_id(patience=60) or ""


@dataclass(frozen=True)
class Recorded:
    """A model trained in a flow run's experiment, evaluated there, and once more by hand: two versions."""

    database: str
    generate: str
    train: str
    evaluate: str
    by_hand: str


@pytest.fixture(scope="module")
def recorded(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("lineage")
    database = f"sqlite:///{shutil.copy(empty_database, folder / 'mlflow.db')}"
    spool = folder / "spool"
    runs = Recorded(
        database,
        record(database, spool, "generate", Caller()),
        record(database, spool, "train", FLOW),
        record(database, spool, "evaluate", FLOW),
        record(database, spool, "evaluate", Caller(), dirty=True),
    )
    from mlflow import MlflowClient

    client = MlflowClient(database)
    client.create_registered_model("m2m-dino")
    for run in (runs.evaluate, runs.by_hand):
        client.create_model_version("m2m-dino", "/nowhere", run)
    client.set_registered_model_alias("m2m-dino", "champion", "1")
    client.set_registered_model_alias("m2m-dino", "candidate", "2")
    return runs


@pytest.fixture
def m2m(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in a checkout without commits."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.database)
    return lambda *arguments: CliRunner().invoke(app, ["lineage", *arguments])


SETS = ["256", "train,", "48", "validation,", "192", "test", "sets"]


def one_line(result: Result) -> str:
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.slow
def test_a_model_that_was_trained_on_leads_to_the_foundation_of_the_first(
    m2m: Any, recorded: Recorded, tmp_path: Path
) -> None:
    second = record(recorded.database, tmp_path, "train", Caller(), model="e" * 64, parent=MODEL)
    third = record(recorded.database, tmp_path, "train", Caller(), model="f" * 64, parent="e" * 64)
    lines = [line.split() for line in m2m(third).stdout.splitlines()]
    assert ["foundation", "stable-diffusion", FOUNDATION[:12]] in lines
    assert [line[2].rstrip(",") for line in lines if line[:1] == ["training"]] == [third]
    assert second


@pytest.mark.slow
def test_every_name_leads_to_the_whole_chain(m2m: Any, recorded: Recorded) -> None:
    evaluations = [recorded.evaluate, recorded.by_hand]
    for ref in ("models:/m2m-dino@champion", "models:/m2m-dino/2", recorded.train, recorded.by_hand, "more"):
        result = m2m(ref)
        assert result.exit_code == 0, result.stderr
        lines = [line.split() for line in result.stdout.splitlines()]
        assert ["dataset", "mis", MANIFEST[:12] + ":", *SETS] in lines
        assert ["foundation", "stable-diffusion", FOUNDATION[:12]] in lines
        assert [line[2].rstrip(",") for line in lines if line[:1] == ["training"]] == [recorded.train]
        assert [line[2].rstrip(",") for line in lines if line[:1] == ["evaluation"]] == evaluations
        assert ["content_agreement/mean", "0.91"] in lines
        assert ["version", "models:/m2m-dino/1:", "champion"] in lines
        assert ["version", "models:/m2m-dino/2:", "candidate"] in lines
        assert ["experiment", "more,", "commit", COMMIT[:12]] in lines
        assert ["flow", "run", "flow-1", FLOW.flow_run_url] in lines


def test_the_command_that_makes_it_again_is_true(m2m: Any, tmp_path: Path) -> None:
    by_hand = json.loads(m2m("models:/m2m-dino@candidate", "--json").stdout)
    assert by_hand["again"] == f"git checkout {COMMIT} && dvc repro evaluate@dino"
    assert by_hand["notes"] == [
        "files differed from the commit when it ran: the command makes what was committed, not that"
    ]
    assert by_hand["trace"]["chains"][0]["evaluations"][0]["metrics"] == {"content_agreement/mean": 0.91}
    assert by_hand["trace"]["chains"][0]["dataset"]["manifest"] == MANIFEST

    lost = m2m("models:/m2m-dino@champion").stdout
    assert f"git checkout {COMMIT} && dvc repro evaluate@dino" in lost
    assert "but the experiment more is not saved in this checkout" in lost

    commit = ["-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-q", "--allow-empty", "-m", "Start"]
    subprocess.run(["git", *commit], cwd=tmp_path, check=True)
    subprocess.run(["git", "update-ref", "refs/exps/ab/cdef/more", "HEAD"], cwd=tmp_path, check=True)
    kept = m2m("models:/m2m-dino@champion").stdout.splitlines()
    assert kept[-1].split(maxsplit=1) == ["again", "dvc exp apply more; dvc repro"]


@pytest.mark.slow
def test_what_a_person_changed_in_mlflow_is_told_as_it_is(
    m2m: Any, recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    database = f"sqlite:///{shutil.copy(recorded.database.removeprefix('sqlite:///'), tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client = MlflowClient(database)
    for stage in ("train", "evaluate"):
        client.rename_experiment(client.get_experiment_by_name(stage).experiment_id, f"my {stage}")
    client.delete_run(recorded.by_hand)
    for ref in ("models:/m2m-dino@champion", "models:/m2m-dino@candidate", recorded.train):
        lines = m2m(ref).stdout.splitlines()
        (training,) = [line for line in lines if line.startswith("training")]
        assert recorded.train in training
        evaluations = [line for line in lines if line.startswith("evaluation")]
        assert [line.endswith(", deleted in MLflow") for line in evaluations] == [False, True]

    client.delete_run(recorded.train)
    (training,) = [line for line in m2m(recorded.evaluate).stdout.splitlines() if line.startswith("training")]
    assert training.endswith(", deleted in MLflow")
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", database]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "MLFLOW_TRACKING_URI": database})
    (training,) = [line for line in m2m(recorded.evaluate).stdout.splitlines() if line.startswith("training")]
    assert training.endswith("or MLflow's record was removed")
    gone = m2m("models:/m2m-dino@candidate")
    assert gone.exit_code == 2
    assert one_line(gone).startswith(
        f"m2m: models:/m2m-dino@candidate is registered, but its run {recorded.by_hand} was removed from MLflow"
    )


def test_a_run_without_a_model_leads_to_its_dataset(m2m: Any, recorded: Recorded) -> None:
    lines = m2m(recorded.generate).stdout.splitlines()
    assert [line.split()[0] for line in lines if line] == ["dataset", "again"]


@pytest.mark.parametrize(
    "ref",
    ["models:/m2m-self@champion", "models:/m2m-dino/9", "models:/m2m-dino@best", "f" * 32, "less", "it's"],
)
def test_an_unknown_name_is_one_line_with_what_would_be_right(ref: str, m2m: Any) -> None:
    result = m2m(ref)
    assert result.exit_code == 2
    assert one_line(result).startswith(f"m2m: nothing is recorded as {ref!r}; name a version")
    assert one_line(result).endswith("there is models:/m2m-dino@candidate, models:/m2m-dino@champion")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://person:secret@127.0.0.1:9", "m2m: tracking at http://…@127.0.0.1:9: connection refused"),
        ("none", "m2m: MLFLOW_TRACKING_URI is none"),
        ("sqlite:///nowhere.db", "m2m: nothing is recorded yet: there is no "),
        ("sqlite:///text.db", "m2m: tracking at sqlite:///"),
    ],
)
def test_without_an_answer_it_says_so(uri: str, said: str, m2m: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "text.db").write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = m2m("models:/m2m-dino@champion")
    assert result.exit_code == 2
    assert one_line(result).startswith(said)
    assert not (tmp_path / "nowhere.db").exists()


@pytest.mark.slow
def test_it_answers_within_seconds(recorded: Recorded, tmp_path: Path) -> None:
    code = """
        import sys
        from m2m.cli import app
        app(["lineage", "models:/m2m-dino@champion"], standalone_mode=False)
        print(sorted({"torch", "dvc"} & set(sys.modules)))
    """
    before = os.times().children_user
    env = {**os.environ, "MLFLOW_TRACKING_URI": recorded.database}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=tmp_path)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert os.times().children_user - before < 8, "seconds of computing; a machine of its own takes three"
