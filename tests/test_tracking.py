"""Runs reach MLflow once and in order, whatever happens to the server or to us. Databases and servers are real."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from filelock import FileLock
from PIL import Image

from m2m.errors import OutsideError, UserError
from m2m.params import GateParams
from m2m.settings import sqlite_uri, without_password
from m2m.tracking import NullTracker, Tracker, check_tracking, open_history, open_tracker
from m2m.tracking.connection import MLFLOW_ENVIRONMENT
from m2m.tracking.journal import Header, Journal
from m2m.tracking.recording import sample, system_metrics

os.environ.update(MLFLOW_ENVIRONMENT)
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

PICTURE = Image.new("RGB", (8, 8), "teal")
GATE = GateParams(metric="fid/mean", better="lower", require={})


@pytest.fixture(autouse=True)
def _requests_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2m.tracking.recording.SECONDS_BETWEEN_REQUESTS", 0.05)


def tracker(uri: str, spool: Path) -> Tracker:
    return open_tracker(uri, spool=spool, tags={"git.commit": "abc"})


def runs(uri: str, experiment: str = "train") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["start_time"])) if found else []


def points(uri: str, run: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, key)]


def names(uri: str, run: Run, folder: str | None = None) -> list[str]:
    return [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, folder)]


def pictures(uri: str, run: Run) -> list[str]:
    """Key and step of each logged picture, as often as it is there."""
    return sorted(name.partition("+timestamp")[0] for name in names(uri, run, "images") if name.endswith(".png"))


# What a run says


def test_all_that_a_run_says_arrives(database: str, tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "a.txt").write_text("a")
    (tmp_path / "curve.csv").write_text("1,2\n")
    with tracker(database, tmp_path / "spool").run(
        "train-self", stage="train", tags={"dvc.stage": "train@self"}
    ) as run:
        run.params({"seed": 3, "ema": {"decay": 0.99}, "given": [1, 2], "schedule": "cosine"})
        for step in range(2500):
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        run.metrics({"content/given=4/mean": 0.9, "nan": float("nan")})
        run.image(PICTURE, key="preview/00", step=7)
        run.tags({"model": "b" * 64})
        run.artifact(tmp_path / "curve.csv")
        run.artifact(tmp_path / "grids", "evaluate")
        run.dataset("mis", source="data/store", digest="a" * 64, context="training", sets={"train": 3})
        (tmp_path / "curve.csv").write_text("changed later")
    (logged,) = runs(database)
    assert logged.info.run_name == "train-self"
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {"seed": "3", "ema.decay": "0.99", "given": "[1, 2]", "schedule": "cosine"}
    tags = {"git.commit": "abc", "dvc.stage": "train@self", "m2m.run": run.id, "model": "b" * 64}
    assert tags.items() <= logged.data.tags.items()
    assert points(database, logged, "loss") == [(step, 1 / (step + 1)) for step in range(2500)]
    assert logged.data.metrics["content/given-4/mean"] == 0.9
    assert pictures(database, logged) == ["images/preview~00+step+7"]
    assert names(database, logged, "evaluate/grids") == ["evaluate/grids/a.txt"]
    downloaded = MlflowClient(database).download_artifacts(logged.info.run_id, "curve.csv", str(tmp_path))
    assert Path(downloaded).read_text() == "1,2\n", "an artifact is what it was when it was logged"
    (dataset,) = logged.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("mis", "a" * 36)
    assert json.loads(dataset.dataset.profile) == {"train": 3}
    assert logged.info.artifact_uri.startswith((tmp_path / "mlruns").as_uri())
    assert list((tmp_path / "spool").iterdir()) == [], "nothing waits"


def test_both_variants_newest_runs_have_pages_that_show_them_side_by_side(database: str, tmp_path: Path) -> None:
    def record(stage: str, variant: str) -> None:
        with tracker(database, tmp_path / "spool").run(f"{stage}-{variant}", stage=stage, tags={}) as run:
            run.metrics({"held_out_loss": 1.0}, step=1)

    for stage, variant in (("train", "self"), ("train", "dino"), ("train", "self"), ("evaluate", "dino")):
        record(stage, variant)
    pages = open_history(database).comparisons()
    assert list(pages) == ["newest training curves of both", "registered models"], "there is one evaluation"
    address = urlsplit(pages["newest training curves of both"].removeprefix("#"))
    asked = parse_qs(address.query)
    newest = {run.info.run_name: run.info.run_id for run in runs(database)}
    assert (address.path, asked["workflowType"]) == ("/metric", ["machine_learning"])
    assert json.loads(asked["runs"][0]) == [newest["train-self"], newest["train-dino"]]
    record("evaluate", "self")
    pages = open_history(database).comparisons()
    shown = ["newest scores of both variants", "their FID by position", "newest training curves of both"]
    assert list(pages) == [*shown, "registered models"]
    asked = parse_qs(urlsplit(pages["their FID by position"].removeprefix("#")).query)
    assert json.loads(asked["plot_metric_keys"][0]) == ["position/fid"]
    experiment = MlflowClient(database).get_experiment_by_name("train")
    assert experiment is not None
    assert "learn from multi-image sets" in experiment.tags["mlflow.note.content"]
    (newer, *_) = runs(database)
    assert newer.data.tags["mlflow.note.content"] == experiment.tags["mlflow.note.content"]


def test_a_run_ends_as_its_stage_does(database: str, tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), tracker(database, tmp_path / "spool").run(error.__name__, stage="train", tags={}):
            raise error
    assert [(run.info.run_name, run.info.status) for run in runs(database)] == [
        ("ValueError", "FAILED"),
        ("KeyboardInterrupt", "KILLED"),
    ]


def test_what_the_server_refuses_is_named_and_holds_nothing_up(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(database, tmp_path / "spool").run("run", stage="train", tags={}) as run:
        run.params({"seed": 1})
        run.params({"seed": 2})
        run.metrics({"loss": 1.0, "": 2.0}, step=0)
        run.metrics({"loss": 0.5}, step=1)
    (logged,) = runs(database)
    assert logged.data.params == {"seed": "1"}
    assert (1, 0.5) in points(database, logged, "loss")
    assert [
        record.getMessage().partition(" was refused")[0] for record in caplog.records if "refused" in record.message
    ]
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.slow
def test_a_registered_model_loads_back_and_draws(database: str, tmp_path: Path, tiny_pipeline: Path) -> None:
    import mlflow.pyfunc
    import pandas as pd

    scores = {"fid/mean": 3.5, "agreement/given=1": 0.9}
    licensed = shutil.copytree(tiny_pipeline, tmp_path / "licensed")
    (licensed / "README.md").write_text("---\nterms: ['Captions: some; licence: CC0-1.0']\n---\n")
    with tracker(database, tmp_path / "spool").run("evaluate-self", stage="evaluate", tags={}) as run:
        assert run.register(licensed, "m2m-self", metrics=scores, tags={"manifest": "ff"}, gate=GATE) == "1"
        assert run.register(tiny_pipeline, "m2m-self", metrics=scores, tags={}, gate=GATE) == "1", "once a run"
    with tracker(database, tmp_path / "spool").run("evaluate-self", stage="evaluate", tags={}) as run:
        assert run.register(tiny_pipeline, "m2m-self", metrics={}, tags={}, gate=GATE) == "2"
    (first, _) = runs(database, "evaluate")
    assert points(database, first, "fid/mean") == [(0, 3.5)]
    version = MlflowClient(database).get_model_version("m2m-self", "1")
    assert version.tags == {"manifest": "ff"}
    assert aliases(database, "m2m-self") == ("2", "1"), "the second has no figure for the gate"
    assert "| score | version 1 | no champion so far |" in version.description
    assert "| fid/mean | 3.5 |  |" in version.description
    assert "m2m lineage models:/m2m-self/1" in version.description
    assert "on what terms:\n\n- Captions: some; licence: CC0-1.0\n" in version.description
    later = MlflowClient(database).get_model_version("m2m-self", "2")
    assert "| score | version 2 | champion so far, version 1 |" in later.description
    assert "terms" not in later.description, "nothing beside the model states any"
    assert "`champion` the best" in MlflowClient(database).get_registered_model("m2m-self").description
    assert version.run_id == first.info.run_id
    packed = list((tmp_path / "mlruns").rglob("*"))
    assert [file for file in packed if file.suffix == ".safetensors"]
    assert not [file for file in packed if file.suffix in {".pkl", ".bin", ".pt"}], "nothing is pickled"

    mlflow.set_tracking_uri(database)
    model = mlflow.pyfunc.load_model("models:/m2m-self/1")
    png = io.BytesIO()
    PICTURE.resize((16, 16)).save(png, "PNG")
    given = pd.DataFrame({"image": [base64.b64encode(png.getvalue()).decode()] * 2})
    drawn = [
        model.predict(given, params={"num_images": 2, "num_inference_steps": 2, "seed": seed}) for seed in (1, 1, 2)
    ]
    several = [{"num_images": 2, "num_inference_steps": steps, "seed": steps} for steps in (2, 7, 3, 5)]
    alone = [model.predict(given, params=params) for params in several]
    with ThreadPoolExecutor(len(several)) as threads:  # as its scoring server answers
        together = list(threads.map(lambda params: model.predict(given, params=params), several))
    assert all(one.equals(expected) for one, expected in zip(together, alone, strict=True))
    assert [Image.open(io.BytesIO(base64.b64decode(text))).mode for text in drawn[0]["image"]] == ["RGB", "RGB"]
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])


@pytest.mark.slow  # another process learns of the whole of torch and MLflow
def test_a_registered_model_loads_where_this_project_is_not_installed(
    database: str, tmp_path: Path, tiny_pipeline: Path
) -> None:
    with tracker(database, tmp_path / "spool").run("evaluate-self", stage="evaluate", tags={}) as run:
        run.register(tiny_pipeline, "m2m-self", metrics={}, tags={}, gate=GATE)
    code = """
        import base64, importlib.util, io, sys
        sys.meta_path = [each for each in sys.meta_path if "editable" not in str(each).lower()]
        assert importlib.util.find_spec("m2m") is None
        import mlflow, pandas, PIL.Image
        mlflow.set_tracking_uri(sys.argv[1])
        model = mlflow.pyfunc.load_model("models:/m2m-self/1")
        png = io.BytesIO()
        PIL.Image.new("RGB", (16, 16)).save(png, "PNG")
        given = pandas.DataFrame({"image": [base64.b64encode(png.getvalue()).decode()]})
        print(len(model.predict(given, params={"num_images": 2, "num_inference_steps": 2})))
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", textwrap.dedent(code), database]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert answer.stdout.split() == ["2"], answer.stderr


