"""Files that are either whole or not there, and the digests that name their content."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

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


def open_regular(path: Path) -> BinaryIO:
    """Opens what is to be read, if it is a file on a disk: a FIFO would be waited for, a device may never end.

    Raises:
        OSError: there is no such file, it may not be read, it is of another kind, or the path is none at all.
    """
    try:
        return open(path, "rb", opener=_regular)
    except ValueError as error:  # a NUL, or characters that the system has no bytes for
        raise OSError(errno.EINVAL, "not the name of a file", str(path)) from error


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)


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
    return _listing_digest((name, folder / name) for name in names)


def code_digest(*modules: str) -> str:
    """SHA-256 over the source of modules, and of all in a package, in hexadecimal: it names what the code gives.

    >>> code_digest("m2m.diffusion", "m2m.data.shards")
    """
    files: list[Path] = []
    for module in modules:
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        files += sorted(source.parent.rglob("*.py")) if spec.submodule_search_locations else [source]
    return _listing_digest((file.name, file) for file in files)


def _listing_digest(files: Iterable[tuple[str, Path]]) -> str:
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
