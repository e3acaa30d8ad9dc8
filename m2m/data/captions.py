"""The captions of a dataset: a Parquet file with the columns id, caption and split, one row for each set to draw.

They come from the embedded world, or from Conceptual 12M (Changpinyo et al., 2021) in the files in which it is found.
The published ``cc12m.tsv`` has no header and two columns, address and caption, UTF-8; names of people stand as
``<PERSON>``, which stays as it is. A header is a bad line, and so is an address where the caption should be (Conceptual
Captions has its columns the other way round). Mirrors offer Parquet files with a ``caption`` column. Either is read in
a stream, twice: the first pass counts the bad lines, leaves out captions with a word of a blocklist and ranks the
others, the second takes the chosen ones. Memory holds a few dozen bytes a line, so 12M lines are no burden.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m2m.data.blocklist import Blocklist
from m2m.errors import UserError, made_again
from m2m.files import check_seal, open_regular, sealed_file
from m2m.manifest import SET_ID, Origin, Split
from m2m.params import Cc12mCaptions

ROWS = 1 << 16
"""Captions in memory at a time, and in a row group."""
AGAIN = f"make it again: {made_again('captions')}"

_COLUMNS = ("id", "caption", "split")

CC12M = Origin(
    name="Conceptual 12M",
    licence="the terms of Conceptual 12M (free for any purpose; acknowledge Google LLC as the source of the data)",
)
LONGEST_LINE = 1 << 16
"""Bytes. A longer line is bad: no caption needs it, and a file without line ends must not fill the memory."""

_EXAMPLES = 5
_TSV = "lines of an address, a tab and a caption, in UTF-8"
_PARQUET = "a Parquet file with a column caption"
_OTHER_FORMATS = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"BZh": "a bzip2 file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_ADDRESS = re.compile(rb"(?:https?|ftp)://\S+", re.IGNORECASE)
_HEADERS = {b"caption", b"captions", b"text", b"title", b"description", b"alt", b"alt_text", b"url", b"image_url"}
"""What the second column is called in files that name their columns."""
_BLANKS = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Letters and signs that nobody sees: Hangul's fillers, and Braille without a dot."""


class CaptionRow(NamedTuple):
    """What one set shows, as the file has it: a tuple, since there may be 12 million. Files check them in bulk."""

    id: str
    text: str
    split: Split


def text_problem(text: str) -> str:
    """What keeps files, tokenizers and the system from taking a text; empty if nothing does."""
    if "\0" in text:
        return "holds a NUL"
    return "holds half of a surrogate pair" if any("\ud800" <= letter <= "\udfff" for letter in text) else ""


def write_captions(path: Path, captions: Iterable[CaptionRow], origin: Origin, *, parts: Sequence[int] = ()) -> None:
    """Writes captions in the order given, whole or not at all; the same captions give the same bytes.

    Their digest lies beside them (``.sha256``).

    Args:
        parts: of captions that grew, how many of those for training came at a time, in order.

    Raises:
        UserError: an id cannot name files in a shard, there is no such split, the disk refuses, or the iterable raises
            it.
    """
    metadata = vars(origin) | ({"parts": json.dumps(parts)} if parts else {})
    schema = pa.schema([(name, pa.string()) for name in _COLUMNS], metadata=metadata)
    rows = iter(captions)
    with sealed_file(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        while block := list(islice(rows, ROWS)):
            table = pa.table(list(zip(*block, strict=True)), schema=schema)
            _check(table, f"captions {path}")
            writer.write_table(table)


def read_captions(path: Path, split: Split | None = None) -> Iterator[CaptionRow]:
    """Reads captions, of one split or all, in order, some thousands at a time.

    Raises:
        UserError: there is no such file, it is not what its maker wrote, or it is no caption file.
    """
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=list(_COLUMNS)):
            _check(batch, str(path), AGAIN)
            if split:
                batch = batch.filter(pc.equal(batch.column("split").cast(pa.string()), split))
            rows = zip(*(batch.column(name).to_pylist() for name in _COLUMNS), strict=True)
            yield from map(CaptionRow._make, rows)


