"""What MLflow remembers of a flow run: one run of its own, with the stages' runs as its children."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from m2m.errors import UserError
from m2m.settings import Settings, revision, without_password
from m2m.tracking import PastRun, Run, open_history, open_tracker, origin_tags

EXPERIMENT = "pipeline"
"""The MLflow experiment of these runs. The stages' runs stay in the experiments that bear their names, where they
compare with others of their kind: MLflow's lists fetch a parent from any experiment and nest below it, and a run's page
links to its parent. Only the parent's page looks for children in its own experiment: so its description names them."""
PATIENCE = 60.0
"""Seconds that the start of a flow run may wait for a slow server."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class ParentRun:
    """The MLflow run of a flow run, under which those of its stages stand."""

    def __init__(self, run: Run, settings: Settings, log: Log) -> None:
        self._run, self._settings = run, settings
        self.id = run.server_id(patience=PATIENCE) or ""
        """Empty without a server that answers."""
        if not self.id:
            where = without_password(settings.tracking_uri)
            reason = "tracking is off" if where == "none" else f"MLflow at {where} does not answer"
            log.warning("%s: the stages' runs will have no parent there", reason)

    def links(self, reused: Sequence[str]) -> list[str]:
        """Lines of markdown to what MLflow has of the flow run; stages that made no run since nothing was to do say so.

        Args:
            reused: names of stages that DVC skipped or restored.
        """
        uri = self._settings.tracking_uri
        lines = [f"- `{stage}`: reused" for stage in reused]
        try:
            history = open_history(uri)
            runs, pages = history.of_flow_run(self._settings.caller.flow_run), history.comparisons()
        except UserError as error:
            return [f"- {error}", *lines]
        children = [run for run in runs if run.origin.stage]
        self._run.tags({"mlflow.note.content": "\n".join([*(_link(run, "") for run in children), *lines])})
        if uri.startswith("http"):
            server = without_password(uri).rstrip("/") + "/"
            shown = [f"- [{what}]({server}{page})" for what, page in pages.items()]
            return [*shown, *(_link(run, server) for run in runs), *lines]
        by_name = [f"- {_stage(run)}{run.name}, run `{run.id}`" for run in runs]
        return ["`make ui` opens MLflow on this machine, with these runs:\n", *by_name, *lines]


@contextmanager
def recorded(
    name: str, params: Mapping[str, object], *, checkout: Path, env: Mapping[str, str], log: Log
) -> Iterator[ParentRun]:
    """Opens the run; it closes as FINISHED, as FAILED if an error leaves the block, as KILLED if a cancellation does.

    Args:
        params: how the flow was called.
        checkout: where the stages run.
        env: the stages' environment: what it says of flow run and experiment stands on this run, too.
    """
    settings = Settings.from_environment(env, checkout=checkout)
    tags = origin_tags(settings.caller, revision(checkout))
    tracker = open_tracker(settings.tracking_uri, spool=settings.work / "spool", tags=tags)
    with tracker.run(name, stage=EXPERIMENT, tags={}) as run:
        run.params(params)
        yield ParentRun(run, settings, log)


def _link(run: PastRun, server: str) -> str:
    return f"- {_stage(run)}[{run.name}]({server}{run.page})"


def _stage(run: PastRun) -> str:
    return f"`{run.origin.stage}`: " if run.origin.stage else ""
