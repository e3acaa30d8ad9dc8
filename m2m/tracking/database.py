"""MLflow's records, read from the tables of a database without a server: its own client takes seconds to import.

These tables are MLflow's own; the tests hold this module against databases that the pinned version wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from m2m.errors import UserError
from m2m.settings import without_password, without_secrets
from m2m.tracking.sources import Found


class Database:
    """Implements `m2m.tracking.sources.Source`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._explained():
            self._engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)

    def run(self, run_id: str) -> Found | None:
        columns = ("name", "experiment_id", "status", "start_time", "lifecycle_stage")
        for name, experiment_id, status, started, state in self._select("runs", *columns, run_uuid=run_id):
            ((experiment,),) = self._select("experiments", "name", experiment_id=experiment_id)
            return Found(
                id=run_id,
                name=name,
                experiment_id=str(experiment_id),
                experiment=experiment,
                status=status,
                started=started,
                deleted=state != "active",
                tags=dict(self._select("tags", "key", "value", run_uuid=run_id)),
                params=dict(self._select("params", "key", "value", run_uuid=run_id)),
                metrics=dict(self._select("latest_metrics", "key", "value", run_uuid=run_id)),
                datasets=list(self._datasets(run_id)),
            )
        return None

    def tagged(self, tag: str, value: str) -> list[Found]:
        rows = self._select("tags", "run_uuid", key=tag, value=value)
        runs = [run for (run_id,) in rows if (run := self.run(run_id)) is not None]
        return sorted(runs, key=lambda run: run.started)

    def versions(self, run_id: str) -> list[tuple[str, str]]:
        return [
            (name, str(version)) for name, version in self._select("model_versions", "name", "version", run_id=run_id)
        ]

    def registered(self, name: str, version: str) -> tuple[str, Mapping[str, str]] | None:
        which = {"name": name, "version": int(version)}
        rows = self._select("model_versions", "run_id", **which)
        return (str(rows[0][0]), dict(self._select("model_version_tags", "key", "value", **which))) if rows else None

    def aliases(self) -> dict[tuple[str, str], str]:
        rows = self._select("registered_model_aliases", "name", "alias", "version")
        return {(name, alias): str(version) for name, alias, version in rows}

    def _datasets(self, run_id: str) -> Iterator[Mapping[str, str]]:
        for (dataset,) in self._select("inputs", "source_id", destination_id=run_id, source_type="DATASET"):
            columns = ("name", "digest", "dataset_profile")
            for name, digest, profile in self._select("datasets", *columns, dataset_uuid=dataset):
                yield {"name": name, "digest": digest, "profile": profile or ""}

    def _select(self, table: str, *columns: str, **where: object) -> list[tuple[Any, ...]]:
        """Rows of one of MLflow's tables, quoted as the database wants it (``key`` is a word of MySQL)."""
        wanted: list[Any] = [sqlalchemy.column(name) for name in columns]
        conditions = [sqlalchemy.column(name) == value for name, value in where.items()]
        query = sqlalchemy.select(*wanted).select_from(sqlalchemy.table(table)).where(*conditions)
        with self._explained(), self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, ImportError, ValueError) as error:  # the latter of a driver or a port that is none
            reason = without_secrets(str(getattr(error, "orig", error)).splitlines()[0], self._uri)
            raise UserError(f"tracking at {without_password(self._uri)}: {reason}") from error