def read_origin(path: Path) -> Origin:
    """Where the captions in a file come from.

    Raises:
        UserError: there is no such file, or it is no caption file.
    """
    metadata = _metadata(path)
    try:
        return Origin(name=metadata["name"], licence=metadata["licence"], mix=metadata["mix"])
    except KeyError as error:
        raise UserError(f"{path} does not say where its captions come from; {AGAIN}") from error


def read_parts(path: Path) -> tuple[int, ...]:
    """How many captions for training came at a time, in order; empty if all did. Raises what `read_origin` does."""
    return tuple(json.loads(_metadata(path).get("parts", "[]")))


def _metadata(path: Path) -> dict[str, str]:
    with _open(path) as file:
        return {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}


def survey_captions(path: Path, rows: int | None = None) -> tuple[int, str]:
    """How many captions a file holds, and the SHA-256 of them in order, in hexadecimal: some seconds for 12M.

    It is not that of the file, whose bytes vary with the library that wrote it: of each column the lengths of all texts
    are hashed (int64, little-endian), and the texts one after the other, and then all of these digests.

    Args:
        rows: look at so many, the first ones.

    Raises:
        UserError: there is no such file, it is not what its maker wrote, a row is not filled, an id or split is none.
    """
    count, hashed = 0, [(hashlib.sha256(), hashlib.sha256()) for _ in _COLUMNS]
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=list(_COLUMNS)):
            batch = batch if rows is None else batch.slice(0, rows - count)
            count += batch.num_rows
            _check(batch, str(path), AGAIN)
            for name, (lengths, texts) in zip(_COLUMNS, hashed, strict=True):
                column = batch.column(name).cast(pa.string())
                _, places, content = column.buffers()
                ends = np.frombuffer(places, np.int32)[column.offset : column.offset + len(column) + 1]
                lengths.update(np.diff(ends).astype("<i8").tobytes())
                texts.update(memoryview(content or b"")[ends[0] : ends[-1]])
    whole = hashlib.sha256(b"".join(one.digest() for pair in hashed for one in pair))
    return count, whole.hexdigest()


def _check(rows: pa.Table | pa.RecordBatch, where: str, remedy: str = "") -> None:
    """Raises UserError for a row that is not filled, or whose id or split is none."""
    ids, texts, splits = (rows.column(name).cast(pa.string()) for name in _COLUMNS)
    end = remedy and f"; {remedy}"
    if ids.null_count + texts.null_count + splits.null_count:
        raise UserError(f"{where}: a row is not filled{end}")
    if other := {*pc.unique(splits).to_pylist()} - {*get_args(Split)}:
        raise UserError(f"{where}: split {min(other)!r}; expected one of {', '.join(get_args(Split))}{end}")
    if not pc.all(good := pc.match_substring_regex(ids, rf"\A{SET_ID}\z")).as_py():
        bad = ids[pc.index(good, False).as_py()].as_py()
        raise UserError(f"{where}: id {bad!r}; expected 1 to 64 letters, digits, - or _{end}")


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings, in whatever way."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _open(path: Path) -> AbstractContextManager[pq.ParquetFile]:
    check_seal(path)
    return _parquet(path, _COLUMNS, f"captions {path}", AGAIN)


@contextmanager
def _parquet(path: Path, columns: Sequence[str], named: str, expected: str) -> Iterator[pq.ParquetFile]:
    """Opens a file that has each of the columns once, with strings.

    Args:
        named: what the file is, with its path: how each line begins that says what is wrong with it.
        expected: what to do about it, or what it should be: how they end.
    """
    try:
        with open_regular(path) as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            for column in columns:
                if schema.names.count(column) != 1:
                    raise UserError(f"{named}: not one column {column} among {schema.names}; {expected}")
                if not _is_text(kind := schema.field(column).type):
                    raise UserError(f"{named}: the column {column} holds {kind}, not strings; {expected}")
            yield file
    except UserError:
        raise
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        raise UserError(f"{named} cannot be read: {why}; {expected}") from error
    except Exception as error:  # whatever Arrow raises for what is damaged, and Python for texts that are none
        why = " ".join(str(error).split())
        raise UserError(f"{named} is no Parquet file, or a damaged one ({why}); {expected}") from error


