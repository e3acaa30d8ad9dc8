"""Where a run's state is kept between kills: at any moment there is one good checkpoint, once there was one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from m2m.errors import UserError
from m2m.files import file_digest, new_folder, write_atomically
from m2m.training.state import FILES, TrainState

SEAL = "seal.json"
"""Holds the SHA-256 of a checkpoint's files; a folder without it is no checkpoint."""
TRACKING = "tracking"
"""Holds the key by which the tracker goes on with the same run."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, each a folder named after the images seen.

    The run's own folder is named after what determines the run, so a checkpoint of other parameters, data or code is
    never loaded, nor is it removed: that run may be under way, in another process.
    """

    folder: Path

    @classmethod
    def of(cls, work: Path, determined_by: Mapping[str, Any]) -> Self:
        """Those of the run that is determined by JSON-like values: parameters, digests and the kind of device."""
        canonical = json.dumps(determined_by, sort_keys=True, separators=(",", ":"))
        return cls(work / hashlib.sha256(canonical.encode()).hexdigest()[:16])

    def latest(self) -> Path | None:
        """The newest checkpoint, if there is any.

        Raises:
            UserError: it is damaged.
        """
        seal = max(self.folder.glob(f"[0-9]*/{SEAL}"), default=None)
        if seal is None:
            return None
        try:
            digests = dict(json.loads(seal.read_bytes()))
            damaged = next((name for name in FILES if file_digest(seal.with_name(name)) != digests.get(name)), None)
        except (OSError, ValueError, TypeError, RecursionError):
            damaged = SEAL
        if damaged:
            raise UserError(
                f"{seal.with_name(damaged)}: damaged, its SHA-256 is not the one in {SEAL}; "
                f"remove {seal.parent} to train from the start"
            )
        return seal.parent

    def of_other_runs(self) -> list[Path]:
        """The folders of other runs that were not finished."""
        return sorted(path for path in self.folder.parent.glob("*/") if path != self.folder)

    def save(self, state: TrainState) -> None:
        """Writes the state; only when all of it is on the disk under its name are older checkpoints removed.

        Raises:
            UserError: the disk refuses; the older checkpoint stays.
        """
        new = self.folder / f"{state.images_seen:012}"
        with new_folder(new) as draft:
            state.save(draft)
            digests = {path.name: file_digest(path) for path in sorted(draft.iterdir())}
            write_atomically(draft / SEAL, json.dumps(digests, indent=1).encode())
        for older in set(self.folder.glob("[0-9]*/")) - {new}:
            (older / SEAL).unlink(missing_ok=True)  # first, so that a kill in the middle leaves no half of a checkpoint
            shutil.rmtree(older)

    @property
    def tracking_key(self) -> str | None:
        """`Run.id` of the run so far."""
        path = self.folder / TRACKING
        return path.read_text(errors="replace") if path.exists() else None

    def keep_tracking_key(self, key: str) -> None:
        """Lets the run go on under the same key after a kill, from its very start."""
        write_atomically(self.folder / TRACKING, key.encode())

    def clear(self) -> None:
        """Removes all of it: the run has handed over what it made."""
        shutil.rmtree(self.folder, ignore_errors=True)
