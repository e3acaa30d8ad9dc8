"""What a run has to say, on disk until the server has it.

Every entry is first a line of a journal; a sender reads the lines in order and notes how far it came. So a server that
is away, a kill at any moment and a normal run are one and the same case: whoever comes next sends the unsent rest.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from filelock import FileLock, Timeout

from m2m.errors import UserError

LINK_FROM = 16 * 2**20
"""Bytes from which a kept file is a hard link: these are weights, too big to copy, and never changed in place."""


@dataclass(frozen=True)
class Header:
    """Which run it is."""

    key: str
    name: str
    experiment: str
    tags: dict[str, str]
    server: str
    """The tracking address, without password: what was meant for one server goes to no other."""
    started: int
    """Milliseconds since 1970."""
    beside: str = ""
    """Of a database in a file, the way to it from the spool: both may be moved, or copied, together."""


@dataclass(frozen=True)
class Entry:
    """One thing to send."""

    kind: str
    values: dict[str, Any]
    end: int
    """Where its line ends in the journal, bytes."""


class Journal:
    """The journal of one run, in a folder of its own; whoever has it open holds its lock."""

    def __init__(self, folder: Path, header: Header, lock: FileLock) -> None:
        self.folder, self.header = folder, header
        self._lock, self._writing = lock, threading.Lock()
        self._lines = (folder / "entries.jsonl").open("ab")
        note = folder / "sent"
        self.sent = int(note.read_text()) if note.exists() else 0

    @classmethod
    def create(cls, spool: Path, header: Header) -> Self:
        """Opens the journal of a run, new or left by a process that ended.

        Raises:
            UserError: a live process has it open.
        """
        folder = spool / header.key
        spool.mkdir(parents=True, exist_ok=True)
        spool.chmod(0o700)  # what a run says may be nobody else's business
        (folder / "files").mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        if lock is None:
            raise UserError(f"run {header.key} is being recorded by another process; wait for it, or stop it")
        _replace(folder / "header.json", json.dumps(asdict(header)))
        entries = folder / "entries.jsonl"
        if entries.exists():  # a kill may have left its last line without its end
            os.truncate(entries, entries.read_bytes().rfind(b"\n") + 1)
        return cls(folder, header, lock)

    @classmethod
    def left_behind(cls, spool: Path, own: Header) -> Iterator[Self]:
        """The journals meant for the server of `own` that no live process has open, oldest first.

        Close or remove each.
        """
        headers = {path.parent: header for path in spool.glob("*/header.json") if (header := _read_header(path))}
        for folder, header in sorted(headers.items(), key=lambda item: item[1].started):
            # Of a database that was moved, the place beside the spool tells that it is the same.
            is_meant = header.server == own.server or (header.beside and header.beside == own.beside)
            lock = _lock(folder) if is_meant else None
            if lock is None:
                continue
            if (folder / "header.json").exists():
                yield cls(folder, header, lock)
            else:  # its owner finished it between the look and the lock
                lock.release()

    def append(self, kind: str, **values: Any) -> int:
        """Adds an entry; returns where its line ends. Any thread may."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        with self._writing:
            self._lines.write(line)
            self._lines.flush()
            return self._lines.tell()

    def pending(self) -> Iterator[Entry]:
        """The entries that are not marked as sent, in order, up to the newest."""
        with (self.folder / "entries.jsonl").open("rb") as lines:
            end = lines.seek(self.sent)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                values = json.loads(line)
                end += len(line)
                yield Entry(values.pop("kind"), values, end)

    @property
    def size(self) -> int:
        """Where the newest entry ends."""
        with self._writing:
            return self._lines.tell()

    @property
    def ended(self) -> bool:
        """Whether the run came to an end of its own."""
        lines = (self.folder / "entries.jsonl").read_bytes().splitlines()
        return bool(lines) and json.loads(lines[-1])["kind"] == "end"

    def mark_sent(self, end: int) -> None:
        """Notes that everything up to `end` has arrived."""
        _replace(self.folder / "sent", str(end))
        self.sent = end

    def keep(self, path: Path) -> str:
        """Keeps a file or folder as it is now; returns its name for `kept`."""
        place = self.place(path.name)
        if path.is_dir():
            shutil.copytree(path, self.kept(place), copy_function=_copy)
        else:
            _copy(str(path), str(self.kept(place)))
        return place

    def place(self, name: str) -> str:
        """A new name for `kept`, whose last part is `name`; nothing is there yet."""
        place = f"{uuid4().hex}/{name}"
        self.kept(place).parent.mkdir()
        return place

    def kept(self, place: str) -> Path:
        """Where something is kept."""
        return self.folder / "files" / place

    def forget(self, place: str) -> None:
        """Removes something kept; it may be gone already."""
        shutil.rmtree(self.kept(place).parent, ignore_errors=True)

    def close(self) -> None:
        """Leaves it for later."""
        self._lines.close()
        self._lock.release()

    def remove(self) -> None:
        """Everything has arrived."""
        (self.folder / "header.json").unlink()
        shutil.rmtree(self.folder)
        self.close()


def _lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / "lock", blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _read_header(path: Path) -> Header | None:
    """None if it is gone, or damaged: one journal that cannot be read keeps no other from being sent."""
    try:
        return Header(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        logging.getLogger("m2m.tracking").warning("tracking: %s is damaged and is not sent: %s", path, error)
        return None


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, but without waiting for the disk: what is sent again after a power cut is recognized."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def _copy(source: str, target: str) -> None:
    if Path(source).stat().st_size >= LINK_FROM:
        with suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
