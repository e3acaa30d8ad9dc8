"""Reads what MLflow remembers: the runs of a flow run, and where a model comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from m2m.errors import UserError
from m2m.tracking.origin import EXPERIMENT, FLOW_RUN, PARENT, Origin
from m2m.tracking.records import Chain, Dataset, RecordedRun, Trace, Version
from m2m.tracking.sources import Found, Source

FOUNDATION = "foundation."
"""Prefix of the parameters that name what a model started from."""
PARENT_MODEL = "parent."
"""Prefix of the parameter that names the model which fine-tuning started from."""


class Records:
    """What an MLflow server, or its database, holds; asked anew by each call."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def of_flow_run(self, flow_run: str) -> list[RecordedRun]:
        """The runs of a Prefect flow run and its own, oldest first.

        Raises:
            UserError: the server does not answer.
        """
        return [_recorded(run) for run in self._source.tagged(FLOW_RUN, flow_run) if not run.deleted]

    def trace(self, ref: str) -> Trace:
        """Follows a model version (``models:/NAME@ALIAS``, ``models:/NAME/N``), a run id or a DVC experiment.

        Raises:
            UserError: the server does not answer, or holds nothing of this name; says what it holds.
        """
        runs = self._named(ref)
        if not runs:
            raise UserError(f"nothing is recorded as {ref!r}; {self._offer()}")
        newest = max(runs, key=lambda run: (not run.deleted, run.started))
        with_model = [run for run in runs if "model" in run.tags] or [newest]
        seeds = {run.tags.get("model", ""): run for run in with_model}
        return Trace(run=_recorded(newest), chains=[self._chain(seed) for seed in seeds.values()])

    def _named(self, ref: str) -> list[Found]:
        """The runs that an address names, oldest first; for a version the one that registered it.

        Where that one is gone, those of the same model.
        """
        if version := re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d{1,9}))", ref):
            name, number = version["name"], version["number"]
            number = number or self._source.aliases().get((name, version["alias"]))
            registered = self._source.registered(name, number) if number else None
            if registered is None:
                return []
            run_id, tags = registered
            run = self._source.run(run_id) if run_id else None
            runs = [run] if run else self._source.tagged("model", tags["model"]) if "model" in tags else []
            if not runs:
                gone = f"its run {run_id} was removed from MLflow" if run_id else "by no run"
                raise UserError(f"{ref} is registered, but {gone}: nothing tells any more where it comes from")
            return runs
        if re.fullmatch(r"[0-9a-f]{32}", ref):
            run = self._source.run(ref)
            return self._source.tagged(PARENT, ref) or ([run] if run else [])
        return self._source.tagged(EXPERIMENT, ref) if re.fullmatch(r"[\w.-]+", ref) else []

    def _chain(self, seed: Found) -> Chain:
        """All that is known of the model of a run; of a run without one, the run itself."""
        model = seed.tags.get("model", "")
        runs = self._source.tagged("model", model) if model else [seed]
        finetuning = _of("finetune", runs)
        made = self._source.tagged("model", _parent(finetuning[0])) if finetuning else runs
        training = _of("train", made)
        evaluations = [run for run in runs if run.stage == "evaluate"]
        first = (training or [seed])[0]
        from_ = {key.removeprefix(FOUNDATION): one for key, one in first.params.items() if key.startswith(FOUNDATION)}
        return Chain(
            dataset=_dataset((finetuning or [first])[0]),
            foundation=from_,
            model=model,
            training=_recorded(training[0]) if training else None,
            finetuning=_recorded(finetuning[0]) if finetuning else None,
            evaluations=[_recorded(run) for run in evaluations],
            versions=list(self._versions(evaluations)),
        )

    def _versions(self, evaluations: list[Found]) -> Iterator[Version]:
        aliases = self._source.aliases()
        for run in evaluations:
            for model in self._source.versions(run.id):
                own = sorted(alias for (name, alias), version in aliases.items() if (name, version) == model)
                yield Version(name=model[0], version=model[1], aliases=own, run=run.id)

    def _offer(self) -> str:
        """What there is, for who asked for something else."""
        there = ", ".join(f"models:/{name}@{alias}" for name, alias in sorted(self._source.aliases()))
        what = f"there is {there}" if there else "no model is registered yet"
        return f"name a version (models:/NAME@ALIAS, models:/NAME/3), an MLflow run id or a DVC experiment; {what}"


def _of(stage: str, runs: list[Found]) -> list[Found]:
    """Those of a stage; deleted ones last."""
    return sorted((run for run in runs if run.stage == stage), key=lambda run: run.deleted)


def _parent(finetuning: Found) -> str:
    """The hash of the model that fine-tuning started from; its own, which no training made, if it was none."""
    digests = [value for key, value in finetuning.params.items() if key.startswith(PARENT_MODEL)]
    return digests[0] if digests else finetuning.tags.get("model", "")


def _recorded(run: Found) -> RecordedRun:
    return RecordedRun(
        id=run.id,
        name=run.name,
        stage=run.stage,
        status=run.status,
        deleted=run.deleted,
        started=datetime.fromtimestamp(run.started / 1000, UTC).isoformat(timespec="seconds"),
        page=f"#/experiments/{run.experiment_id}/runs/{run.id}",
        origin=Origin.of(run.tags),
        model=run.tags.get("model", ""),
        manifest=run.tags.get("manifest", ""),
        metrics=run.metrics,
    )


def _dataset(run: Found) -> Dataset | None:
    """What the run logged as its data, with the whole hash, of which MLflow itself keeps the beginning."""
    manifest = run.tags.get("manifest")
    if manifest is None:
        return None
    logged = [one for one in run.datasets if manifest.startswith(one["digest"])]
    name, profile = (logged[0]["name"], logged[0].get("profile")) if logged else ("", None)
    return Dataset(name=name, manifest=manifest, sets=json.loads(profile or "{}"))
