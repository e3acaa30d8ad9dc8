"""Sends the entries of a run's journal to MLflow, so that sending one again changes nothing.

Metrics, parameters, tags, datasets and files have this property in MLflow itself (same time stamp, same name); runs,
pictures and registered versions are looked for first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from m2m.errors import UserError
from m2m.settings import sqlite_file
from m2m.tracking.connection import ARTIFACTS, classified, connect, unless
from m2m.tracking.journal import Entry, Header, Journal
from m2m.tracking.registration import register, set_aliases

RUN_TAG = "m2m.run"
SYSTEM = "system/"
"""MLflow shows metrics of this prefix on a page of their own."""


NOTE = "mlflow.note.content"
"""What MLflow shows as the description of a run or an experiment."""
DESCRIPTIONS = {
    "generate": "Multi-image sets, drawn by Stable Diffusion: how fast, how many were drawn again, the first sets.",
    "views": "Sets of novel views: objects, each seen by many cameras.",
    "procedures": "Sets of visual procedures: pictures step after step.",
    "train": "M2M-Self and M2M-DINO learn from multi-image sets: loss, held-out loss, and what they draw on the way.",
    "finetune": "Trained models learn a task, novel views (nvs) or visual procedures (vpg), from sets of it.",
    "evaluate": "Models measured on test sets; each run registered the version that it measured.",
    "sampling": "What an image costs by how many were given, beside Stable Diffusion.",
    "pipeline": "Flow runs of Prefect, each with the runs of its stages below it.",
    "bench": "Speed against goals, both sides timed in one run.",
}
"""Of the experiments, which bear the names of stages."""


class ServerRun:
    """One run on the server."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._uri = str(client.tracking_uri)
        self.id = str(run.info.run_id)
        self._client, self._experiment_id = client, run.info.experiment_id
        self._steps: dict[str, int] = {}
        """The newest step of each curve when the run was opened or resumed."""
        self._pictures: set[tuple[str, int]] = set()
        self._unsure = True
        """Whether the next entry may have arrived before, its acknowledgement lost."""
        self.version: str | None = None
        """What the model was registered as."""

    def send(self, entries: Sequence[Entry], journal: Journal) -> None:
        """Sends entries of one kind; several only of metrics, which go together, cut by MLflow as it takes them.

        Raises:
            OutsideError: the server is away.
            UserError: it will not take them.
        """
        unsure, self._unsure = self._unsure, True
        with classified(self._uri):
            match entries[0].kind, entries[0].values:
                case "metrics", _:
                    self._metrics([point for entry in entries for point in entry.values["points"]])
                case "params", values:
                    self._client.log_batch(self.id, params=[Param(*item) for item in values["values"].items()])
                case "tags", values:
                    self._client.log_batch(self.id, tags=[RunTag(*item) for item in values["values"].items()])
                case "image", values:
                    self._image(values, journal, unsure)
                case "artifact", values:
                    self._artifact(journal.kept(values["file"]), values["folder"])
                case "dataset", values:
                    self._dataset(values)
                case "register", values:
                    self._register(values, journal)
                case "resume", _:
                    self._resume()
                case "end", values:
                    self._client.set_terminated(self.id, values["status"], values["time"])
                case kind, _:
                    raise ValueError(f"entry of kind {kind!r}, written by another version of m2m")
            self._unsure = False
        for entry in entries:
            if "file" in entry.values:
                journal.forget(entry.values["file"])

    def _metrics(self, points: list[tuple[str, float, int, int]]) -> None:
        new = [
            Metric(key, value, time, step)
            for key, value, step, time in points
            if step > self._steps.get(key, -1) or key.startswith(SYSTEM)
        ]
        if new:
            self._client.log_batch(self.id, metrics=new)

    def _image(self, values: dict[str, Any], journal: Journal, unsure: bool) -> None:
        key, step, time = values["key"], values["step"], values["time"]
        if (key, step) in self._pictures or (unsure and (key, step) in self._pictures_there(time)):
            return
        with PIL.Image.open(journal.kept(values["file"]), formats=["PNG"]) as picture:
            self._client.log_image(self.id, picture, key=key, step=step, timestamp=time)

    def _artifact(self, path: Path, folder: str) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.id, str(path), "/".join(filter(None, (folder, path.name))))
        else:
            self._client.log_artifact(self.id, str(path), folder or None)

    def _dataset(self, values: dict[str, Any]) -> None:
        source, sets = json.dumps({"url": values["source"]}), json.dumps(values["sets"])
        dataset = Dataset(values["name"], values["digest"], "http", source, profile=sets)
        tags = [InputTag("mlflow.data.context", values["context"])]
        self._client.log_inputs(self.id, datasets=[DatasetInput(dataset, tags)])

    def _register(self, values: dict[str, Any], journal: Journal) -> None:
        self.version = register(
            self._client,
            run_id=self.id,
            experiment_id=self._experiment_id,
            name=values["name"],
            folder=journal.kept(values["file"]),
            metrics=values["metrics"],
            tags=values["tags"],
            time=values["time"],
        )
        # Two evaluations that compare themselves with the same champion would both replace it.
        with FileLock(journal.folder.parent.with_name("aliases.lock")):
            set_aliases(self._client, values["name"], self.version, **values["gate"])

    def _resume(self) -> None:
        self.look()
        self._client.update_run(self.id, status="RUNNING")

    def look(self) -> None:
        """What the server has of the run is not sent again by the part of the work that is done again.

        Not only where the journal says that the run was resumed: the note that this was sent may have come through and
        the points of the work done again not, before the next kill.
        """
        for key in self._client.get_run(self.id).data.metrics:
            if not key.startswith(SYSTEM):
                self._steps[key] = max(point.step for point in self._client.get_metric_history(self.id, key))
        self._pictures = self._pictures_there()

    def _pictures_there(self, time: int | None = None) -> set[tuple[str, int]]:
        """Keys and steps of the pictures that the server has (of one moment)."""
        name = re.compile(r"images/(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+(?P<time>\d+)\+[-0-9a-f]+\.png")
        matches = [name.fullmatch(file.path) for file in self._client.list_artifacts(self.id, "images")]
        return {
            (match["key"].replace("~", "/"), int(match["step"]))
            for match in matches
            if match and time in (None, int(match["time"]))
        }


