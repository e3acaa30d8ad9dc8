"""A folder in the store: its files under their hashes, so that what two folders share is there once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m2m.files import file_digest, new_folder
from m2m.store import Store


@dataclass(frozen=True)
class StoredFolder:
    """A folder that any machine can have that reaches the store."""

    store: Store
    files: tuple[tuple[str, str, int], ...]
    """Of each file its name in the folder, SHA-256 and bytes."""

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()

    @classmethod
    def put(cls, store: Store, folder: Path) -> StoredFolder:
        """Stores what is not there yet.

        Args:
            folder: or a file, which is then the only one of its folder.

        Raises:
            UserError: the store refuses.
        """
        files = []
        for name, path in _files(folder):
            sha256, size = file_digest(path), path.stat().st_size
            if not store.exists(_key(sha256), size):
                store.put(_key(sha256), path, sha256)
            files.append((name, sha256, size))
        return cls(store, tuple(files))

    def get(self, place: Path) -> None:
        """Makes `place` the folder, whole or not at all.

        Raises:
            UserError: the store lacks a file or refuses, or the disk does.
        """
        with new_folder(place) as draft:
            for name, sha256, size in self.files:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.store.get(_key(sha256), sha256, size), draft / name)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    if folder.is_file():
        yield folder.name, folder
        return
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _key(sha256: str) -> str:
    return f"files/{sha256}"