@pytest.fixture(scope="module")
def tiny_pipeline(tiny_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M2M-Self pipeline folder, untrained."""
    from m2m.params_file import load_params
    from m2m.training.start import from_stable_diffusion as start

    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    common = load_params(Path(__file__).parents[1] / "profiles" / "smoke.yaml").train.common
    start(folder, "self", common).save_pretrained(folder / "m2m-self")
    return folder / "m2m-self"


# Candidate and champion


def version(database: str, name: str, *, manifest: str, fid: float | None) -> str:
    """A registered version without files."""
    client = MlflowClient(database)
    run = client.create_run("0")
    if fid is not None:
        client.log_metric(run.info.run_id, "fid/mean", fid)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, "/nowhere", run.info.run_id, {"manifest": manifest}).version)


def aliases(database: str, name: str) -> tuple[str, str]:
    found = MlflowClient(database).get_registered_model(name).aliases
    return str(found["candidate"]), str(found["champion"])


def test_the_champion_moves_to_what_is_better_on_the_same_dataset(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    from m2m.tracking.registration import set_aliases

    def register(manifest: str, fid: float | None, better: str = "lower") -> tuple[str, str]:
        number = version(database, better, manifest=manifest, fid=fid)
        for _ in range(2):  # the second time as after a kill between the change and its note
            set_aliases(MlflowClient(database), better, number, metric="fid/mean", better=better)
        return aliases(database, better)

    assert register("a", 5.0) == ("1", "1"), "there was no champion yet"
    assert register("a", 6.0) == ("2", "1")
    assert register("a", 5.0) == ("3", "1"), "as good is not better"
    assert register("a", 4.0) == ("4", "4")
    assert not caplog.records
    assert register("b", 1.0) == ("5", "4")
    assert {record.getMessage() for record in caplog.records} == {
        "tracking: version 4 stays champion of lower; version 5: they were evaluated on different datasets"
    }
    assert register("a", None) == ("6", "4")
    assert "one of them has no fid/mean" in caplog.text
    set_aliases(MlflowClient(database), "lower", "2", metric="fid/mean", better="lower")
    assert aliases(database, "lower") == ("6", "4"), "what is delivered late is no candidate"
    assert [register("a", fid, "higher") for fid in (5.0, 6.0, 5.5)] == [("1", "1"), ("2", "2"), ("3", "2")]


@pytest.mark.slow
def test_a_champion_whose_run_was_removed_gives_way(database: str, caplog: pytest.LogCaptureFixture) -> None:
    from m2m.tracking.registration import set_aliases

    for fid in (1.0, 5.0):
        number = version(database, "m", manifest="a", fid=fid)
        set_aliases(MlflowClient(database), "m", number, metric="fid/mean", better="lower")
        assert aliases(database, "m") == (number, number)
        if number == "1":
            remove_run(database, MlflowClient(database).get_model_version("m", number).run_id)
    assert "version 2 replaces version 1 as champion of m: the run of that one was removed" in caplog.text


def remove_run(database: str, run: str) -> None:
    """As a person does who cleans up."""
    MlflowClient(database).delete_run(run)
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", database, "--run-ids", run]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "MLFLOW_TRACKING_URI": database})


def test_two_evaluations_look_at_the_champion_one_after_the_other(database: str, tmp_path: Path) -> None:
    """Both would replace the one that they saw, and the worse of them might come last."""
    from m2m.tracking.remote import open_run

    journals, threads = [], []
    numbers = [version(database, "m", manifest="a", fid=fid) for fid in (3.0, 1.0, 2.0)]
    with FileLock(tmp_path / "aliases.lock"):
        for number in numbers:
            run = MlflowClient(database).get_model_version("m", number).run_id
            made = Header(run, "run", "Default", {}, database, 0)
            MlflowClient(database).set_tag(run, "m2m.run", run)
            journal = Journal.create(tmp_path / "spool", made)
            journals.append(journal)
            gate = {"metric": "fid/mean", "better": "lower"}
            journal.append("register", name="m", file="none/none", metrics={}, tags={}, gate=gate, time=1)
            arguments = (list(journal.pending()), journal)
            threads.append(threading.Thread(target=open_run(database, made).send, args=arguments))
            threads[-1].start()
        time.sleep(0.5)
        assert MlflowClient(database).get_registered_model("m").aliases == {}
    for thread, journal in zip(threads, journals, strict=True):
        thread.join()
        journal.close()
    assert aliases(database, "m") == ("3", "2")


# A server that goes and comes back


@pytest.mark.slow
def test_training_goes_on_without_the_server_and_all_is_sent_once(
    mlflow_server: Any,
    database: str,
    tmp_path: Path,
    tiny_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("m2m.tracking.recording.SECONDS_BETWEEN_ATTEMPTS", 0.2)
    server, spool = mlflow_server, tmp_path / "spool"

    # Away from the beginning to the end of a run.
    started = time.monotonic()
    with tracker(server.uri, spool).run("first", stage="train", tags={"manifest": "a" * 64}) as run:
        run.metrics({"loss": 1.0}, step=1)
        run.dataset("mis", source="s", digest="a" * 64, context="training", sets={"train": 3})
        run.image(PICTURE, key="preview/00", step=1)
        assert run.server_id(patience=20) is None
        assert run.register(tiny_pipeline, "m2m-self", metrics={}, tags={}, gate=GATE) is None
    assert time.monotonic() - started < 20
    assert [record.levelname for record in caplog.records if "does not answer" in record.message] == ["WARNING"]
    caplog.clear()

    # There, away in the middle, back before the end.
    server.start()
    with tracker(server.uri, spool).run("second", stage="train", tags={}) as run:
        for step in range(900):
            run.metrics({"loss": float(step)}, step=step)
            if step == 300:
                wait_for(lambda: len(runs(database)) == 2 and "loss" in runs(database)[1].data.metrics)
                server.kill()
            if step in (100, 500):
                run.image(PICTURE, key="preview/00", step=step)
            if step == 600:
                wait_for(lambda: any("does not answer" in record.message for record in caplog.records))
                server.start()
    first, second = runs(database)
    assert (first.info.run_name, first.info.status) == ("first", "FINISHED")
    assert points(database, first, "loss") == [(1, 1.0)]
    assert points(database, second, "loss") == [(step, float(step)) for step in range(900)]
    assert second.info.status == "FINISHED"
    assert pictures(server.uri, first) == ["images/preview~00+step+1"]
    assert pictures(server.uri, second) == ["images/preview~00+step+100", "images/preview~00+step+500"]
    assert [v.run_id for v in MlflowClient(database).search_model_versions("name = 'm2m-self'")] == [first.info.run_id]
    for ref in ("models:/m2m-self@champion", "models:/m2m-self/1", first.info.run_id):
        by_server, by_file = (open_history(uri).trace(ref) for uri in (server.uri, database))
        assert by_server == by_file
        assert by_server.run.id == first.info.run_id
    assert by_server.run.metrics["loss"] == 1.0
    with pytest.raises(UserError, match=r"there is models:/m2m-self@candidate, models:/m2m-self@champion"):
        open_history(server.uri).trace("models:/m2m-self/2")
    assert len([record for record in caplog.records if "does not answer" in record.message]) == 1
    assert len([record for record in caplog.records if "answers again" in record.message]) == 1
    assert list(spool.iterdir()) == []


def wait_for(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# A process that is killed


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from PIL import Image
    from m2m.tracking import open_tracker
    tracker = open_tracker(sys.argv[1], spool=Path(sys.argv[2]), tags={})
    with tracker.run("train-self", stage="train", tags={}) as run:
        for step in range(10):
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        run.image(Image.new("RGB", (8, 8)), key="preview/00", step=4)
        run._delivery.drain()
        run.metrics({"loss": 1 / 11}, step=10)
        print(run.id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_run(database: str, spool: Path) -> str:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), database, str(spool)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return ended.stdout.strip()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(database: str, tmp_path: Path) -> None:
    key = killed_run(database, tmp_path / "spool")
    with tracker(database, tmp_path / "spool").run("train-self", stage="train", tags={}, resume_key=key) as run:
        assert run.id == key
        for step in range(6, 20):  # from a checkpoint on
            run.metrics({"loss": 1 / (step + 1)}, step=step)
            run.image(PICTURE, key="preview/00", step=4 if step < 10 else step)
    (logged,) = runs(database)
    assert points(database, logged, "loss") == [(step, 1 / (step + 1)) for step in range(20)]
    assert len(pictures(database, logged)) == 11
    assert logged.info.status == "FINISHED"
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.slow
def test_the_next_run_sends_what_a_killed_one_left(database: str, tmp_path: Path) -> None:
    key = killed_run(database, tmp_path / "spool")
    with tracker(database, tmp_path / "spool").run("other", stage="train", tags={}) as run:
        wait_for(lambda: len(list((tmp_path / "spool").iterdir())) == 1)
        assert run.id != key
    left, _ = runs(database)
    assert left.data.tags["m2m.run"] == key
    assert left.info.status == "KILLED"
    assert points(database, left, "loss") == [(step, 1 / (step + 1)) for step in range(11)]


def test_a_run_that_cannot_be_recorded_holds_up_no_other(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, spool = MlflowClient(database), tmp_path / "spool"
    client.delete_experiment(client.create_experiment("train"))
    for number, stage in enumerate(["train", "evaluate", "train"]):
        Journal.create(spool, Header(str(number), f"left-{number}", stage, {}, database, number + 1)).close()
    with tracker(database, spool).run("refused", stage="train", tags={}) as run:
        run.metrics({"loss": 1.0}, step=1)
    wait_for(lambda: runs(database, "evaluate"))
    (left,) = runs(database, "evaluate")
    assert left.info.run_name == "left-1"
    assert "cannot record the run: experiment train was deleted in MLflow; mlflow experiments restore" in caplog.text
    caplog.clear()

    with tracker(database, spool).run("recorded", stage="generate", tags={}) as run:
        assert run.server_id(patience=60)
    assert [logged.info.status for logged in runs(database, "generate")] == ["FINISHED"]
    said = [record.getMessage() for record in caplog.records]
    assert said
    assert all("the earlier run" in line for line in said), "nothing is said of the run that was recorded"

    client.restore_experiment(client.get_experiment_by_name("train").experiment_id)
    with tracker(database, spool).run("recorded", stage="generate", tags={}):
        pass
    assert [logged.info.run_name for logged in runs(database)] == ["left-0", "left-2", "refused"]
    assert list(spool.iterdir()) == []


@pytest.mark.slow
def test_a_run_is_found_again_after_its_experiment_was_renamed(database: str, tmp_path: Path) -> None:
    key = killed_run(database, tmp_path / "spool")
    client = MlflowClient(database)
    client.rename_experiment(client.get_experiment_by_name("train").experiment_id, "old things")
    with tracker(database, tmp_path / "spool").run("train-self", stage="train", tags={}, resume_key=key) as run:
        run.metrics({"loss": 1.0}, step=20)
    (logged,) = runs(database, "old things")
    assert points(database, logged, "loss")[-1] == (20, 1.0)
    assert runs(database) == []


@pytest.mark.parametrize("copied", [False, True])
def test_a_checkout_that_was_moved_or_copied_records_where_it_is(
    copied: bool, empty_database: Path, tmp_path: Path
) -> None:
    """With names that an address has to quote."""
    old, new = tmp_path / "feature%2Fx", tmp_path / "what?#1"
    old.mkdir()
    shutil.copy(empty_database, old / "mlflow.db")
    (tmp_path / "note").write_text("text")
    with tracker(sqlite_uri(old / "mlflow.db"), old / "work" / "spool").run("first", stage="train", tags={}) as run:
        run.artifact(tmp_path / "note")
        key = run.id
    away = Header("left", "left", "train", {}, without_password(sqlite_uri(old / "mlflow.db")), 0, "../../mlflow.db")
    Journal.create(old / "work" / "spool", away).close()
    (shutil.copytree if copied else shutil.move)(old, new)
    _artifact_repos_cache.clear()  # a new process has none
    before = sorted(old.rglob("*")), (old / "mlflow.db").read_bytes() if copied else b""

    uri = sqlite_uri(new / "mlflow.db")
    with tracker(uri, new / "work" / "spool").run("first", stage="train", tags={}, resume_key=key) as run:
        run.artifact(tmp_path / "note", "again")
    (first, left) = sorted(runs(uri), key=lambda run: str(run.info.run_name))
    assert left.info.run_name == "left"
    assert names(uri, first) == ["again", "note"]
    assert first.info.artifact_uri.startswith((new / "mlruns").as_uri())
    assert list((new / "work" / "spool").iterdir()) == []
    assert (sorted(old.rglob("*")), (old / "mlflow.db").read_bytes() if copied else b"") == before
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "note"} | ({old.name} if copied else set())


@pytest.mark.slow
def test_two_processes_may_make_the_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    (tmp_path / "new").mkdir()
    code = "import sys; from m2m.tracking import check_tracking; check_tracking(sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in both] == [("", 0), ("", 0)]


# Sending twice


def test_an_entry_that_is_sent_again_changes_nothing(database: str, tmp_path: Path, tiny_pipeline: Path) -> None:
    from m2m.tracking.remote import open_run

    header = Header("key", "run", "train", {}, database, 1_700_000_000_000)
    for _ in range(2):  # the second time as after a kill between sending and noting it
        journal = Journal.create(tmp_path / "spool", header)
        image = journal.place("image.png")
        PICTURE.save(journal.kept(image))
        sent = [
            ("params", {"values": {"a": "1"}}),
            ("metrics", {"points": [["loss", 1.0, 5, 1_700_000_000_001]]}),
            ("image", {"key": "p", "step": 1, "time": 1_700_000_000_002, "file": image}),
            ("dataset", {"name": "mis", "source": "s", "digest": "d", "context": "training", "sets": {}}),
            (
                "register",
                {
                    **{"name": "m", "file": journal.keep(tiny_pipeline), "metrics": {"fid": 1.0}, "tags": {}},
                    **{"gate": {"metric": "fid", "better": "lower"}, "time": 1},
                },
            ),
        ]
        for kind, values in sent:
            journal.append(kind, **values)
        for entry in journal.pending():
            open_run(database, header).send([entry], journal)
        journal.close()
        shutil.rmtree(tmp_path / "spool")
    (logged,) = runs(database)
    assert points(database, logged, "loss") == [(5, 1.0)]
    assert points(database, logged, "fid") == [(0, 1.0)]
    assert len(pictures(database, logged)) == 1
    assert len(logged.inputs.dataset_inputs) == 1
    assert len(MlflowClient(database).search_model_versions("name = 'm'")) == 1


def test_a_run_that_is_killed_twice_has_each_point_once(database: str, tmp_path: Path) -> None:
    """The second kill comes after the note that the run was resumed, and before the points of the work done again."""
    from m2m.tracking.remote import open_run

    made = Header("key", "run", "train", {}, database, 1_700_000_000_000)
    for life, steps in enumerate([range(10), range(6, 12), range(6, 14)]):
        journal = Journal.create(tmp_path / "spool", made)
        if life:
            journal.append("resume")
        run = open_run(database, made)
        for entry in journal.pending():
            run.send([entry], journal)
            journal.mark_sent(entry.end)
        for step in steps:
            journal.append("metrics", points=[["loss", 1.0, step, 1_700_000_000_000 + 100 * life + step]])
        image = journal.place("image.png")
        PICTURE.save(journal.kept(image))
        journal.append("image", key="p", step=6, time=1_700_000_000_000 + life, file=image)
        if life != 1:
            for entry in journal.pending():
                run.send([entry], journal)
                journal.mark_sent(entry.end)
        journal.close()
    (logged,) = runs(database)
    assert [step for step, _ in points(database, logged, "loss")] == list(range(14))
    assert pictures(database, logged) == ["images/p+step+6"]


def test_a_picture_whose_arrival_was_not_confirmed_is_there_once(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2m.tracking.remote import open_run

    made = Header("key", "run", "train", {}, database, 1_700_000_000_000)
    journal = Journal.create(tmp_path / "spool", made)
    journal.append("params", values={"a": "1"})
    image = journal.place("image.png")
    PICTURE.save(journal.kept(image))
    journal.append("image", key="p", step=6, time=1_700_000_000_000, file=image)
    run = open_run(database, made)
    log_image = MlflowClient.log_image

    def unconfirmed(*arguments: Any, **options: Any) -> None:
        log_image(*arguments, **options)
        raise ConnectionResetError

    (first, second) = journal.pending()
    run.send([first], journal)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_image", unconfirmed)
        with pytest.raises(OutsideError):
            run.send([second], journal)
    run.send([second], journal)
    journal.close()
    (logged,) = runs(database)
    assert pictures(database, logged) == ["images/p+step+6"]


# The journal


def header(key: str = "key", server: str = "s", beside: str = "") -> Header:
    return Header(key, "run", "train", {}, server, 0, beside)


def test_a_line_that_a_kill_tore_is_dropped(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, header())
    journal.append("params", values={"a": "1"})
    journal.close()
    with (tmp_path / "key" / "entries.jsonl").open("ab") as lines:
        lines.write(b'{"kind": "params", "val')
    journal = Journal.create(tmp_path, header())
    journal.append("params", values={"b": "2"})
    assert [entry.values for entry in journal.pending()] == [{"values": {"a": "1"}}, {"values": {"b": "2"}}]
    journal.mark_sent(next(journal.pending()).end)
    assert [entry.values for entry in journal.pending()] == [{"values": {"b": "2"}}]
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_recorded_by_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, header())
    with pytest.raises(UserError, match="another process"):
        Journal.create(tmp_path, header())
    assert list(Journal.left_behind(tmp_path, header())) == []
    journal.close()
    assert list(Journal.left_behind(tmp_path, header(server="elsewhere"))) == []
    (left,) = Journal.left_behind(tmp_path, header())
    left.close()


def test_what_waits_for_a_database_moves_with_it(tmp_path: Path) -> None:
    Journal.create(tmp_path, header(server="sqlite:////old/m.db", beside="../../m.db")).close()
    (left,) = Journal.left_behind(tmp_path, header(server="sqlite:////new/m.db", beside="../../m.db"))
    left.close()
    assert list(Journal.left_behind(tmp_path, header(server="sqlite:////new/m.db", beside="../m.db"))) == []


def test_a_damaged_journal_keeps_no_other_from_being_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Journal.create(tmp_path, header()).close()
    for name, text in (("torn", '{"key": "a"'), ("other", '{"version": 9}'), ("list", "[1]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "header.json").write_text(text)
    (left,) = Journal.left_behind(tmp_path, header())
    left.close()
    assert len([record for record in caplog.records if "is damaged and is not sent" in record.message]) == 3


def test_weights_are_kept_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2m.tracking.journal.LINK_FROM", 4)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"12345")
    (tmp_path / "model" / "card").write_bytes(b"abc")
    journal = Journal.create(tmp_path / "spool", header())
    kept = journal.kept(journal.keep(tmp_path / "model"))
    assert (kept / "weights").samefile(tmp_path / "model" / "weights")
    assert not (kept / "card").samefile(tmp_path / "model" / "card")
    assert (kept / "card").read_bytes() == b"abc"
    journal.close()


# The rest


@pytest.mark.parametrize(
    "uri",
    [
        "http://person:topsecret@127.0.0.1:9",
        "http://person:p@topsecret@127.0.0.1:9",
        "http://person:p/topsecret@127.0.0.1:9",
        "http://127.0.0.1:9?token=topsecret",
        "postgresql://127.0.0.1:9/m?password=topsecret",
    ],
)
def test_no_password_is_written_or_said(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracker(uri, tmp_path / "spool").run("run", stage="train", tags={}) as run:
        run.params({"seed": 1})
    written = b"".join(file.read_bytes() for file in (tmp_path / "spool").rglob("*") if file.is_file())
    assert written
    assert b"topsecret" not in written
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    assert caplog.records
    assert "topsecret" not in "".join(record.getMessage() for record in caplog.records)
    with pytest.raises(UserError) as refusal:
        open_history(uri).trace("f" * 32)
    assert "topsecret" not in str(refusal.value)
    with pytest.raises(UserError) as refusal:
        check_tracking(uri)
    assert "topsecret" not in str(refusal.value)


def test_none_turns_tracking_off(tmp_path: Path) -> None:
    null = open_tracker("none", spool=tmp_path, tags={})
    assert isinstance(null, NullTracker)
    with null.run("run", stage="train", tags={}, resume_key="key") as run:
        run.params({})
        run.tags({"a": "b"})
        assert run.server_id(patience=1) is None
        run.metrics({"a": 1.0}, step=1)
        run.image(PICTURE, key="a", step=1)
        run.artifact(tmp_path)
        run.dataset("mis", source="s", digest="d", context="training", sets={"train": 3})
        assert run.register(tmp_path, "m", metrics={}, tags={}, gate=GATE) is None
        assert run.id == "key"
    check_tracking("none")
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_watched() -> None:
    seen: list[dict[str, float]] = []
    with system_metrics(lambda values, *, step: seen.append({**values, "step": step}), interval=0.01):
        wait_for(lambda: len(seen) >= 2)
    assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= seen[0].keys()
    assert 0 < sample()["system/system_memory_usage_percentage"] <= 100


def test_a_full_disk_ends_the_watching_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    def full(values: object, *, step: int) -> None:
        raise OSError("no space left")

    with caplog.at_level(logging.WARNING), system_metrics(full, interval=0.01):
        wait_for(lambda: "no more system metrics" in caplog.text)


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, m2m.tracking; print(json.dumps('mlflow' in sys.modules))".replace(
        "import sys", "import sys, json"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) is False
