"""What may differ between machines and must never change a result beyond rounding: where things are, what computes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from m2m.errors import UserError

TRACKING_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """What started this process, to say so in MLflow; each is empty where there is none."""

    parent_run: str = ""
    """``M2M_PARENT_RUN``: MLflow's id of the flow run's own run."""
    flow_run: str = ""
    """``M2M_FLOW_RUN_ID``: Prefect's id of the flow run."""
    flow_run_url: str = ""
    """``M2M_FLOW_RUN_URL``: its page."""
    experiment: str = ""
    """``DVC_EXP_NAME``: the DVC experiment; DVC sets it, and so does the flow."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """This machine's settings, from the environment; every relative place starts at the main checkout.

    So a run in a git worktree, or in one of DVC's temporary folders, writes to the same store and the same database.
    """

    store: str
    """``M2M_STORE``: a folder (default ``data/store``) or ``s3://bucket/prefix``, with the usual AWS variables."""
    tracking_uri: str
    """``MLFLOW_TRACKING_URI``: default ``sqlite:///mlflow.db``; ``none`` turns tracking off."""
    device: str
    """``M2M_DEVICE``: ``cpu``, ``cuda``, ``cuda:1`` …, or ``auto`` (default): a GPU if there is one."""
    threads: int | None
    """``M2M_THREADS``: CPU threads to compute with; default: torch's own choice, one a core."""
    work: Path
    """Checkpoints, downloads, what waits to be sent: safe to remove between runs, never tracked."""
    caller: Caller = Caller()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Reads the environment; only the command line and the flows call this.

        Raises:
            UserError: a variable holds something that cannot be.
        """
        environment = os.environ if environment is None else environment
        home = main_checkout()
        return cls(
            store=_store(environment.get("M2M_STORE") or "data/store", home),
            tracking_uri=_tracking_uri(environment.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db", home),
            device=_device(environment.get("M2M_DEVICE") or "auto"),
            threads=_threads(environment.get("M2M_THREADS")),
            work=home / "work",
            caller=Caller(
                parent_run=environment.get("M2M_PARENT_RUN", ""),
                flow_run=environment.get("M2M_FLOW_RUN_ID", ""),
                flow_run_url=environment.get("M2M_FLOW_RUN_URL", ""),
                experiment=environment.get("DVC_EXP_NAME", ""),
            ),
        )


def main_checkout(start: Path | None = None) -> Path:
    """The checkout that holds the store and the database: the main one of git's worktrees, no temporary one of DVC's.

    Without git it is `start` (default: the current folder) itself.
    """
    start = (start or Path.cwd()).resolve()
    common = _git("rev-parse", "--path-format=absolute", "--git-common-dir", at=start)
    checkout = Path(common).parent if common else start
    # `dvc exp run --temp` and `--queue` work in clones below .dvc/tmp/exps of the checkout that they were started from.
    for folder in checkout.parents:
        if folder.name == ".dvc" and checkout.is_relative_to(folder / "tmp" / "exps"):
            return main_checkout(folder.parent)
    return checkout


@dataclass(frozen=True)
class Revision:
    """Which code runs."""

    commit: str
    """40 hexadecimal digits, or ``unknown`` outside of git."""
    dirty: bool
    """Whether tracked files differ from the commit; the pipeline's own (``dvc.lock``, metrics) do not count."""

    def __str__(self) -> str:
        return f"{self.commit}-dirty" if self.dirty else self.commit


def revision(start: Path | None = None) -> Revision:
    """The git commit of the current folder's checkout."""
    start = start or Path.cwd()
    commit = _git("rev-parse", "HEAD", at=start)
    if commit is None:
        return Revision("unknown", dirty=False)
    own_results = (":(top,exclude)dvc.lock", ":(top,exclude)metrics")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *own_results, at=start)
    return Revision(commit, dirty=bool(changes))


def saved_experiments(start: Path | None = None) -> set[str]:
    """The names of the DVC experiments that git holds: it keeps each as a reference of its own."""
    references = _git("for-each-ref", "--format=%(refname)", "refs/exps", at=start or Path.cwd())
    return {reference.rpartition("/")[2] for reference in (references or "").split()}


def _git(*arguments: str, at: Path) -> str | None:
    """What git says, or None where there is no git, no repository or no commit."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _store(text: str, home: Path) -> str:
    return text if "://" in text else str(home / Path(text).expanduser())


def _tracking_uri(text: str, home: Path) -> str:
    if text == "none":
        return text
    scheme, _, rest = text.partition("://")
    if not rest.strip("/") or scheme.partition("+")[0] not in TRACKING_SCHEMES:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {without_password(text)!r}; expected sqlite:///file.db, the address of a server "
            "(http://127.0.0.1:5000), or none"
        )
    if scheme == "sqlite" and not rest.startswith("//"):
        return f"sqlite:///{home / rest.removeprefix('/')}"
    return text


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    return re.sub(r"://[^/@]*@", "://…@", uri)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UserError(f"M2M_DEVICE is {text!r}; expected auto, cpu, cuda or cuda:0")
    return text


def _threads(text: str | None) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise UserError(f"M2M_THREADS is {text!r}; expected a number of CPU threads such as 2")
    return int(text)
