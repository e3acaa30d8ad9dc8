"""Files and folders that are either whole or not there, and the digests that name their content."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from m2m.errors import FOUNDATION_RESTORED, UserError

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

DIGESTS = "digests.json"
"""In a folder of weights: the SHA-256 of each of its files, written by who made it."""
RESTORE = (
    "restore it from git, or have DVC check its cache and make again what is lost: "
    'chmod -R u+w "$(dvc cache dir)" && dvc repro'
)
"""DVC believes a file of its cache that cannot be written, whatever is in it, and even puts it over a new one."""


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
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder beside `path` to fill; when the block ends without error it becomes `path`, in place of an older.

    It bears the name when all of it is on the disk. A kill leaves at worst a hidden draft, which the next call removes.
    Only between the two renames that replace an older folder is there neither.

    Raises:
        UserError: the disk is full, read-only or out of reach.
    """
    draft, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    make_parent(path)
    with writing(path):
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            for written in (*draft.rglob("*"), draft):
                _flush(written)
            if path.exists():
                path.rename(old)
            draft.rename(path)
            _flush(path.parent)
        finally:
            for leftover in (draft, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Gives a new folder of this call alone, in `parent`, for drafts; it is gone when the block ends.

    Other processes may have theirs of the same name there. What a killed one left of that name is removed: nobody holds
    its lock any more. On a disk that machines share, each looks after its own: of another's locks it may not know.

    Raises:
        UserError: the disk is full, read-only or out of reach.
    """
    named = f"{name}.scratch.{socket.gethostname()}"
    make_parent(parent / named)
    for other in parent.glob(f"{named}.*"):
        with _locked(other) as ours:
            if ours:
                shutil.rmtree(other, ignore_errors=True)
    while True:  # another process may remove the folder before it is locked
        folder = parent / f"{named}.{token_hex(6)}"
        with writing(folder):
            folder.mkdir()
        with _locked(folder) as ours:
            if not ours or not folder.exists():
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the lock of a folder, if nobody else does, until the block or the process ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def sealed_file(path: Path) -> Iterator[Path]:
    """As `new_file`, with the SHA-256 of its content beside it, as ``sha256sum`` writes it (``.sha256``).

    Raises:
        UserError: the disk is full, read-only or out of reach.
    """
    seal = _seal(path)
    with new_file(path) as draft:
        yield draft
        new = f"{file_digest(draft)}  {path.name}\n".encode()
        # Until the draft takes its place, a kill leaves the older content, which must stay believed.
        older = seal.read_bytes().splitlines(keepends=True)[-1:] if seal.is_file() else []
        write_atomically(seal, b"".join([*older, new]))
    write_atomically(seal, new)


def is_intact(path: Path) -> bool:
    """Whether there is a file that `sealed_file` wrote, with the content that it wrote."""
    seal = _seal(path)
    if not path.is_file() or not seal.is_file():
        return False
    return file_digest(path).encode() in [line[:64] for line in seal.read_bytes().splitlines()]


def check_seal(path: Path) -> None:
    """Compares a file with the digest that lies beside it. Where there is none, nobody promised anything.

    Raises:
        UserError: it is not what its maker wrote.
    """
    if path.is_file() and _seal(path).is_file() and not is_intact(path):
        raise UserError(f"{path}: damaged, its SHA-256 is not the one in {_seal(path).name}; {RESTORE}")


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
    except (OSError, SafetensorError) as error:
        # The library has the number only in words: ``No space left on device (os error 28)``.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number not in _REFUSALS:
            raise
        raise UserError(f"cannot write {path}: {_REFUSALS[number]}") from error


def open_regular(path: Path) -> BufferedReader:
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


@contextmanager
def reading_foundation(folder: Path) -> Iterator[None]:
    """Turns whatever a folder of the foundation that is missing or damaged raises into one line for a person.

    Libraries that are given such a folder raise all of these; what is wrong with the data is in the text alone.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{folder}: incomplete or damaged ({reason}); {FOUNDATION_RESTORED}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names (relative, sorted) and contents of all files of a folder, in hexadecimal.

    Hidden files do not count: they are the notes of tools (download caches hold time stamps), not content. Nor does
    ``digests.json``, which tells nothing new.

    Raises:
        UserError: there is no such folder, or it holds no file.
    """
    return listing_digest((name, folder / name) for name in _names(folder))


def write_digests(folder: Path) -> None:
    """Writes ``digests.json``, the SHA-256 of each file of a folder by its name: who reads the folder checks it.

    Raises:
        UserError: there is no such folder, it holds no file, or the disk refuses.
    """
    digests = {name: file_digest(folder / name) for name in _names(folder)}
    write_atomically(folder / DIGESTS, (json.dumps(digests, indent=1) + "\n").encode())


def check_digests(
    folder: Path, *parts: str, remedy: str = f"{RESTORE}; if it was changed on purpose, remove {DIGESTS}"
) -> None:
    """Compares a folder with the digests that its maker wrote. Where there are none, nobody promised anything.

    Args:
        parts: files, or folders with all that is in them, relative; none: all of it.
        remedy: what to do about a file that is not as it was.

    Raises:
        UserError: a file or the list of them is missing or not what its maker wrote; names it, and the remedy.
    """
    list_ = folder / DIGESTS
    if not list_.exists():
        return
    digests = _listed(list_, remedy)
    for part in parts or ("",):
        listed = [name for name in digests if part in ("", name) or name.startswith(f"{part}/")]
        if part and not listed:
            raise UserError(f"{list_}: damaged, it does not list {part}; {remedy}")
        for name in listed:
            path = folder / name
            if path.is_symlink() and not path.exists():
                there = f"a link to {path.readlink()}, which is not there"
                raise UserError(f"{path}: {there}; copy such a folder with its links followed, cp -rL, or {remedy}")
            if not path.is_file():
                raise UserError(f"{path}: missing, but listed in {DIGESTS}; {remedy}")
            if not has_content(path, digests[name]):
                raise UserError(f"{path}: damaged, its SHA-256 is not the one in {DIGESTS}; {remedy}")


def stated_digest(folder: Path) -> str:
    """`folder_digest` by what its maker wrote, without a look at the files; of a folder without such a list their own.

    Raises:
        UserError: there is no such folder, it holds no file, or the list is damaged.
    """
    list_ = folder / DIGESTS
    if not list_.exists():
        return folder_digest(folder)
    text = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(_listed(list_, RESTORE).items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(list_: Path, remedy: str) -> dict[str, object]:
    try:
        with open_regular(list_) as file:
            digests = dict(json.load(file))
        if not all(name.isprintable() for name in digests):
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{list_}: damaged, not a list of digests; {remedy}") from error
    return digests


def has_content(path: Path, sha256: object, size: int | None = None) -> bool:
    """Whether there is a file of this content, and of this length where that is known, which is looked at first."""
    try:
        return size in (None, path.stat().st_size) and path.is_file() and file_digest(path) == sha256
    except OSError:  # what the disk cannot read back is as lost as what it reads back wrong
        return False


def _names(folder: Path) -> list[str]:
    names = sorted(
        name.as_posix()
        for name in (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        if not any(part.startswith(".") for part in name.parts) and name.as_posix() != DIGESTS
    )
    if not names:
        raise UserError(f"{folder}: no such folder, or nothing in it")
    return names


def listing_digest(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names and the contents of their files, in hexadecimal."""
    text = "".join(f"{file_digest(path)}  {name}\n" for name, path in files)
    return hashlib.sha256(text.encode()).hexdigest()


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
