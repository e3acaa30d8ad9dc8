"""The object store: immutable bytes under keys that name their content, in a local folder or in S3."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Protocol
from urllib.parse import urlsplit

from m2m.errors import MADE_AGAIN, UserError
from m2m.files import file_digest, has_content, new_file, write_atomically

__all__ = ["LocalStore", "Store", "open_store"]


CACHE_BYTES = 64 * 10**9


class Store(Protocol):
    """Objects are written once and never changed: a key contains the SHA-256 of its content.

    A store may be pickled, and used in another process of a machine that has its address and keys.

    Every method raises `UserError`, with one line that says what is wrong and where, when the store does not answer,
    refuses, or has no such object. It is an `OutsideError` where the same call may succeed later: a busy or failing
    server was asked several times. No call lasts longer than a slow network would take. No message holds a secret.
    """

    @property
    def uri(self) -> str:
        """Where it is, as `open_store` takes it."""

    def check(self) -> None:
        """Returns if the store can be reached, written and read; else raises within ten seconds."""

    def exists(self, key: str, size: int) -> bool:
        """Whether an object of this length is there."""

    def put(self, key: str, path: Path, sha256: str) -> None:
        """Stores a file, whole or not at all, and reads it back as a proof. What is already there and right stays."""

    def get(self, key: str, sha256: str, size: int) -> Path:
        """A local file with the verified object: not to be changed. A bad one is fetched once more, then an error."""

    def download(self, key: str, path: Path) -> None:
        """Copies the bytes that the store holds now, good or bad, past any cache, to a file."""

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        """The keys that begin with `prefix`, which ends with ``/``, and how long their objects are."""

    def remove(self, key: str) -> None:
        """Removes an object that nobody needs any more, if it is there."""


class LocalStore:
    """Keeps each object as a file named by its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[type[LocalStore], tuple[Path]]:
        return LocalStore, (self._folder.absolute(),)

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
        path = self._there(key)
        if not any(self._is_intact(key, sha256, size) for _ in range(2)):
            raise UserError(f"{key} in the store {self.uri} is damaged; delete it and {MADE_AGAIN}")
        return path

    def download(self, key: str, path: Path) -> None:
        there = self._there(key)
        with new_file(path) as draft:
            shutil.copyfile(there, draft)

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        for folder, folders, names in os.walk(self._folder / prefix):
            folders.sort()
            for name in sorted(names):
                if not name.startswith("."):  # a draft
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):  # somebody removes it at this moment
                        yield path.relative_to(self._folder).as_posix(), path.stat().st_size

    def remove(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)

    def _there(self, key: str) -> Path:
        path = self._folder / key
        if not path.is_file():
            raise UserError(f"{key} is not in the store {self.uri}; {MADE_AGAIN}")
        return path

    def _is_intact(self, key: str, sha256: str, size: int) -> bool:
        return has_content(self._folder / key, sha256, size)


def open_store(uri: str, *, cache: Path, cache_bytes: int = CACHE_BYTES) -> Store:
    """The store at `uri`: ``s3://bucket/prefix``, or a folder. Asks nothing of it yet: that is `Store.check`.

    Args:
        cache: folder for what is fetched from S3. A local store needs none.
        cache_bytes: about how much of it stays there.

    Raises:
        UserError: the address is of another kind, or S3 is not configured.
    """
    if "://" not in uri:
        return LocalStore(Path(uri))
    address = urlsplit(uri)
    if address.scheme != "s3" or not address.netloc or address.query or address.fragment or "@" in address.netloc:
        raise UserError(
            f"store address of scheme {address.scheme!r} not understood; expected a folder or s3://bucket/prefix"
        )
    from m2m.store.s3 import S3Store  # boto3 takes a while to import

    return S3Store(bucket=address.netloc, prefix=address.path.strip("/"), cache=cache, cache_bytes=cache_bytes)
