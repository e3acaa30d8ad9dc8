"""What may differ between machines and must never change a result beyond rounding: where things are, what computes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from m2m.errors import UserError

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""No library calls home: for every process of ours, for the servers and the person's shell."""
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
    engine: str
    """``M2M_ENGINE``: what makes datasets and trains: ``local`` (default), ``ray`` (a cluster on this machine), or the
    address of a cluster of Ray, ``host:6379`` or ``ray://host:10001``."""
    ranks: int | None
    """``M2M_RANKS``: how many processes train together on a cluster, which bits follow, and at least make shards there;
    default: one a GPU, or one."""
    device: str
    """``M2M_DEVICE``: ``cpu``, ``cuda``, ``cuda:1`` …, or ``auto`` (default): a GPU if there is one."""
    threads: int | None
    """``M2M_THREADS``: CPU threads to compute with; default: torch's own choice, one a core."""
    cache_bytes: int
    """``M2M_CACHE_GB``: about how much of what is fetched from S3 stays on this disk, in 1e9 bytes; default 64."""
    work: Path
    """Downloads, drafts, what waits to be sent: never tracked; between runs all but the spool may be removed."""
    weights: Path | None = None
    """``M2M_WEIGHTS``: a folder with published weights, as another machine's ``work/hub``; it is only read."""
    caller: Caller = Caller()

    @property
    def on_other_machines(self) -> bool:
        """Whether the engine is a cluster whose nodes have neither files nor databases of this machine."""
        return self.engine not in ("local", "ray")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, *, checkout: Path | None = None) -> Self:
        """Reads the environment; only what a person starts calls this: the command line, the flows, the servers.

        Args:
            checkout: the folder whose main checkout is meant; default: the current one.

        Raises:
            UserError: a variable holds something that cannot be.
        """
        environment = os.environ if environment is None else environment
        home, store = main_checkout(checkout), environment.get("M2M_STORE") or "data/store"
        device, threads = environment.get("M2M_DEVICE") or "auto", environment.get("M2M_THREADS")
        cache, ranks = environment.get("M2M_CACHE_GB") or "64", environment.get("M2M_RANKS")
        weights = environment.get("M2M_WEIGHTS")
        if threads:
            _checked("M2M_THREADS", threads, r"[1-9]\d{0,3}", "a number of CPU threads such as 2")
        if ranks:
            _checked("M2M_RANKS", ranks, r"[1-9]\d{0,4}", "a number of processes such as 8")
        return cls(
            store=store if "://" in store else str(home / Path(store).expanduser()),
            tracking_uri=_tracking_uri(environment.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db", home),
            engine=_checked(
                "M2M_ENGINE",
                environment.get("M2M_ENGINE") or "local",
                r"local|ray|(ray://)?[\w.-]+:\d{1,5}",
                "local, ray, or an address such as ray://host:10001",
            ),
            ranks=int(ranks) if ranks else None,
            device=_checked("M2M_DEVICE", device, r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:0"),
            threads=int(threads) if threads else None,
            cache_bytes=int(_checked("M2M_CACHE_GB", cache, r"[1-9]\d{0,5}", "gigabytes such as 64")) * 10**9,
            work=home / "work",
            weights=home / Path(weights).expanduser() if weights else None,
            caller=Caller(
                parent_run=environment.get("M2M_PARENT_RUN", ""),
                flow_run=environment.get("M2M_FLOW_RUN_ID", ""),
                flow_run_url=environment.get("M2M_FLOW_RUN_URL", ""),
                experiment=environment.get("DVC_EXP_NAME", ""),
            ),
        )


def main_checkout(start: Path | None = None) -> Path:
    """The checkout that holds the store and the database: the main one of git's worktrees, no temporary one of DVC's.

    Without git it is `start` (default: the current folder) itself. Of a bare repository, which has no main checkout, it
    is the oldest of its worktrees. Of a repository whose git directory lies apart, git does not know the main checkout
    from another worktree: unless that lies inside of the main one, it stands alone.
    """
    start = (start or Path.cwd()).resolve()
    folders = _git("rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", at=start)
    checkout = _main_worktree(start, *map(Path, folders.splitlines())) if folders else start
    # `dvc exp run --temp` and `--queue` work in clones below .dvc/tmp/exps of the checkout that they were started from.
    for folder in checkout.parents:
        if folder.name == ".dvc" and checkout.is_relative_to(folder / "tmp" / "exps"):
            return main_checkout(folder.parent)
    return checkout


def _main_worktree(start: Path, own: Path, common: Path) -> Path:
    """From a folder in a repository, its worktree's own git directory and the one that all its worktrees share."""
    top = _git("rev-parse", "--path-format=absolute", "--show-toplevel", at=start)
    here = Path(top) if top else start
    if _configured("core.bare", common) == "true":
        worktrees = [path for path in _linked_worktrees(common) if path.is_dir()]
        return worktrees[0] if worktrees else here
    if own == common:
        return here if top else common.parent
    if elsewhere := _configured("core.worktree", common):  # a submodule's
        return (common / elsewhere).resolve()
    if common.name == ".git":
        return common.parent
    asked = ("rev-parse", "--path-format=absolute", "--git-common-dir")
    around = [one for one in here.parents if (one / ".git").exists() and _git(*asked, at=one) == str(common)]
    return around[-1] if around else here


def _configured(name: str, git_folder: Path) -> str | None:
    return _git("--git-dir", str(git_folder), "config", "--get", name, at=git_folder)


def _linked_worktrees(common: Path) -> list[Path]:
    """The oldest first: a new one must not become the place of what is there."""
    made = sorted((common / "worktrees").glob("*/commondir"), key=lambda file: (file.stat().st_mtime, file))
    return [(file.parent / (file.parent / "gitdir").read_text().strip()).resolve().parent for file in made]


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
        file, asked, query = rest.partition("?")
        return sqlite_uri(home / unquote(file.removeprefix("/"))) + asked + query
    return text


def sqlite_uri(file: Path) -> str:
    """The address of a database in a file, as SQLAlchemy and MLflow read it, whatever signs its path has."""
    if not re.search(r"[%?#]", str(file)):
        return f"sqlite:///{file}"
    # With the driver named: of an address without it, MLflow makes the folder, and takes the quoted signs as they are.
    return f"sqlite+pysqlite:///{quote(str(file))}"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for other addresses."""
    scheme, _, rest = uri.partition(":///")
    return Path(unquote(rest.partition("?")[0])) if scheme.partition("+")[0] == "sqlite" else None


HARMLESS = ("charset", "database", "dbname", "driver", "host", "mode", "port", "service", "sslmode", "timeout", "uri")
"""What the query of an address may hold and everybody may see."""


def without_password(uri: str) -> str:
    """The address as it may be shown, and written to files that others can read.

    Names and passwords may hold any sign unquoted, ``@`` and ``?`` too: what could be a part of one is left out.

    >>> without_password("postgresql://me:s@cr/t@db/m2m?sslmode=require&password=x")
    'postgresql://…@db/m2m?sslmode=require&…'
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return f"…@{uri.rpartition('@')[2]}" if "@" in uri else uri
    place, asked, query = rest.partition("?")
    if not scheme.startswith("sqlite"):  # a path may hold an @
        if "@" in query and (":" in place or "/" not in place):
            return f"{scheme}://…"  # where the password ends is not to be told
        secret, at, place = place.rpartition("@")
        place = f"…{at}{place}" if secret else place
    parts = [part if part.partition("=")[0] in HARMLESS else "…" for part in query.split("&")]
    return f"{scheme}://{place}{asked}{'&'.join(parts) if query else ''}"


def without_secrets(text: str, uri: str) -> str:
    """A message of somebody who knew the address `uri`, as it may be shown."""
    text = text.replace(uri, without_password(uri))
    _, _, rest = uri.partition("://")
    user, at, _ = rest.rpartition("@")
    values = [part.partition("=")[2] for part in rest.partition("?")[2].split("&") if "=" in part]
    password = "" if not at else user.partition(":")[2] or user  # a token stands alone
    # Who reads the address otherwise may quote a part of one.
    hidden = [part for one in (password, *values) for part in (one, *re.split(r"[@?/#]", one))]
    for secret in sorted(
        {each for one in hidden for each in (one, unquote(one), quote(one, safe=""))}, key=len, reverse=True
    ):
        if len(secret) > 2 and secret not in without_password(uri):
            text = text.replace(secret, "…")
    return re.sub(r"\b[a-z][a-z0-9+.-]*://[^\s'\"]*", lambda found: without_password(found[0]), text)


def _checked(name: str, text: str, pattern: str, expected: str) -> str:
    if not re.fullmatch(pattern, text):
        raise UserError(f"{name} is {text!r}; expected {expected}")
    return text
