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
from m2m.files import check_seal, open_regular, sealed_file
from m2m.manifest import Split

ROWS = 1 << 16
AGAIN = f"make it again: {made_again('captions')}"
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


def text_problem(text: str) -> str:
    """What keeps files, tokenizers and the system from taking a text; empty if nothing does."""
    if "\0" in text:
        return "holds a NUL"
    return "holds half of a surrogate pair" if any("\ud800" <= letter <= "\udfff" for letter in text) else ""


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
            for row in zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True):
                if None in row:
                    raise UserError(f"{path}: a row is not filled; {AGAIN}")
                yield Caption(*row)


def read_source(path: Path) -> CaptionSource:
    """Where the captions in a file come from.

    Raises:
        UserError: there is no such file, or it is no caption file.
    """
    with _open(path) as file:
        stored = file.schema_arrow.metadata or {}
        metadata = {key.decode(): value.decode() for key, value in stored.items()}
    try:
        return CaptionSource(name=metadata["name"], licence=metadata["licence"], mix=metadata["mix"])
    except KeyError as error:
        raise UserError(f"{path} does not say where its captions come from; {AGAIN}") from error


def captions_digest(captions: Iterable[Caption]) -> str:
    """SHA-256 of captions in order, in hexadecimal. Not of a file, whose bytes vary with the library that wrote it."""
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(json.dumps(astuple(caption)).encode() + b"\n")
    return digest.hexdigest()


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings, in whatever way."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    check_seal(path)
    try:
        with open_regular(path) as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            if missing := [name for name in _COLUMNS if name not in schema.names]:
                raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(_COLUMNS)}")
            if bad := [
                name for name in _COLUMNS if schema.names.count(name) > 1 or not is_text(schema.field(name).type)
            ]:
                raise UserError(f"{path}: expected one column {bad[0]}, of strings; {AGAIN}")
            yield file
    except UserError:
        raise
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        raise UserError(f"cannot read captions {path}: {why}; {AGAIN}") from error
    except Exception as error:  # whatever Arrow raises for what is damaged, and Python for texts that are none
        raise UserError(f"cannot read captions {path}: it is no Parquet file; {AGAIN}") from error
