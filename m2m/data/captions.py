"""The captions of a dataset: a Parquet file with the columns id, caption and split, one row for each set to draw."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from m2m.errors import UserError, made_again
from m2m.files import check_seal, sealed_file
from m2m.manifest import Split

ROWS = 1 << 16
"""Captions in memory at a time, and in a row group."""

_SET_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_COLUMNS = ("id", "caption", "split")


@dataclass(frozen=True, slots=True)
class Caption:
    """What one set shows.

    Raises:
        UserError: the id cannot name files in a shard, or there is no such split.
    """

    id: str
    text: str
    split: Split

    def __post_init__(self) -> None:
        if not _SET_ID.fullmatch(self.id):
            raise UserError(f"set id {self.id!r}: expected 1 to 64 letters, digits, - or _")
        if self.split not in get_args(Split):
            raise UserError(f"set {self.id}: split {self.split!r}; expected one of {', '.join(get_args(Split))}")


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Where captions come from, and on what terms: for the dataset card."""

    name: str
    licence: str
    mix: str = ""
    """Which kinds of captions there are, and how many of each."""


def write_captions(path: Path, captions: Iterable[Caption], source: CaptionSource) -> None:
    """Writes captions in the order given, whole or not at all; the same captions give the same bytes.

    Their digest lies beside them (``.sha256``).

    Raises:
        UserError: the disk refuses, or the iterable raises it.
    """
    schema = pa.schema([(name, pa.string()) for name in _COLUMNS], metadata=vars(source))
    rows = map(astuple, captions)
    with sealed_file(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        while block := list(islice(rows, ROWS)):
            writer.write_table(pa.table(list(zip(*block, strict=True)), schema=schema))


def read_captions(path: Path) -> Iterator[Caption]:
    """Reads captions in order, some thousands at a time.

    Raises:
        UserError: there is no such file, it is not what its maker wrote, or it is no caption file.
    """
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=list(_COLUMNS)):
            for id_, text, split in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Caption(id_, text, split)


def read_source(path: Path) -> CaptionSource:
    """Where the captions in a file come from.

    Raises:
        UserError: there is no such file, or it is no caption file.
    """
    with _open(path) as file:
        metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
    try:
        return CaptionSource(name=metadata["name"], licence=metadata["licence"], mix=metadata["mix"])
    except KeyError as error:
        raise UserError(
            f"{path} does not say where its captions come from; make it again: {made_again('captions')}"
        ) from error


def captions_digest(captions: Iterable[Caption]) -> str:
    """SHA-256 of captions in order, in hexadecimal. Not of a file, whose bytes vary with the library that wrote it."""
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(json.dumps(astuple(caption)).encode() + b"\n")
    return digest.hexdigest()


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    check_seal(path)
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
                raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(_COLUMNS)}")
            yield file
    except pa.ArrowInvalid as error:
        raise UserError(f"cannot read captions {path}: it is no Parquet file; run the captions stage") from error
    except OSError as error:
        raise UserError(f"cannot read captions {path}: {error.strerror or error}; run the captions stage") from error
