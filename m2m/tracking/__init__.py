"""What MLflow remembers of a run: parameters, curves, pictures, datasets, models. Only this package imports mlflow.

Here is what a stage may say to the tracker, and a tracker that forgets it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from m2m.params import GateParams
from m2m.tracking.connection import bring_artifacts_along, check_tracking, open_history, prepare_mlflow
from m2m.tracking.history import ALL_RUNS, Chain, PastRun, Trace, installed_libraries, origin_tags

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ALL_RUNS",
    "Chain",
    "NullTracker",
    "PastRun",
    "Run",
    "Trace",
    "Tracker",
    "bring_artifacts_along",
    "check_tracking",
    "installed_libraries",
    "open_history",
    "open_tracker",
    "origin_tags",
]


class Run:
    """One run; this one forgets all.

    No call but `register` waits for a server, and none fails: what cannot be sent waits on disk.
    """

    def __init__(self, key: str) -> None:
        self.id = key
        """Names the run for ever; `Tracker.run` takes it as `resume_key`. MLflow has it as the tag ``m2m.run``."""

    def server_id(self, *, patience: float) -> str | None:
        """MLflow's own id of the run, for its children; None if the server is away or takes `patience` seconds."""

    def params(self, values: Mapping[str, object]) -> None:
        """Logs parameters; nested mappings become dotted names."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Adds tags that are known only now: the hash of what the run made."""

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Logs a point of each curve. In a resumed run, points that the server has up to the same step are left out.

        Args:
            values: by name; slashes group charts. What MLflow's names may not hold (``=``) becomes ``-``.
            step: images seen, in training; the position of the drawn image, in an evaluation.
        """

    def image(self, image: Image, *, key: str, step: int) -> None:
        """Logs a picture; a key (``preview/03``) that every run uses lets MLflow show their pictures side by side."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Logs a file, or all of a folder, as it is now."""

    def dataset(self, name: str, *, source: str, digest: str, context: str, sets: Mapping[str, int]) -> None:
        """Logs which data the run used, in which `context` (``training``), and how many sets each split has.

        MLflow keeps 36 characters of `digest`; the tag ``manifest`` holds all of it.
        """

    def register(
        self, model_folder: Path, name: str, *, metrics: Mapping[str, float], tags: Mapping[str, str], gate: GateParams
    ) -> str | None:
        """Makes a pipeline folder the next version of a registered model, once a run, and waits for it.

        The version gets the alias ``candidate``; ``champion`` as well, if it passes the gate.

        Args:
            metrics: the scores of this model; they are logged for the run, too.
            tags: ``manifest`` says on which data it was evaluated.
            gate: what a version must be better at than the champion on the same data, and what all must reach.

        Returns:
            The version, or None if the server is away: then it will be registered later.
        """


class Tracker(Protocol):
    """Where runs are recorded."""

    def run(
        self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None
    ) -> AbstractContextManager[Run]:
        """A run, from entering to leaving the context; an error or an interrupt that passes through becomes its status.

        Args:
            name: what the run is called (``train-self``).
            stage: the experiment that it belongs to (``train``).
            tags: short texts to search by.
            resume_key: `Run.id` of a run that was killed or failed, to go on with it.
        """


class NullTracker:
    """Remembers nothing: for tests, and for those who turned tracking off."""

    def run(
        self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None
    ) -> AbstractContextManager[Run]:
        return nullcontext(Run(resume_key or uuid4().hex))


def open_tracker(uri: str, *, spool: Path, tags: Mapping[str, str]) -> Tracker:
    """The tracker at `uri`: an MLflow server, a database (``sqlite:////folder/mlflow.db``), or ``none``; not asked yet.

    Args:
        spool: folder for what waits to be sent.
        tags: for every run.
    """
    if uri == "none":
        return NullTracker()
    prepare_mlflow()
    from m2m.tracking.recording import MlflowTracker

    return MlflowTracker(uri, spool, tags)
