"""Pictures that took long to draw, kept while an evaluation may still need them: a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from m2m.files import is_intact, sealed_file, write_atomically

RUN = "run"

_log = logging.getLogger(__name__)


def folder_of(work: Path, made_from: Mapping[str, JsonValue]) -> Path:
    """The folder below `work` for pictures made from just these things, so that no others are ever taken for them."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return work / digest[:24]


def run_before(folder: Path) -> str | None:
    """The id of the tracked run of an evaluation of the same things that was killed.

    If there are only pictures of other things, it says that none of them is used.
    """
    if not folder.exists() and any(folder.parent.glob("*/")):
        _log.warning("starts afresh: the pictures in %s are of other parameters, data, models or code", folder.parent)
    note = folder / RUN
    return note.read_text(errors="replace") if note.exists() else None


def note_run(folder: Path, run_id: str) -> None:
    """Leaves the id of the tracked run, should this evaluation be killed."""
    write_atomically(folder / RUN, run_id.encode())


def read_or_draw(path: Path, draw: Callable[[], NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], bool]:
    """The pictures kept at `path`, and whether they were there: if not, or not as they were kept, they are drawn.

    Raises:
        UserError: the disk refuses.
    """
    if is_intact(path):
        return np.load(path, allow_pickle=False), True
    pictures = draw()
    with sealed_file(path) as draft, draft.open("wb") as file:
        np.save(file, pictures, allow_pickle=False)
    return pictures, False
