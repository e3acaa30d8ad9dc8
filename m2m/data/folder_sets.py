"""What the readers of both tasks share: which set is for what, and what it is called in a shard."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from m2m.manifest import Split
from m2m.seeds import derive

_SET_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def split_of(name: str, *, seed: int, test_share: float) -> Split:
    """The split of a set, by a hash of its name: it stays, whatever other sets there are."""
    return "test" if derive(seed, "split", name) < test_share * 2**63 else "train"


def shard_id(name: str) -> str:
    """`name` where it can name files in a shard; else what is left of it, with a hash that keeps it apart."""
    if _SET_ID.fullmatch(name):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:51]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def fingerprint(paths: Sequence[Path]) -> JsonValue:
    """Changes when one of the files does: sizes and times, which cost no reading."""
    found: list[JsonValue] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # the reader will name it
            found.append([path.name])
        else:
            found.append([path.name, status.st_size, status.st_mtime_ns])
    return found
