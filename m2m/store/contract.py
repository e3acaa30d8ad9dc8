"""What every store promises."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """Objects are written once and never changed: a key contains the SHA-256 of its content.

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

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
