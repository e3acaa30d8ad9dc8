"""Where a flow run works: the checkout itself, or a worktree of its own that becomes a named DVC experiment."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.graph import Stage, opened, with_descendants
from m2m.errors import UserError
from m2m.params_file import load_params


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A checkout with its parameters in place."""

    folder: Path
    main: Path
    """The checkout that holds the cache, the store, the database and the experiments."""
    experiment: str | None = None
    """The name under which `save` keeps what was made; None: it stays in the checkout."""

    def find_changed(self, stages: Sequence[str]) -> list[str]:
        """Those that DVC would run, asked once for all of them; what will follow from them is not in it.

        Raises:
            UserError: DVC cannot tell, as when a stage is being run here.
        """
        return list(json.loads(_run(["dvc", "status", "--json", *stages], self.folder)))

    def find_stale(self, stages: Sequence[Stage], forced: Collection[str] = ()) -> set[str]:
        """Those of `stages` that may have to run: what has changed or is forced, and all that depends on it."""
        try:
            changed = self.find_changed([stage.name for stage in stages])
        except UserError:  # a stage is being run here: each is asked for itself, when its turn comes
            return {stage.name for stage in stages}
        return with_descendants(stages, {*changed, *forced})

    def save(self, message: str, stages: Sequence[str]) -> None:
        """Keeps the results of some stages as a DVC experiment of the main checkout.

        Only what is true is kept: parameters, code and results that belong together.

        Raises:
            UserError: something is stale, or DVC refuses.
        """
        if self.experiment is None:
            return
        if stale := self.find_changed(stages):
            raise UserError(f"experiment {self.experiment} is not saved: {', '.join(stale)} is not up to date")
        # Metrics lie in git, not in DVC's cache: new ones are not yet tracked.
        metrics = ["--include-untracked", "metrics"] if (self.folder / "metrics").exists() else []
        # Two at once would write the same git reference.
        with FileLock(self.main / ".dvc" / "tmp" / "m2m-experiments.lock"):
            _run(
                ["dvc", "exp", "save", "--name", self.experiment, "--message", message, *metrics, *stages], self.folder
            )


@contextmanager
def workplace(
    main: Path, *, experiment: str | None, profile: str | None, changes: Mapping[str, Any]
) -> Iterator[Workplace]:
    """The main checkout itself, or for an experiment a worktree of its last commit, removed in the end.

    The worktree shares DVC's cache, and through `m2m.settings` the store and the database. The main checkout's files
    are never touched by an experiment.

    Args:
        profile: a parameter file below ``profiles/`` to start from, for an experiment.
        changes: values by dotted key, for an experiment.

    Raises:
        UserError: the name is taken or none, a value does not fit, the parameter file to start from has values that
            are not committed, or git or DVC refuse.
    """
    if experiment is None:
        yield Workplace(folder=main, main=main)
        return
    _require_free_name(main, experiment)
    folder = main / "work" / "experiments" / experiment
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), blocking=False):
            _remove_worktree(main, folder)  # what a killed run may have left
            _run(["git", "worktree", "add", "--quiet", "--detach", str(folder), "HEAD"], main)
            try:
                _share_cache(main, folder)
                _require_committed(parameter_file(main, profile), parameter_file(folder, profile))
                if profile is not None:
                    shutil.copyfile(parameter_file(folder, profile), folder / "params.yaml")
                _apply(folder / "params.yaml", changes)
                _check_out(folder)
                yield Workplace(folder=folder, main=main, experiment=experiment)
            finally:
                _remove_worktree(main, folder)
    except Timeout as error:
        raise UserError(f"experiment {experiment} is being run already; take another name, or wait") from error


def parameter_file(checkout: Path, profile: str | None) -> Path:
    """The file that a run starts from: the active one, or a profile's."""
    return checkout / ("params.yaml" if profile is None else f"profiles/{profile}.yaml")


def _require_committed(mine: Path, committed: Path) -> None:
    """Refuses to leave out what the person who asks for the run sees in the checkout."""
    if not committed.exists() or load_params(mine) != load_params(committed):
        raise UserError(
            f"{mine} has values that are not committed, and an experiment is made of the last commit; commit it, or "
            "run without a name, a profile and changes"
        )


def _share_cache(main: Path, folder: Path) -> None:
    with opened(main) as repo:
        cache = repo.cache.local_cache_dir
    with opened(folder) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = cache


def _check_out(folder: Path) -> None:
    """Brings what DVC's cache holds of the last commit; the rest is made by the run."""
    logging.getLogger("dvc_data").setLevel(logging.ERROR)  # it warns of each file that is not there
    with opened(folder) as repo:
        repo.checkout(allow_missing=True)


def _remove_worktree(main: Path, folder: Path) -> None:
    if folder.exists():
        _run(["git", "worktree", "remove", "--force", "--force", str(folder)], main)


def _apply(params: Path, changes: Mapping[str, Any]) -> None:
    """Changes the file as ``dvc exp run -S`` does: comments and order stay."""
    if changes:
        from dvc.utils.hydra import apply_overrides

        apply_overrides(params, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    load_params(params)  # refuses what does not fit


def _require_free_name(main: Path, name: str) -> None:
    checked = subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], cwd=main, check=False)
    if checked.returncode or "/" in name:
        raise UserError(f"{name!r} cannot name an experiment; take letters, digits and dashes, such as more-images")
    if name in _run(["git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps"], main).split():
        raise UserError(f"there is an experiment {name} already; take another name, or dvc exp remove {name}")


def _run(command: Sequence[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise UserError(f"{' '.join(command[:3])} failed in {cwd}: {reason.removeprefix('ERROR: ')}")
    return done.stdout
