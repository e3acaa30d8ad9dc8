"""From an address to a tracker. MLflow takes seconds to import: only who opens a tracker pays for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from m2m.errors import OutsideError, UserError
from m2m.settings import without_password
from m2m.tracking.contract import NullTracker, Tracker

if TYPE_CHECKING:
    from m2m.tracking.reading import Records

MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # The journal is what tries again: MLflow's own seven tries would hold up the end of a run for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def open_tracker(
    uri: str, *, spool: Path, tags: Mapping[str, str] | None = None, interval: float = 2.0, patience: float = 120.0
) -> Tracker:
    """The tracker at `uri`: an MLflow server, a database (``sqlite:////folder/mlflow.db``), or ``none``; not asked yet.

    Args:
        spool: folder for what waits to be sent.
        tags: for every run.
        interval: seconds between two requests with metrics.
        patience: seconds that the end of a run may wait for a slow server before it leaves the rest to a later run.
    """
    if uri == "none":
        return NullTracker()
    _prepare_mlflow()
    from m2m.tracking.recording import MlflowTracker

    return MlflowTracker(uri=uri, spool=spool, tags=dict(tags or {}), interval=interval, patience=patience)


def check_tracking(uri: str) -> None:
    """Returns if runs can be recorded at `uri`.

    Raises:
        UserError: it does not answer.
    """
    if uri == "none":
        return
    _prepare_mlflow()
    from m2m.tracking.connection import AwayError, RefusedError
    from m2m.tracking.remote import Remote

    try:
        Remote(uri).answer()
    except (AwayError, RefusedError) as error:
        kind = OutsideError if isinstance(error, AwayError) else UserError
        raise kind(f"tracking at {without_password(uri)}: {error}") from error


def open_records(uri: str) -> Records:
    """What is recorded at `uri`, to be read.

    Raises:
        UserError: nothing was ever recorded, or tracking is off.
    """
    if uri == "none":
        raise UserError("MLFLOW_TRACKING_URI is none: nothing is recorded; unset it, or name a database or a server")
    from m2m.tracking.reading import Records
    from m2m.tracking.sources import open_source

    return Records(open_source(uri))


def _prepare_mlflow() -> None:
    """Before its import: no telemetry, no pickles, no chatter."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
