"""Pictures that took long to draw, kept while an evaluation may still need them: a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from m2m.files import write_atomically

RUN = "run"


def folder_of(work: Path, made_from: Mapping[str, JsonValue]) -> Path:
    """The folder below `work` for pictures made from just these things, so that no others are ever taken for them."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return work / digest[:24]


def run_before(folder: Path) -> str | None:
    """The id of the tracked run of an evaluation of the same things that was killed."""
    note = folder / RUN
    return note.read_text() if note.exists() else None


def note_run(folder: Path, run_id: str) -> None:
    """Leaves the id of the tracked run, should this evaluation be killed."""
    write_atomically(folder / RUN, run_id.encode())


def read_or_draw(path: Path, draw: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The pictures kept at `path`; if there are none, they are drawn and kept.

    Raises:
        UserError: the disk refuses.
    """
    if path.exists():
        kept: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return kept
    pictures = draw()
    buffer = io.BytesIO()
    np.save(buffer, pictures, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    return pictures