@dataclass(frozen=True)
class BadLine:
    """A line that gives no caption, and why."""

    fault: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which lines become captions of which split."""

    choice: NDArray[np.uint16]
    """(lines,): 0 is not used; else 1 + the index among train, validation, test and the extensions of training."""
    bad: int
    examples: tuple[str, ...]
    """The first bad lines, as ``line 7: no caption``."""
    blocked: int = 0
    """Captions that were left out for a word of the blocklist: no bad lines."""
    mix: str = ""
    """What was done with the source, for the dataset's card."""


def select_lines(params: Cc12mCaptions) -> Selection:
    """Ranks lines by a hash of seed and line number: the first are for the test, then come validation and training.

    Validation leaves out what the test has, word for word, and training what either has: CC12M repeats some captions
    many times.

    Raises:
        UserError: the file is missing or of another format, or has too many bad lines or too few captions.
    """
    blocklist = None if params.blocklist is None else Blocklist.read(Path(params.blocklist))
    good, ranks, texts = bytearray(), array("Q"), array("Q")
    examples, blocked, mix = list[str](), 0, ""
    for number, line in enumerate(read_lines(params), start=1):
        good.append(isinstance(line, str) and not (blocklist and blocklist.blocks(line)))
        if isinstance(line, BadLine):
            if len(examples) < _EXAMPLES:
                examples.append(f"line {number}: {line.fault}")
        elif not good[-1]:
            blocked += 1
        else:
            ranks.append(_hash(f"{params.seed} {number}"))
            texts.append(_hash(line))
    bad = good.count(0) - blocked
    if not good:
        raise UserError(f"captions.path: {params.path} is empty; expected {_expected(params)}")
    if bad > params.max_bad_fraction * len(good):
        raise UserError(
            f"captions.path: {params.path}: {bad} of {len(good)} lines are bad, more than captions.max_bad_fraction "
            f"{params.max_bad_fraction:g} allows; expected {_expected(params)} ({'; '.join(examples)})"
        )
    lines = np.flatnonzero(np.frombuffer(good, np.uint8))
    order = np.argsort(np.frombuffer(ranks, np.uint64), kind="stable")
    words = np.frombuffer(texts, np.uint64)
    chosen: dict[Split, NDArray[np.intp]] = {}
    counts: dict[Split, int] = {"test": params.test, "validation": params.validation}
    for split, count in counts.items():
        chosen[split], order = order[:count], order[count:]
        order = order[~np.isin(words[order], words[chosen[split]])]
    asked = sum(counts.values()) + params.train + sum(params.more)
    if (there := sum(map(len, chosen.values())) + len(order)) < asked:
        without = f", without {blocked} for captions.blocklist" if blocked else ""
        grown = " + captions.more" if params.more else ""
        raise UserError(
            f"captions.path: {params.path} has {there} usable captions{without}; "
            f"captions.train + captions.validation + captions.test{grown} ask for {asked}"
        )
    choice = np.zeros(len(good), np.uint16)
    for split, places in chosen.items():
        choice[lines[places]] = 1 + get_args(Split).index(split)
    for extension, size in enumerate([params.train, *params.more]):
        number = len(get_args(Split)) + extension if extension else 1 + get_args(Split).index("train")
        choice[lines[order[:size]]], order = number, order[size:]
    if blocklist:
        mix = f"without {blocked} of {len(good)} that hold an entry of a list of words (SHA-256 `{blocklist.sha256}`)"
    return Selection(choice=choice, bad=bad, examples=tuple(examples), blocked=blocked, mix=mix)


