"""Offers the deployments of ``prefect.yaml`` without a work pool: this process runs what is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast, get_args

import yaml
from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL

from flows.board import LOGS, read_seconds
from flows.graph import read_graph, select, stages_at_once
from flows.pipeline import CHECKOUT, pipeline
from m2m.params import Variant
from m2m.progress import clock

RUNS_AT_ONCE = 4
GIVEN = "foundation"
"""The stage whose outputs come with the repository."""


def deployments() -> list[RunnerDeployment]:
    """Those of ``prefect.yaml``; a form that does not fit is refused before anything runs."""
    parts = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    made = [
        pipeline.to_deployment(
            name=part["name"],
            description=part["description"] + _takes(part.get("parameters", {})),
            parameters=part.get("parameters"),
            schedules=[Cron(each["cron"], active=each["active"]) for each in part.get("schedules", [])],
            enforce_parameter_schema=part["enforce_parameter_schema"],
        )
        for part in parts
    ]
    return cast(list[RunnerDeployment], made)  # coroutines only where an event loop runs


def _takes(parameters: Mapping[str, Any]) -> str:
    """About how long a deployment takes on this machine, by what its stages took last; empty if that is not known."""
    if "profile" in parameters:  # times of other parameters tell nothing
        return ""
    targets, variants = parameters.get("targets", []), parameters.get("variants", get_args(Variant))
    seconds = read_seconds(CHECKOUT / LOGS)
    stages = [one for one in select(read_graph(CHECKOUT), targets, items=variants) if one.name != GIVEN]
    if not all(stage.name in seconds for stage in stages):
        return ""
    whole = sum(seconds[stage.name] for stage in stages) / stages_at_once()
    return f" On this machine about {clock(whole)}, if all of it is stale."


def main() -> None:
    """Serves the deployments until it is ended: ``python -m flows.deploy serve``."""
    if sys.argv[1:] != ["serve"]:
        sys.exit("usage: python -m flows.deploy serve")
    if not PREFECT_API_URL.value():
        # Prefect would start one of its own, open to whoever reaches its port.
        print(
            "m2m: PREFECT_API_URL is not set; expected the address of a Prefect server's API such as "
            "http://127.0.0.1:4200/api (make up starts a server, and serves the flows)",
            file=sys.stderr,
        )
        sys.exit(2)
    serve(*deployments(), limit=RUNS_AT_ONCE)


if __name__ == "__main__":
    main()
