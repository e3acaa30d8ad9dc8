"""Where published weights are: in the work folder, in the store, in a folder that somebody filled, or on the hub alone.

A pin names a file by its SHA-256, or the files of a repository by a commit. Which those are, and the SHA-256 of each,
is known when they were fetched and held against the hub's checksums: a note beside them says so, ``COMMIT.json``.
`mirror` puts files and notes into the store, each file under its hash, so that other machines need no hub.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from m2m.errors import UserError, made_again
from m2m.files import DIGESTS, file_digest, has_content, new_file, scratch_folder, write_atomically
from m2m.params import HubFile, HubFoundation, HubSnapshot
from m2m.progress import progress
from m2m.store import Store
from m2m.store.shared import key_of

Pin: TypeAlias = HubSnapshot | HubFile

NOTES = "weights"
"""Begins the keys of the notes in a store; the hash of its content ends each."""
SOURCES = "sources.json"
"""In the foundation's folder: by which pins its folders were fetched."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """The files of a pin: of each its name, SHA-256 and bytes."""

    files: tuple[tuple[str, str, int], ...]
    where: str = ""
    """Where it was read."""

    @classmethod
    def of(cls, folder: Path, names: list[str]) -> Note:
        """What lies in a folder now."""
        return cls(tuple((name, file_digest(folder / name), (folder / name).stat().st_size) for name in sorted(names)))

    @classmethod
    def read(cls, path: Path, *, where: str) -> Note:
        """Raises UserError for what is none, or names files elsewhere."""
        try:
            files = tuple((str(name), str(sha256), int(size)) for name, sha256, size in json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{where}: damaged, not a list of files; remove it") from error
        for name, sha256, _ in files:
            parts = PurePosixPath(name).parts
            if not parts or ".." in parts or parts[0] == "/" or not re.fullmatch("[0-9a-f]{64}", sha256):
                raise UserError(f"{where}: damaged, {name!r} is no name of a file with its SHA-256; remove it")
        return cls(files, where)

    def only(self, names: Collection[str]) -> Note:
        """The same of fewer files."""
        return Note(tuple(file for file in self.files if file[0] in names), self.where)

    def content(self) -> bytes:
        """As it is written."""
        return (json.dumps(self.files, indent=1) + "\n").encode()

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.files]

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.files)


def pins(params: HubFoundation) -> Mapping[str, Pin]:
    """By the names of the foundation's folders."""
    return {
        "stable-diffusion": params.stable_diffusion,
        "stable-diffusion/safety_checker": params.safety_checker,
        "dino": params.dino,
        "clip": params.clip,
        "inception": params.inception,
        "perceptual": params.perceptual,
    }


def folder_of(pin: Pin, at: Path) -> Path:
    """Where the files of a pin lie, in the work folder or in one like it."""
    return at / pin.repo.replace("/", "--") / pin.revision if isinstance(pin, HubSnapshot) else at


def file_of(file: HubFile) -> str:
    """What a pinned file is called there."""
    return f"{file.sha256}.pth"


class Sources:
    """What is asked for a pin's files, one after the other, before the hub is.

    A store that refuses is told in a line, once, and not asked again.

    Args:
        work: folder that they are brought to.
        folder: another machine's work folder, or one like it; it is only read.
    """

    def __init__(self, work: Path, store: Store | None = None, folder: Path | None = None) -> None:
        self.work, self.store, self.folder = work, store, folder

    def note(self, pin: Pin) -> Note | None:
        """Which files a pin has; None if only the hub can tell.

        Raises:
            UserError: a note is damaged.
        """
        if isinstance(pin, HubSnapshot) and (note := kept_note(pin, self.work)):
            return note
        try:
            if self.store is not None and (note := mirrored_note(pin, self.store)):
                if isinstance(pin, HubFile) and [file[:2] for file in note.files] != [(file_of(pin), pin.sha256)]:
                    raise UserError(f"{note.where}: tells of another file than the one that is pinned; remove it")
                return note
        except UserError as error:
            self._give_up(error)
        return None if self.folder is None else kept_note(pin, self.folder)

    def bring(self, pin: Pin, note: Note, *, name: str) -> list[str]:
        """Brings the files of a pin to the work folder, each with the right SHA-256; gives the names of those that are
        in none of the places.

        Args:
            name: what the weights are called, for a person who waits.

        Raises:
            UserError: the disk refuses.
        """
        lacking = []
        with progress(len(note.files), name, unit="files") as advance:
            for file, sha256, size in note.files:
                path = folder_of(pin, self.work) / file
                is_there = has_content(path, sha256, size)
                if not (is_there or self._from_store(path, sha256, size) or self._from_folder(pin, file, path, sha256)):
                    lacking.append(file)
                advance(skipped=is_there)
        return lacking

    def keep(self, pin: HubSnapshot, note: Note) -> None:
        """Writes down what was fetched and verified, beside what else of the same pin was."""
        known = kept_note(pin, self.work)
        others = [file for file in known.files if file[0] not in note.names] if known else []
        write_atomically(_note_beside(pin, self.work), Note(tuple(sorted([*others, *note.files]))).content())

    def without(self, error: UserError) -> UserError:
        """The hub's refusal, and what would make the hub unnecessary."""
        if self.store is None:
            return error
        remedy = "m2m foundation --mirror puts them there from where the hub answers"
        return UserError(f"{error}; nor are they in the store {self.store.uri}: {remedy}")

    def _from_store(self, path: Path, sha256: str, size: int) -> bool:
        key = key_of(sha256)
        try:
            if self.store is None or not self.store.exists(key, size):
                return False
            for _ in range(2):
                self.store.download(key, path)
                if has_content(path, sha256, size):
                    return True
        except UserError as error:
            self._give_up(error)
            return False
        path.unlink()
        _log.warning("%s in the store %s is damaged: m2m foundation --mirror mends it", key, self.store.uri)
        return False

    def _from_folder(self, pin: Pin, file: str, path: Path, sha256: str) -> bool:
        if self.folder is None or not (there := folder_of(pin, self.folder) / file).is_file():
            return False
        with new_file(path) as draft:
            shutil.copyfile(there, draft)
        if has_content(path, sha256):
            return True
        path.unlink()
        _log.warning("%s: its SHA-256 is not %s; remove it, or copy it once more", there, sha256)
        return False

    def _give_up(self, error: UserError) -> None:
        _log.warning("%s; weights are looked for elsewhere", error)
        self.store = None


