"""Where MLflow's records are read from, without MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from m2m.errors import UserError
from m2m.settings import sqlite_file
from m2m.tracking.origin import STAGE


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run as MLflow holds it."""

    id: str
    name: str
    experiment_id: str
    experiment: str
    status: str
    started: int
    """Milliseconds since 1970."""
    deleted: bool
    """A person deleted it in MLflow, where it can be restored until ``mlflow gc``."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    datasets: Sequence[Mapping[str, str]]
    """Name, digest and profile of each."""

    @property
    def stage(self) -> str:
        """What made it, whatever a person calls its experiment today."""
        return self.tags.get(STAGE, "").partition("@")[0] or self.experiment


class Source(Protocol):
    """What holds the records. Each call may raise UserError: it does not answer, or refuses."""

    def run(self, run_id: str) -> Found | None: ...

    def tagged(self, tag: str, value: str) -> list[Found]:
        """The runs with a tag, oldest first, deleted ones too."""

    def versions(self, run_id: str) -> list[tuple[str, str]]:
        """Name and number of each version that a run registered."""

    def registered(self, name: str, version: str) -> tuple[str, Mapping[str, str]] | None:
        """The run that registered a version, which may be gone, and the version's tags; None if there is no such."""

    def aliases(self) -> dict[tuple[str, str], str]:
        """By name and alias the version."""


def open_source(uri: str) -> Source:
    """Of a server's or a database's address.

    Raises:
        UserError: the database is not there.
    """
    if uri.startswith("http"):
        from m2m.tracking.server import Server

        return Server(uri)
    if (file := sqlite_file(uri)) and not file.exists():
        raise UserError(f"nothing is recorded yet: there is no {file}; dvc repro makes it")
    from m2m.tracking.database import Database

    return Database(uri)
