"""Artifacts that lie beside an SQLite database go where it goes: MLflow's tables hold whole paths."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from m2m.errors import UserError

ARTIFACTS = "mlruns"
"""The folder beside the database."""
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""MLflow's columns that say where artifacts are."""


def bring_artifacts_along(database: Path) -> None:
    """Corrects the places of artifacts in a database that was moved, or copied, together with them.

    Else a moved checkout would make its old folders anew, and a copy write into the original. A table of our own keeps
    where the database was.

    Raises:
        UserError: it is no database, or it may not be written.
    """
    if not database.exists():
        return
    try:
        _correct(database)
    except sqlite3.Error as error:
        raise UserError(f"{database}: MLflow's database cannot be used ({error}); restore it, or move it") from error


def _correct(database: Path) -> None:
    here = database.parent.resolve()
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return
        if "m2m_place" not in tables:
            connection.execute("CREATE TABLE m2m_place (folder TEXT NOT NULL)")
            connection.execute("INSERT INTO m2m_place VALUES (?)", (str(_place_before(connection) or here),))
        there = Path(*connection.execute("SELECT folder FROM m2m_place").fetchone())
        if there == here or ((there / ARTIFACTS).exists() and not (here / ARTIFACTS).exists()):
            return  # or the artifacts stayed where they were
        for old, new in ((there.as_uri(), here.as_uri()), (str(there), str(here))):
            for table, column in PLACES:
                if table in tables:
                    old_start, new_start = f"{old}/{ARTIFACTS}/", f"{new}/{ARTIFACTS}/"
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (new_start, len(old_start) + 1, len(old_start), old_start),
                    )
        connection.execute("UPDATE m2m_place SET folder = ?", (str(here),))


def _place_before(connection: sqlite3.Connection) -> Path | None:
    """Where a database of a time before the table was, told by the experiments that bear their folders' names."""
    rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    ends = ((place or "", f"/{ARTIFACTS}/{name}") for name, place in rows)
    found = {place.removesuffix(end) for place, end in ends if place.startswith("file:///") and place.endswith(end)}
    return Path(unquote(urlsplit(found.pop()).path)) if len(found) == 1 else None
