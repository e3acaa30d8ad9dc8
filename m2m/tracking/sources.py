"""Where MLflow's records are read from, without MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from m2m.errors import UserError


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
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    datasets: Sequence[Mapping[str, str]]
    """Name, digest and profile of each."""


class Source(Protocol):
    """What holds the records. Each call may raise UserError: it does not answer, or refuses."""

    def run(self, run_id: str) -> Found | None: ...

    def tagged(self, tag: str, value: str) -> list[Found]:
        """The runs with a tag, oldest first."""

    def versions(self, run_id: str) -> list[tuple[str, str]]:
        """Name and number of each version that a run registered."""

    def registered_by(self, name: str, version: str) -> str | None:
        """The run that registered a version."""

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
    file = Path(urlsplit(uri).path.removeprefix("/"))
    if uri.startswith("sqlite") and not file.exists():
        raise UserError(f"nothing is recorded yet: there is no {file}; dvc repro makes it")
    from m2m.tracking.database import Database

    return Database(uri)