def open_run(uri: str, header: Header) -> ServerRun:
    """Finds or makes a run on an MLflow server, or in a database that is used without one.

    Raises:
        OutsideError: the server is away.
        UserError: it will not take it.
    """
    with classified(uri):
        client = connect(uri)
        # In all experiments: a person may have given it another name since, or the run another experiment.
        everywhere = [str(one.experiment_id) for one in client.search_experiments()]
        found = client.search_runs(everywhere, f"tags.`{RUN_TAG}` = '{header.key}'", max_results=1)
        if found:
            run = ServerRun(client, found[0])
            run.look()
            return run
        experiment_id, tags = _experiment(client, header.experiment), {**header.tags, RUN_TAG: header.key}
        return ServerRun(client, client.create_run(experiment_id, header.started, tags, header.name))


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_file(str(client.tracking_uri))
        place = (database.parent / ARTIFACTS / name).as_uri() if database else None
        kind = {"mlflow.experimentKind": "custom_model_development", NOTE: DESCRIPTIONS.get(name, "")}
        made = unless("RESOURCE_ALREADY_EXISTS", lambda: client.create_experiment(name, place, kind))
        return str(made) if made else _experiment(client, name)
    number = str(found.experiment_id)
    if found.lifecycle_stage != "active":
        raise UserError(
            f"experiment {name} was deleted in MLflow; mlflow experiments restore -x {number} brings it back, "
            f"mlflow gc --experiment-ids {number} makes room for a new one"
        )
    return number
