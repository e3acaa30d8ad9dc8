"""What MLflow remembers, read back: runs, and the chain from a dataset to a registered model."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import urlencode

from m2m.errors import UserError
from m2m.params import Variant
from m2m.settings import Caller, Revision
from m2m.tracking.connection import explained, unless

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMMIT, DIRTY = "mlflow.source.git.commit", "git.dirty"
STAGE, EXPERIMENT = "dvc.stage", "dvc.experiment"
FLOW_RUN, FLOW_RUN_URL = "prefect.flow_run", "prefect.flow_run_url"
ORIGIN = {
    "commit": COMMIT,
    "stage": STAGE,
    "experiment": EXPERIMENT,
    "flow_run": FLOW_RUN,
    "flow_run_url": FLOW_RUN_URL,
}
"""The tags that say where a run comes from, by the fields of `Origin`."""
PARENT = "mlflow.parentRunId"
"""MLflow shows the run below that one, in the lists of either's experiment."""
UNKNOWN = "RESOURCE_DOES_NOT_EXIST"
"""MLflow's answer to who asks for what is not there."""
LIBRARIES = "libraries"
"""Of those that compute, the versions by which a run made what it made."""
COMPUTING = (
    "diffusers",
    "numpy",
    "pillow",
    "pyarrow",
    "pyvista",
    "safetensors",
    "scipy",
    "torch",
    "torchmetrics",
    "transformers",
)
"""Another version of one of these may change bytes."""
MAKERS = ("generate", "views", "procedures", "train", "finetune")
"""Stages whose outputs others go on from."""
FOUNDATION = "foundation."
"""Prefix of the parameters that name what a model started from."""
PARENT_MODEL = "parent."
"""Prefix of the parameter that names the model which fine-tuning started from, or training, where it was trained on."""


def page(path: str, **query: object) -> str:
    """A page of MLflow's, behind its server's address; without the workflow it opens on what concerns language models.

    Args:
        query: texts, and what is read as JSON.
    """
    values = {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in query.items()
    }
    return f"#/{path}?{urlencode({**values, 'workflowType': 'machine_learning'})}"


ALL_RUNS = page("experiments")


