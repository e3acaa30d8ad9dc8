"""The way from an address to MLflow, and what its errors mean for whoever asks.

MLflow takes seconds to import: only who opens a tracker, or a history, pays for it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from m2m.errors import OutsideError, UserError
from m2m.settings import TELEMETRY_OFF, sqlite_file, without_password, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from m2m.tracking.history import History

Answer = TypeVar("Answer")

MLFLOW_ENVIRONMENT = {
    **TELEMETRY_OFF,
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # The journal is what tries again: MLflow's own seven tries would hold up the end of a run for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
CHECK_SECONDS = "4"
"""That a check waits for a server's answer."""
_REFUSALS = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
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


def check_tracking(uri: str) -> None:
    """Returns if runs can be recorded at `uri`.

    Raises:
        UserError: it does not answer, within seconds.
    """
    if uri != "none":
        with _in_a_hurry(), explained(uri):
            connect(uri).search_experiments(max_results=1)


@contextmanager
def _in_a_hurry() -> Iterator[None]:
    """MLflow asks the environment, at each request, how long to wait for its answer."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = CHECK_SECONDS
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def open_history(uri: str) -> History:
    """What is recorded at `uri`, to be read.

    Raises:
        UserError: nothing was ever recorded, tracking is off, or the database is none.
    """
    if uri == "none":
        raise UserError("MLFLOW_TRACKING_URI is none: nothing is recorded; unset it, or name a database or a server")
    if (file := sqlite_file(uri)) and not file.exists():
        raise UserError(f"nothing is recorded yet: there is no {file}; dvc repro makes it")
    prepare_mlflow()
    from mlflow import MlflowClient

    from m2m.tracking.history import History

    with explained(uri):
        return History(MlflowClient(uri, uri))


def prepare_mlflow() -> None:
    """Before its import: no telemetry, no pickles, no chatter."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(uri: str) -> MlflowClient:
    """A client of an MLflow server, or of a database that is used without one.

    It makes a database that is not there yet; two processes that did so at the same time would crash.
    """
    prepare_mlflow()
    from mlflow import MlflowClient

    database = sqlite_file(uri)
    with FileLock(database.with_name(f"{database.name}.lock")) if database else nullcontext():
        client = MlflowClient(uri, uri)
        if database:
            client.search_experiments(max_results=1)
            bring_artifacts_along(database)
        return client


@contextmanager
def classified(uri: str, whose: str = "") -> Iterator[None]:
    """Makes one line, which begins with `whose`, of any error of what is asked of `uri`, but those that are one.

    Raises:
        OutsideError: the server does not answer, or cannot do its work now: trying again can help.
        UserError: the server will not take this, now or later.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MlflowException):
            away = error.error_code not in _REFUSALS
        else:  # connections that break are OSErrors, too; requests' exceptions as well
            away = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        raise (OutsideError if away else UserError)(whose + _short(error, uri)) from error


def explained(uri: str) -> AbstractContextManager[None]:
    """As `classified`, for a person who did not say where to ask."""
    return classified(uri, f"tracking at {without_password(uri)}: ")


def unless(code: str, ask: Callable[[], Answer]) -> Answer | None:
    """What MLflow answers; None if it refuses with an error of this code."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != code:
            raise
        return None


def _short(error: Exception, uri: str) -> str:
    """One line without what may be secret in an address."""
    text = " ".join(str(error).split()) or type(error).__name__
    for words in ("Connection refused", "timed out", "Name or service not known"):
        if words in text:
            return words.lower()
    text = without_secrets(text, uri)
    return text if len(text) <= 200 else f"{text[:197]}..."


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
