"""Folders that are either whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from m2m.files import make_parent, writing


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
            with _refusals_of_safetensors():
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
def _refusals_of_safetensors() -> Iterator[None]:
    """Makes an `OSError` of what the library has only in words: ``No space left on device (os error 28)``."""
    try:
        yield
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), str(error)) from error
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
