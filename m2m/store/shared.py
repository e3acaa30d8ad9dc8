"""Files and folders in the store, so that another machine can have them: each file under its hash, whoever has it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from m2m.files import file_digest, new_file, new_folder
from m2m.store import Store


@dataclass(frozen=True)
class Shared:
    """A file, or a folder with all that is in it but hidden files."""

    store: Store
    name: str
    files: tuple[tuple[str, str, int], ...]
    """Of each file its name in the folder, SHA-256 and bytes; of a file alone the name is empty."""

    @classmethod
    def put(cls, store: Store, path: Path) -> Self:
        """Stores what is not there yet.

        Raises:
            UserError: the store refuses.
        """
        files = []
        for name, file in _files(path):
            sha256, size = file_digest(file), file.stat().st_size
            if not store.exists(key_of(sha256), size):
                store.put(key_of(sha256), file, sha256)
            files.append((name, sha256, size))
        return cls(store, path.name, tuple(files))

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()

    def get(self, path: Path) -> None:
        """Makes `path` what it was, whole or not at all.

        Raises:
            UserError: the store lacks a file or refuses, or the disk does.
        """
        if self.files and not self.files[0][0]:
            with new_file(path) as draft:
                self._copy(*self.files[0][1:], draft)
            return
        with new_folder(path) as folder:
            for name, sha256, size in self.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self._copy(sha256, size, folder / name)

    def _copy(self, sha256: str, size: int, path: Path) -> None:
        shutil.copyfile(self.store.get(key_of(sha256), sha256, size), path)


def _files(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        return [("", path)]
    # What a released model shares with the foundation are links.
    inside = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
    named = sorted((file.relative_to(path), file) for file in inside)
    return [(name.as_posix(), file) for name, file in named if not any(part.startswith(".") for part in name.parts)]


def key_of(sha256: str) -> str:
    """Where a file lies in a store that is known by its content alone."""
    return f"files/{sha256}"
