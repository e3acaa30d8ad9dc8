"""Files that are either whole or not there, and the digests that name their content."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from m2m.errors import UserError

_FULL = "the disk is full; free some space, then run the same command again"
_REFUSALS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "the disk is read-only; choose another place, or mount it writable",
    errno.EACCES: "permission denied; choose another place, or change the owner of this one",
    errno.EPERM: "permission denied; choose another place, or change the owner of this one",
    errno.EISDIR: "there is a folder of this name",
    errno.EEXIST: "its folder is a file",
    errno.ENOTDIR: "its folder is a file",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; what stands there when the block ends without error becomes `path`.

    Whoever reads `path` sees the old content or all of the new, also after a power cut; an error leaves nothing behind.

    Raises:
        UserError: the disk is full, read-only or out of reach.
    """
    draft = path.with_name(f".{path.name}.{token_hex(6)}")
    make_parent(path)
    with writing(path):
        try:
            yield draft
            _flush(draft)
            draft.replace(path)
            _flush(path.parent)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def sealed_file(path: Path) -> Iterator[Path]:
    """As `new_file`, with the SHA-256 of its content beside it (``.sha256``), which `is_intact` checks.

    Raises:
        UserError: the disk is full, read-only or out of reach.
    """
    with new_file(path) as draft:
        yield draft
        seal = _seal(path)
        # A kill before the draft takes its place leaves the older content, which must stay believed.
        older = seal.read_bytes().split()[-1:] if seal.is_file() else []
        write_atomically(seal, b"\n".join([*older, file_digest(draft).encode()]) + b"\n")


def is_intact(path: Path) -> bool:
    """Whether there is a file that `sealed_file` wrote, with the content that it wrote."""
    seal = _seal(path)
    return path.is_file() and seal.is_file() and file_digest(path).encode() in seal.read_bytes().split()


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a whole file or nothing.

    Raises:
        UserError: the disk is full, read-only or out of reach.
    """
    with new_file(path) as draft:
        draft.write_bytes(content)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a disk's refusal to write `path` into one line for a person."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise UserError(f"cannot write {path}: {_REFUSALS[error.errno]}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names (relative, sorted) and contents of all files of a folder, in hexadecimal.

    Hidden files do not count: they are the notes of tools (download caches hold time stamps), not content.

    Raises:
        UserError: there is no such folder, or it holds no file.
    """
    names = sorted(
        name.as_posix()
        for name in (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        if not any(part.startswith(".") for part in name.parts)
    )
    if not names:
        raise UserError(f"{folder}: no such folder, or nothing in it")
    return listing_digest((name, folder / name) for name in names)


def listing_digest(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names and the contents of their files, in hexadecimal."""
    lines = (f"{file_digest(path)}  {name}\n" for name, path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def make_parent(path: Path) -> None:
    """Makes the folder in which `path` will lie.

    Raises:
        UserError: the disk is full, read-only or out of reach, or the place takes no folder.
    """
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # of a folder that is there, but takes in no other, as /proc
        raise UserError(f"cannot write {path}: no folder can be made there; choose another place") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
