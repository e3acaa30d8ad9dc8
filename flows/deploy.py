"""Offers the deployments of ``prefect.yaml`` without a work pool: this process runs what is asked for."""

from __future__ import annotations

import sys
from typing import cast

import yaml
from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL

from flows.pipeline import CHECKOUT, pipeline

RUNS_AT_ONCE = 4


def deployments() -> list[RunnerDeployment]:
    """Those of ``prefect.yaml``; a form that does not fit is refused before anything runs."""
    parts = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    made = [
        pipeline.to_deployment(
            name=part["name"],
            description=part["description"],
            parameters=part.get("parameters"),
            schedules=[Cron(each["cron"], active=each["active"]) for each in part.get("schedules", [])],
            enforce_parameter_schema=part["enforce_parameter_schema"],
        )
        for part in parts
    ]
    return cast(list[RunnerDeployment], made)  # coroutines only where an event loop runs


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
