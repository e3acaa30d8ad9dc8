"""A store in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from secrets import token_hex

from m2m.errors import MADE_AGAIN, UserError
from m2m.files import file_digest, new_file, write_atomically


class LocalStore:
    """Keeps each object as a file named by its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def uri(self) -> str:
        return str(self._folder)

    def check(self) -> None:
        probe = self._folder / f".check-{token_hex(6)}"
        write_atomically(probe, b"")
        probe.unlink()

    def exists(self, key: str, size: int) -> bool:
        path = self._folder / key
        return path.is_file() and path.stat().st_size == size

    def put(self, key: str, path: Path, sha256: str) -> None:
        if self._is_intact(key, sha256, path.stat().st_size):
            return
        with new_file(self._folder / key) as draft:
            shutil.copyfile(path, draft)
            if file_digest(draft) != sha256:
                raise UserError(f"{path}: its content is not what was promised for {key}; the disk may be failing")

    def get(self, key: str, sha256: str, size: int) -> Path:
        for _ in range(2):
            if self._is_intact(key, sha256, size):
                return self._folder / key
        if not (self._folder / key).is_file():
            raise UserError(f"{key} is not in the store {self.uri}; {MADE_AGAIN}")
        raise UserError(f"{key} in the store {self.uri} is damaged; delete it and {MADE_AGAIN}")

    def download(self, key: str, path: Path) -> None:
        if not (self._folder / key).is_file():
            raise UserError(f"{key} is not in the store {self.uri}; {MADE_AGAIN}")
        with new_file(path) as draft:
            shutil.copyfile(self._folder / key, draft)

    def delete(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)

    def _is_intact(self, key: str, sha256: str, size: int) -> bool:
        try:
            return self.exists(key, size) and file_digest(self._folder / key) == sha256
        except OSError:  # what the disk cannot read back is as lost as what it reads back wrong
            return False
