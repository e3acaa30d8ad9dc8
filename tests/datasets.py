"""What tests train on and measure with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from m2m.store import LocalStore


@dataclass(frozen=True)
class Dataset:
    """A manifest file, and the store that holds its shards."""

    manifest: Path
    store: LocalStore

    def copied(self, folder: Path) -> LocalStore:
        """A store below a folder that holds the same, in which no other test leaves a checkpoint."""
        shutil.copytree(self.store.uri, folder / "store", dirs_exist_ok=True)
        return LocalStore(folder / "store")
