"""Where a run comes from, as tags of each MLflow run: code, stage, DVC experiment, Prefect flow run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from m2m.settings import Caller, Revision

COMMIT, DIRTY = "mlflow.source.git.commit", "git.dirty"
STAGE, EXPERIMENT = "dvc.stage", "dvc.experiment"
FLOW_RUN, FLOW_RUN_URL = "prefect.flow_run", "prefect.flow_run_url"
PARENT = "mlflow.parentRunId"
"""MLflow shows the run below that one, in the lists of either's experiment."""


def origin_tags(caller: Caller, code: Revision) -> dict[str, str]:
    """The tags of every run that this process records."""
    tags = {
        COMMIT: code.commit,
        DIRTY: str(code.dirty).lower(),
        EXPERIMENT: caller.experiment,
        FLOW_RUN: caller.flow_run,
        FLOW_RUN_URL: caller.flow_run_url,
        PARENT: caller.parent_run,
    }
    return {name: value for name, value in tags.items() if value}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The tags, read back; each is empty where there is none."""

    commit: str
    dirty: bool
    stage: str
    experiment: str
    flow_run: str
    flow_run_url: str

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Self:
        return cls(
            commit=tags.get(COMMIT, ""),
            dirty=tags.get(DIRTY) == "true",
            stage=tags.get(STAGE, ""),
            experiment=tags.get(EXPERIMENT, ""),
            flow_run=tags.get(FLOW_RUN, ""),
            flow_run_url=tags.get(FLOW_RUN_URL, ""),
        )
