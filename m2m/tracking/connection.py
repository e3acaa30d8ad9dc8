"""The way to MLflow, and what its errors mean for whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from m2m.settings import sqlite_file, without_secrets
from m2m.tracking.places import bring_artifacts_along

_REFUSALS = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class AwayError(Exception):
    """The server does not answer, or cannot do its work now: try again later."""


class RefusedError(Exception):
    """The server will not take this, now or later."""


def connect(uri: str) -> MlflowClient:
    """A client of an MLflow server, or of a database that is used without one.

    It makes a database that is not there yet; two processes that did so at the same time would crash.
    """
    database = sqlite_file(uri)
    with FileLock(database.with_name(f"{database.name}.lock")) if database else nullcontext():
        client = MlflowClient(uri, uri)
        if database:
            client.search_experiments(max_results=1)
            bring_artifacts_along(database)
        return client


@contextmanager
def classified(uri: str) -> Iterator[None]:
    """Says of any error of what is asked of `uri` whether trying again can help."""
    try:
        yield
    except MlflowException as error:
        kind = RefusedError if error.error_code in _REFUSALS else AwayError
        raise kind(_short(error, uri)) from error
    except OSError as error:  # connections that break are OSErrors, too; requests' exceptions as well
        kind = RefusedError if isinstance(error, FileNotFoundError) else AwayError
        raise kind(_short(error, uri)) from error
    except Exception as error:
        raise RefusedError(_short(error, uri)) from error


def _short(error: Exception, uri: str) -> str:
    """One line without what may be secret in an address."""
    text = " ".join(str(error).split()) or type(error).__name__
    for words in ("Connection refused", "timed out", "Name or service not known"):
        if words in text:
            return words.lower()
    text = without_secrets(text, uri)
    return text if len(text) <= 200 else f"{text[:197]}..."