def selected_captions(params: Cc12mCaptions, selection: Selection) -> Iterator[CaptionRow]:
    """The chosen captions, in the order of the file, behind them those of each extension; ids are line numbers.

    Raises:
        UserError: the file is not the one that `selection` was made from.
    """
    of_choice = [*get_args(Split), *["train"] * len(params.more)]
    extension = np.maximum(selection.choice, len(get_args(Split)))  # 3 is what was there at first, and what is not used
    for part in range(len(get_args(Split)), 1 + len(of_choice)):
        in_part = np.where(extension == part, selection.choice, 0)
        for number, (choice, line) in enumerate(zip(in_part, read_lines(params), strict=False), start=1):
            if not choice:
                continue
            if isinstance(line, BadLine):
                raise UserError(f"captions.path: {params.path} changed while it was read; run the stage again")
            yield CaptionRow(f"cc12m-{number:09}", line, of_choice[choice - 1])


def read_lines(params: Cc12mCaptions) -> Iterator[str | BadLine]:
    """Every line's caption, or what is wrong with it.

    Raises:
        UserError: the file cannot be read, or is of another format.
    """
    path = Path(params.path)
    try:
        yield from _read_tsv(path) if params.format == "tsv" else _read_parquet(path)
    except OSError as error:
        raise UserError(
            f"captions.path: cannot read {path}: {error.strerror or ' '.join(str(error).split())}; "
            f"expected {_expected(params)}"
        ) from error


def _read_tsv(path: Path) -> Iterator[str | BadLine]:
    with open_regular(path) as file:
        start = file.peek(4)
        for magic, name in _OTHER_FORMATS.items():
            if start.startswith(magic):
                raise UserError(f"captions.path: {path} is {name}, captions.format is tsv; expected {_TSV}")
        first, second = file.readline(LONGEST_LINE), file.readline(LONGEST_LINE)
        file.seek(0)
        if _is_header(first, second):
            file.seek(len(first))
            yield BadLine("a header, no caption")
        while line := file.readline(LONGEST_LINE):
            if line.endswith(b"\n") or len(line) < LONGEST_LINE:
                yield _caption_of(line)
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield BadLine(f"longer than {LONGEST_LINE} bytes")


def _is_header(first: bytes, second: bytes) -> bool:
    """Whether the first line of two names the columns. The published file has no such line, but copies of it do."""
    columns = first.rstrip(b"\r\n").split(b"\t")
    if len(columns) != 2 or not first.endswith(b"\n") or _ADDRESS.fullmatch(columns[0]):
        return False
    return columns[1].strip().lower() in _HEADERS or bool(_ADDRESS.fullmatch(second.split(b"\t")[0]))


def _caption_of(line: bytes) -> str | BadLine:
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) != 2:
        return BadLine(f"{len(columns)} columns instead of 2")
    return _text_of(columns[1])


def _text_of(raw: bytes | None) -> str | BadLine:
    stripped = (raw or b"").strip()
    if _ADDRESS.fullmatch(stripped):
        return BadLine("an address where the caption should be")
    try:
        text = stripped.decode().strip()
    except UnicodeDecodeError:
        return BadLine("not UTF-8")
    if not any(unicodedata.category(letter)[0] in "LNPS" and letter not in _BLANKS for letter in text):
        return BadLine("no caption")
    problem = text_problem(text)
    return BadLine(problem) if problem else text


def _read_parquet(path: Path) -> Iterator[str | BadLine]:
    expected = f"captions.format is parquet; expected {_PARQUET}"
    with _parquet(path, ["caption"], f"captions.path: {path}", expected) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=["caption"]):
            # Arrow does not check that its strings are UTF-8: decode them here, where a fault can be named.
            yield from map(_text_of, batch.column("caption").cast(pa.large_binary()).to_pylist())


def _expected(params: Cc12mCaptions) -> str:
    return _TSV if params.format == "tsv" else _PARQUET


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