def origin_tags(caller: Caller, code: Revision) -> dict[str, str]:
    """The tags of every run that this process records."""
    tags = {
        COMMIT: code.commit,
        DIRTY: str(code.dirty).lower(),
        EXPERIMENT: caller.experiment,
        FLOW_RUN: caller.flow_run,
        FLOW_RUN_URL: caller.flow_run_url,
        PARENT: caller.parent_run,
        "mlflow.user": _user(),
        LIBRARIES: ", ".join(f"{name} {version}" for name, version in installed_libraries().items()),
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""


@cache
def installed_libraries() -> dict[str, str]:
    """The versions of what computes, without what a build adds to them (``+cpu``)."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in COMPUTING}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The tags, read back; each is empty where there is none."""

    commit: str
    dirty: bool
    stage: str
    experiment: str
    flow_run: str
    flow_run_url: str


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """One run."""

    id: str
    name: str
    stage: str
    """What made it; its MLflow experiment bears the name, unless a person changed that."""
    status: str
    deleted: bool
    """A person deleted it in MLflow, where it can be restored until ``mlflow gc``."""
    started: str
    page: str
    """Its page in MLflow's UI, behind the server's address."""
    origin: Origin
    model: str
    """Hash of the model that it made or evaluated; empty if there is none."""
    manifest: str
    """Hash of the manifest of its dataset, likewise."""
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The image sets that a model learnt from."""

    name: str
    manifest: str
    sets: Mapping[str, int]
    """By split."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered model."""

    name: str
    version: str
    aliases: Sequence[str]
    run: str
    """Id of the evaluation that registered it; it may be gone."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """From the dataset to the versions of one model, by content hash: a stage that DVC restored made no run."""

    dataset: Dataset | None
    foundation: Mapping[str, str]
    """Hashes of the folders that the model started from."""
    model: str
    training: PastRun | None
    finetuning: PastRun | None
    """Of a model that was fine-tuned to a task: `training` is that of the model which it comes from."""
    evaluations: Sequence[PastRun]
    versions: Sequence[Version]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What an address leads to."""

    run: PastRun
    """The run that it names, or the newest of them."""
    chains: Sequence[Chain]
    """One a model."""


class History:
    """What an MLflow server, or its database, holds; asked anew by each call."""

    def __init__(self, client: MlflowClient) -> None:
        self._client, self._uri = client, str(client.tracking_uri)

    def of_flow_run(self, flow_run: str) -> list[PastRun]:
        """The runs of a Prefect flow run and its own, oldest first.

        Raises:
            UserError: the server does not answer.
        """
        with explained(self._uri):
            return [self._past(run) for run in self._tagged(FLOW_RUN, flow_run) if not _is_deleted(run)]

    def comparisons(self) -> dict[str, str]:
        """Pages by what they show: the newest runs of both variants side by side, and the registered models."""
        with explained(self._uri):
            axes = {"x_axis": "step", "y_axis_scale": "linear", "plot_layout": {"autosize": True}}

            def curve(key: str) -> dict[str, object]:
                return {"metric": json.dumps(key), "plot_metric_keys": [key], **axes}

            shown: tuple[tuple[str, str, str, dict[str, object]], ...] = (
                ("newest scores of both variants", "evaluate", "compare-runs", {}),
                ("their FID by position", "evaluate", "metric", curve("position/fid")),
                ("newest training curves of both", "train", "metric", curve("held_out_loss")),
            )
            found = {}
            for what, stage, path, query in shown:
                runs = [run for variant in get_args(Variant) for run in self._newest(stage, f"{stage}-{variant}")]
                if len(runs) > 1:
                    ids, experiment = [run.info.run_id for run in runs], runs[0].info.experiment_id
                    found[what] = page(path, runs=ids, experiments=[experiment], **query)
            return {**found, "registered models": page("models")}

    def _newest(self, stage: str, name: str) -> list[Run]:
        """The last run of this name that came to its end, if there is one."""
        experiment = self._client.get_experiment_by_name(stage)
        query = f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'"
        newest_first = ["attributes.start_time DESC"]
        found = experiment and self._client.search_runs(
            [experiment.experiment_id], query, max_results=1, order_by=newest_first
        )
        return list(found or ())

    def libraries(self, tag: Literal["model", "manifest"], digest: str) -> dict[str, str]:
        """The versions of the libraries by which a model or a dataset was made; empty if nothing tells.

        Raises:
            UserError: the server does not answer.
        """
        with explained(self._uri):
            makers = [run for run in self._tagged(tag, digest) if self._stage(run) in MAKERS]
            if tag == "manifest":  # training notes what it reads by the same tag
                makers = [run for run in makers if "model" not in run.data.tags]
            told = [run.data.tags[LIBRARIES] for run in makers if LIBRARIES in run.data.tags]
            return dict(entry.split(" ", 1) for entry in told[-1].split(", ")) if told else {}

    def trace(self, ref: str) -> Trace:
        """Follows a model version (``models:/NAME@ALIAS``, ``models:/NAME/N``), a run id or a DVC experiment.

        Raises:
            UserError: the server does not answer, or holds nothing of this name; says what it holds.
        """
        with explained(self._uri):
            runs = self._named(ref)
            if not runs:
                raise UserError(f"nothing is recorded as {ref!r}; {self._offer()}")
            newest = max(runs, key=lambda run: (not _is_deleted(run), run.info.start_time))
            with_model = [run for run in runs if "model" in run.data.tags] or [newest]
            seeds = {run.data.tags.get("model", ""): run for run in with_model}
            return Trace(run=self._past(newest), chains=[self._chain(seed) for seed in seeds.values()])

    def _named(self, ref: str) -> list[Run]:
        """The runs that an address names, oldest first; for a version the one that registered it.

        Where that one is gone, those of the same model.
        """
        if version := re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d{1,9}))", ref):
            name, number = version["name"], version["number"]
            number = number or self._aliases().get((name, version["alias"]))
            registered = unless(UNKNOWN, lambda: self._client.get_model_version(name, number)) if number else None
            if registered is None:
                return []
            if not (runs := self._run(registered.run_id) or self._tagged("model", registered.tags.get("model"))):
                gone = f"its run {registered.run_id} was removed from MLflow" if registered.run_id else "by no run"
                raise UserError(f"{ref} is registered, but {gone}: nothing tells any more where it comes from")
            return runs
        if re.fullmatch(r"[0-9a-f]{32}", ref):
            return self._tagged(PARENT, ref) or self._run(ref)
        return self._tagged(EXPERIMENT, ref) if re.fullmatch(r"[\w.-]+", ref) else []

    def _chain(self, seed: Run) -> Chain:
        """All that is known of the model of a run; of a run without one, the run itself."""
        model = seed.data.tags.get("model", "")
        runs = self._tagged("model", model) if model else [seed]
        finetuning = self._of("finetune", runs)
        made = self._tagged("model", _parent(finetuning[0])) if finetuning else runs
        training = self._of("train", made)
        evaluations = [self._past(run) for run in runs if self._stage(run) == "evaluate"]
        first = (training or [seed])[0]
        return Chain(
            dataset=_dataset((finetuning or [first])[0]),
            foundation=_with_prefix(FOUNDATION, self._origin(first)),
            model=model,
            training=self._past(training[0]) if training else None,
            finetuning=self._past(finetuning[0]) if finetuning else None,
            evaluations=evaluations,
            versions=list(self._versions(evaluations)),
        )

    def _origin(self, training: Run) -> Run:
        """The training that began with the foundation: of a model that was trained on, one before."""
        seen: set[str] = set()
        while training.info.run_id not in seen:  # without a parent it leads to itself
            seen.add(training.info.run_id)
            training = (self._of("train", self._tagged("model", _parent(training))) or [training])[0]
        return training

    def _versions(self, evaluations: Sequence[PastRun]) -> Iterator[Version]:
        aliases = self._aliases()
        for run in evaluations:
            for one in self._client.search_model_versions(f"run_id = '{run.id}'"):
                model = one.name, str(one.version)
                own = sorted(alias for (name, alias), version in aliases.items() if (name, version) == model)
                yield Version(name=model[0], version=model[1], aliases=own, run=run.id)

    def _offer(self) -> str:
        """What there is, for who asked for something else."""
        there = ", ".join(f"models:/{name}@{alias}" for name, alias in sorted(self._aliases()))
        what = f"there is {there}" if there else "no model is registered yet"
        return f"name a version (models:/NAME@ALIAS, models:/NAME/3), an MLflow run id or a DVC experiment; {what}"

    def _run(self, run_id: str | None) -> list[Run]:
        """The run of this id, if there is one."""
        run = unless(UNKNOWN, lambda: self._client.get_run(run_id)) if run_id else None
        return [run] if run else []

    def _tagged(self, tag: str, value: str | None) -> list[Run]:
        """The runs with a tag, oldest first, deleted ones too."""
        from mlflow.entities import ViewType

        if not value:
            return []
        everywhere = [one.experiment_id for one in self._client.search_experiments(ViewType.ALL)]
        query, oldest_first = f"tags.`{tag}` = '{value}'", ["attributes.start_time ASC"]
        return list(self._client.search_runs(everywhere, query, ViewType.ALL, order_by=oldest_first))

    def _aliases(self) -> dict[tuple[str, str], str]:
        """By name and alias the version."""
        models = self._client.search_registered_models()
        return {(one.name, alias): str(version) for one in models for alias, version in one.aliases.items()}

    def _of(self, stage: str, runs: Sequence[Run]) -> list[Run]:
        """Those of a stage; deleted ones last."""
        return sorted((run for run in runs if self._stage(run) == stage), key=_is_deleted)

    def _stage(self, run: Run) -> str:
        """What made it, whatever a person calls its experiment today."""
        stage: str = run.data.tags.get(STAGE, "").partition("@")[0]
        return stage or str(self._client.get_experiment(run.info.experiment_id).name)

    def _past(self, run: Run) -> PastRun:
        tags = run.data.tags
        told = {field: tags.get(tag, "") for field, tag in ORIGIN.items()}
        return PastRun(
            id=run.info.run_id,
            name=run.info.run_name,
            stage=self._stage(run),
            status=run.info.status,
            deleted=_is_deleted(run),
            started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
            page=page(f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"),
            origin=Origin(dirty=tags.get(DIRTY) == "true", **told),
            model=tags.get("model", ""),
            manifest=tags.get("manifest", ""),
            metrics=run.data.metrics,
        )


def _is_deleted(run: Run) -> bool:
    return bool(run.info.lifecycle_stage != "active")


def _with_prefix(prefix: str, run: Run) -> dict[str, str]:
    """The parameters of a run whose names begin so, without it."""
    return {key.removeprefix(prefix): one for key, one in run.data.params.items() if key.startswith(prefix)}


def _parent(run: Run) -> str:
    """The hash of the model that a run started from; its own if it was none."""
    return next(iter(_with_prefix(PARENT_MODEL, run).values()), run.data.tags.get("model", ""))


def _dataset(run: Run) -> Dataset | None:
    """What the run logged as its data, with the whole hash, of which MLflow itself keeps the beginning."""
    manifest = run.data.tags.get("manifest")
    if manifest is None:
        return None
    inputs = run.inputs.dataset_inputs if run.inputs else []
    used = [one.dataset for one in inputs if manifest.startswith(one.dataset.digest)]
    name, profile = (used[0].name, used[0].profile) if used else ("", None)
    return Dataset(name=name, manifest=manifest, sets=json.loads(profile or "{}"))