def kept_note(pin: Pin, at: Path) -> Note | None:
    """The note that lies in a work folder. A pinned file needs none: where it is, its pin says what it should be."""
    if isinstance(pin, HubFile):
        path = at / file_of(pin)
        return Note(((path.name, pin.sha256, path.stat().st_size),), str(path)) if path.is_file() else None
    path = _note_beside(pin, at)
    return Note.read(path, where=str(path)) if path.is_file() else None


def mirrored_note(pin: Pin, store: Store) -> Note | None:
    """The note in a store.

    Raises:
        UserError: there are two, or it is damaged, or the store refuses.
    """
    found = [*store.objects(_prefix(pin))]
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(key for key, _ in found)
        raise UserError(f"{names} in the store {store.uri} tell of different files for one pin; remove the wrong one")
    key, size = found[0]
    sha256 = key.rpartition("/")[2].removesuffix(".json")
    return Note.read(store.get(key, sha256, size), where=f"{key} in the store {store.uri}")


@dataclass(frozen=True)
class Found:
    """Where all files of a pin are, and the SHA-256 of those that lie on this machine."""

    where: str
    files: tuple[tuple[Path, str], ...] = ()


def find(pin: Pin, name: str, *, foundation: Path, sources: Sources) -> Found | None:
    """Where the weights of a pin are first found, without a look at their content; None if only the hub has them.

    Args:
        name: of their folder in the foundation's, which is looked at first.

    Raises:
        UserError: what tells of them is damaged.
    """
    if _read(foundation / SOURCES).get(name) == pin.model_dump():
        folder, _, within = name.partition("/")  # the checker is in Stable Diffusion's
        listed = _read(foundation / folder / DIGESTS).items()
        files = tuple((foundation / folder / file, sha256) for file, sha256 in listed if file.startswith(within))
        return Found(str(foundation), files) if files else None
    for at in (sources.work, sources.folder):
        if at and (note := kept_note(pin, at)):
            there = tuple((folder_of(pin, at) / file, sha256) for file, sha256, _ in note.files)
            if all(path.is_file() for path, _ in there):
                return Found(str(at), there)
    if (store := sources.store) is not None and (note := mirrored_note(pin, store)):
        is_whole = all(store.exists(key_of(sha256), size) for _, sha256, size in note.files)
        return Found(f"the store {store.uri}") if is_whole else None
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; make it again: {made_again('foundation')}") from error


def mirror(params: HubFoundation, *, work: Path, store: Store) -> tuple[int, int]:
    """Puts all that was fetched into a store: what is there and right stays, what is damaged there is mended.

    Returns:
        how many files, and their bytes.

    Raises:
        UserError: the store or the disk refuses, or something was not fetched.
    """
    files = total = 0
    for name, pin in pins(params).items():
        if (note := kept_note(pin, work)) is None:
            raise UserError(f"{name} is not in {work}; fetch it first: m2m foundation")
        with progress(len(note.files), f"mirror {name}", unit="files") as advance:
            for file, sha256, _ in note.files:
                store.put(key_of(sha256), folder_of(pin, work) / file, sha256)
                advance()
        with scratch_folder(work, "note") as scratch:
            draft = scratch / "note"
            write_atomically(draft, note.content())
            sha256 = file_digest(draft)
            store.put(f"{_prefix(pin)}{sha256}.json", draft, sha256)
        files, total = files + len(note.files), total + note.bytes
    return files, total


def _note_beside(pin: HubSnapshot, at: Path) -> Path:
    folder = folder_of(pin, at)
    return folder.with_name(f"{folder.name}.json")


def _prefix(pin: Pin) -> str:
    named = pin.sha256 if isinstance(pin, HubFile) else f"{pin.repo.replace('/', '--')}/{pin.revision}"
    return f"{NOTES}/{named}/"
