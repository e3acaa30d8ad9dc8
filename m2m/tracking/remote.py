"""Sends the entries of a run's journal to MLflow, so that sending one again changes nothing.

Metrics, parameters, tags, datasets and files have this property in MLflow itself (same time stamp, same name); runs,
pictures and registered versions are looked for first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from m2m.settings import sqlite_file
from m2m.tracking.connection import ARTIFACTS, RefusedError, classified, connect
from m2m.tracking.journal import Entry, Header, Journal
from m2m.tracking.registration import register, set_aliases

RUN_TAG = "m2m.run"
POINTS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
"""MLflow's limits."""
SYSTEM = "system/"
"""MLflow shows metrics of this prefix on a page of their own."""


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
        """Sends entries of one kind; several only of metrics, which go in one request.

        Raises:
            AwayError, RefusedError
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
        source = HTTPDatasetSource(values["source"])
        made = MetaDataset(source, name=values["name"], digest=values["digest"])  # type: ignore[abstract]
        fields = made._to_mlflow_entity().to_dictionary()
        dataset = Dataset(**{**fields, "profile": json.dumps(values["sets"])})
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


class Remote:
    """An MLflow server, or a database that is used without one."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self._uri)

    def open_run(self, header: Header) -> ServerRun:
        """Finds or makes a run.

        Raises:
            AwayError, RefusedError
        """
        with classified(self._uri):
            # In all experiments: a person may have given it another name since, or the run another experiment.
            everywhere = [str(one.experiment_id) for one in self._client.search_experiments()]
            found = self._client.search_runs(everywhere, f"tags.`{RUN_TAG}` = '{header.key}'", max_results=1)
            if found:
                remote = ServerRun(self._client, found[0])
                remote.look()
                return remote
            experiment_id = self._experiment(header.experiment)
            tags = {**header.tags, RUN_TAG: header.key}
            return ServerRun(self._client, self._client.create_run(experiment_id, header.started, tags, header.name))

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                number = found.experiment_id
                raise RefusedError(
                    f"experiment {name} was deleted in MLflow; mlflow experiments restore -x {number} brings it back, "
                    f"mlflow gc --experiment-ids {number} makes room for a new one"
                )
            return str(found.experiment_id)
        database = sqlite_file(self._uri)
        place = (database.parent / ARTIFACTS / name).as_uri() if database else None
        try:
            return str(self._client.create_experiment(name, place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(name)
