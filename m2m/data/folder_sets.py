"""What the readers of both tasks share: which set is for what, and what it is called in a shard."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import JsonValue

from m2m.errors import UserError
from m2m.manifest import Split
from m2m.params import FolderSets
from m2m.seeds import derive

T = TypeVar("T")

_SET_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PURPOSES: Mapping[Split, str] = {"train": "training", "validation": "validation", "test": "the test"}


def split_of(name: str, *, seed: int, validation_share: float, test_share: float) -> Split:
    """The split of a set, by a hash of its name: it stays, whatever other sets there are."""
    place = derive(seed, "split", name) / 2**63
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def divide(
    at_path: Mapping[str, T], at_test_path: Mapping[str, T], params: FolderSets, *, stage: str, bad: Sequence[str] = ()
) -> dict[Split, dict[str, T]]:
    """The sets of each split by name, in order; none is in two.

    Args:
        at_test_path: those of the test where they have a place of their own.
        stage: where its parameters are, for the message.
        bad: what was wrong with others, for the message.

    Raises:
        UserError: a split is left without sets.
    """
    shares = {"validation_share": params.validation_share, "test_share": 0.0 if params.test_path else params.test_share}
    sets: dict[Split, dict[str, T]] = {split: {} for split in get_args(Split)}
    for name, one in at_path.items():
        if name not in at_test_path:
            sets[split_of(name, seed=params.seed, **shares)][name] = one
    sets["test"].update(at_test_path)
    for split, those in sets.items():
        if not those:
            why = bad[0] if bad else f"check {stage}.validation_share and {stage}.test_share"
            raise UserError(f"{stage}.path: {params.path} leaves no sets for {_PURPOSES[split]}; {why}")
    return sets


def shard_id(name: str) -> str:
    """`name` where it can name files in a shard; else what is left of it, with a hash that keeps it apart."""
    if _SET_ID.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:51]}-{digest[:12]}"


def fingerprint(paths: Sequence[Path]) -> JsonValue:
    """Changes when one of the files does: sizes and times, which cost no reading."""
    found: list[JsonValue] = []
    for path in paths:
        try:
            status = path.stat()
        except (OSError, ValueError):  # the reader will name it
            found.append([path.name])
        else:
            found.append([path.name, status.st_size, status.st_mtime_ns])
    return found
