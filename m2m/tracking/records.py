"""What MLflow remembers, read back: runs, and the chain from a dataset to a registered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m2m.tracking.origin import Origin


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
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
    training: RecordedRun | None
    finetuning: RecordedRun | None
    """Of a model that was fine-tuned to a task: `training` is that of the model which it comes from."""
    evaluations: Sequence[RecordedRun]
    versions: Sequence[Version]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What an address leads to."""

    run: RecordedRun
    """The run that it names, or the newest of them."""
    chains: Sequence[Chain]
    """One a model."""
