"""A flow run's own MLflow run, on a real server."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.record import recorded
from m2m.errors import UserError
from m2m.settings import Caller, Revision
from m2m.tracking import open_history, open_tracker, origin_tags

LOG = logging.getLogger("flow")


@pytest.mark.slow
def test_the_flow_run_s_page_leads_to_its_runs(
    mlflow_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow_server.start()
    env = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "M2M_FLOW_RUN_ID": "flow-1", "DVC_EXP_NAME": "more"}
    links = []

    def fail() -> None:
        with recorded("wise-otter", {"targets": ["train"]}, checkout=tmp_path, env=env, log=LOG) as record:
            caller = Caller(parent_run=record.id, flow_run="flow-1", experiment="more")
            tags = {**origin_tags(caller, Revision("c" * 40, dirty=False)), "dvc.stage": "train@self"}
            tracker = open_tracker(mlflow_server.uri, spool=tmp_path / "spool", tags=tags)
            with tracker.run("train-self", stage="train", tags={}):
                pass
            links.extend(record.links(["generate"]))
            raise UserError("train@dino failed")

    with pytest.raises(UserError, match="failed"):
        fail()
    parent, child = open_history(mlflow_server.uri).of_flow_run("flow-1")
    assert links == [
        f"- [registered models]({mlflow_server.uri}/#/models?workflowType=machine_learning)",
        f"- [wise-otter]({mlflow_server.uri}/{parent.page})",
        f"- `train@self`: [train-self]({mlflow_server.uri}/{child.page})",
        "- `generate`: reused",
    ]
    assert (parent.stage, parent.status, parent.origin.experiment) == ("pipeline", "FAILED", "more")

    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server.uri)
    assert client.get_run(child.id).data.tags["mlflow.parentRunId"] == parent.id
    description = client.get_run(parent.id).data.tags["mlflow.note.content"]
    assert description == f"- `train@self`: [train-self]({child.page})\n- `generate`: reused"
    assert open_history(mlflow_server.uri).trace(parent.id).run == child


def test_it_is_recorded_in_the_checkout_wherever_the_flows_are_served(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout, elsewhere):
        folder.mkdir()
    shutil.copy(empty_database, checkout / "mlflow.db")
    monkeypatch.chdir(elsewhere)
    with recorded("wise-otter", {}, checkout=checkout, env={"M2M_FLOW_RUN_ID": "flow-1"}, log=LOG):
        pass
    (run,) = open_history(f"sqlite:///{checkout}/mlflow.db").of_flow_run("flow-1")
    assert run.name == "wise-otter"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("uri", ["none", "http://127.0.0.1:9"])
def test_without_a_server_the_flow_goes_on_and_says_so(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"MLFLOW_TRACKING_URI": uri, "M2M_FLOW_RUN_ID": "flow-1"}
    with recorded("wise-otter", {}, checkout=tmp_path, env=env, log=LOG) as record:
        assert record.id == ""
        told, reused = record.links(["generate"])
    assert uri in told
    assert reused == "- `generate`: reused"
    assert [one.getMessage() for one in caplog.records if one.name == "flow"] == [
        f"{'tracking is off' if uri == 'none' else f'MLflow at {uri} does not answer'}: "
        "the stages' runs will have no parent there"
    ]
