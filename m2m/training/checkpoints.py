"""Where training runs are kept between kills: in the store, so that any process on any machine goes on from there.

A checkpoint is one object, whose name says how many images were seen and what its content is. So there is a whole one
or none, and who reads it checks it, as everything that the store holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from m2m.errors import OutsideError, UserError
from m2m.files import file_digest, scratch_folder, write_atomically, writing
from m2m.store import Store
from m2m.training.state import TrainState

TRACKED = "tracked-as."
"""Begins the name of an object that holds the key by which the tracker goes on with the same run."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: at any moment there is a good one, once there was one.

    They lie below a digest of what determines the run, so a checkpoint of other parameters, data or code is never
    loaded, nor is it removed: that run may be under way, in another process.
    """

    store: Store
    name: str
    """Of the stage, and of what it trains."""
    run: str
    work: Path
    """Where a checkpoint lies until the store has it."""

    @classmethod
    def of(cls, store: Store, name: str, determined_by: Mapping[str, Any], *, work: Path) -> Self:
        """Those of the run that is determined by JSON-like values: parameters, digests and the kind of device."""
        canonical = json.dumps(determined_by, sort_keys=True, separators=(",", ":"))
        return cls(store, name, hashlib.sha256(canonical.encode()).hexdigest()[:16], work)

    def latest(self) -> Path | None:
        """A file with the newest checkpoint, if there is any.

        Raises:
            UserError: it is damaged, or the store refuses.
        """
        if not (kept := self._kept()):
            return None
        _, sha256, size = kept[-1].rpartition("/")[2].split(".")
        try:
            return self.store.get(kept[-1], sha256, int(size))
        except OutsideError:
            raise
        except UserError as error:
            text = f"{kept[-1]} in the store {self.store.uri} is damaged"
            raise UserError(f"{text}; delete it to train from the start") from error

    def of_other_runs(self) -> list[str]:
        """What names the runs of other parameters, data or code that were not finished."""
        keys = (key for key, _ in self.store.objects(f"checkpoints/{self.name}/"))
        return sorted({key.split("/")[2] for key in keys} - {self.run})

    def save(self, state: TrainState) -> None:
        """Stores the state; only when all of it is there, older checkpoints are removed.

        Raises:
            UserError: the disk or the store refuses; the older checkpoint stays.
        """
        with scratch_folder(self.work, self.name) as scratch:
            draft = scratch / "checkpoint"
            with writing(draft):
                state.save(draft)
            sha256 = file_digest(draft)
            new = f"{self._folder}{state.images_seen:012}.{sha256}.{draft.stat().st_size}"
            self.store.put(new, draft, sha256)
        for key in self._kept():
            if key < new:
                self.store.remove(key)

    @property
    def tracking_key(self) -> str | None:
        """`Run.id` of the run so far."""
        names = [key.removeprefix(self._folder) for key, _ in self.store.objects(self._folder)]
        keys = [name.removeprefix(TRACKED) for name in names if name.startswith(TRACKED)]
        return bytes.fromhex(keys[0]).decode() if keys else None

    def keep_tracking_key(self, key: str) -> None:
        """Lets the run go on under the same key after a kill, from its very start."""
        new = f"{self._folder}{TRACKED}{key.encode().hex()}"
        with scratch_folder(self.work, self.name) as scratch:
            draft = scratch / "key"
            write_atomically(draft, key.encode())
            self.store.put(new, draft, file_digest(draft))
        for other, _ in [*self.store.objects(self._folder)]:
            if other.startswith(f"{self._folder}{TRACKED}") and other != new:
                self.store.remove(other)

    def clear(self) -> None:
        """Removes all of it: the run has handed over what it made."""
        for key, _ in [*self.store.objects(self._folder)]:
            self.store.remove(key)

    @property
    def _folder(self) -> str:
        return f"checkpoints/{self.name}/{self.run}/"

    def _kept(self) -> list[str]:
        """The keys of the checkpoints, the newest last."""
        keys = (key for key, _ in self.store.objects(self._folder))
        return sorted(key for key in keys if key.removeprefix(self._folder)[0].isdigit())
