"""The manifest: a small JSON file that is the dataset; the object store holds the bytes that it names."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol, Self, TypeAlias, TypeVar

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from m2m.errors import UserError
from m2m.files import check_seal, folder_digest, sealed_file

Kind = Literal["mis", "nvs", "vpg"]
Split = Literal["train", "validation", "test"]
"""What a set is for: to learn from; to look at, tune and choose by; to measure what was chosen. In order."""
FIELD_OF_VIEW: Final = 49.1
"""Of the cameras of all views (``nvs``), in degrees, across the whole picture, both ways: a 35 mm lens before a 32 mm
sensor, as in Zero123's renderings."""
_LICENCES = {
    "openrail++": "CreativeML Open RAIL++-M",
    "creativeml-openrail-m": "CreativeML Open RAIL-M",
    "apache-2.0": "Apache-2.0",
}
Count = Annotated[int, Field(ge=1, lt=1 << 40)]
SET_ID: Final = r"[A-Za-z0-9_-]{1,64}"
SetId = Annotated[str, Field(pattern=rf"^{SET_ID}$")]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the captions or pictures of a dataset come from, and on what terms: for its manifest and its card."""

    name: str
    licence: str
    mix: str = ""
    """Which kinds of captions there are, and how many of each."""


def stated_licence(folder: Path) -> str:
    """The licence that a model folder's card (``README.md`` with front matter, as on the Hugging Face hub) states."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.match(r"---\n(?:(?!---).*\n)*?license: *(\S+) *\n", text)
    return _LICENCES.get(match[1], match[1]) if match else "not stated"


def weights_of(folder: Path, part: str = "") -> dict[str, JsonValue]:
    """What a manifest says of weights: the licence that their folder's card states, and the SHA-256 of a part or all.

    Raises:
        UserError: there is no such folder, or it holds no file.
    """
    return {"licence": stated_licence(folder), "sha256": folder_digest(folder / part)}


def shard_key(sha256: str) -> str:
    """Where the store keeps the shard with this content."""
    return f"shards/{sha256}.tar"


_STRICT = ConfigDict(extra="forbid", strict=True)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class ShardEntry:
    """One shard: which bytes, and which sets they hold. The paper's dataset has 187,500, so they are kept small."""

    key: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Count
    """Bytes."""
    first_set: SetId
    last_set: SetId
    count: Count
    """Sets; of a shard that adds images, those that all shards of its block have."""
    split: Split
    first_image: Annotated[int, Field(ge=0, le=999)] = 0
    """Which image of its sets comes first in it; not 0 where it adds images to the sets of the shard before it."""

    @model_validator(mode="after")
    def _is_content_addressed(self) -> Self:
        if self.key != shard_key(self.sha256):
            raise ValueError(f"key {self.key!r} does not name the content; expected {shard_key(self.sha256)!r}")
        return self

    @property
    def canonical(self) -> str:
        """Its lines in a manifest. None of its strings has a character that JSON writes in another way."""
        adds = f'   "first_image": {self.first_image},\n' if self.first_image else ""
        return (
            f'  {{\n   "count": {self.count},\n{adds}   "first_set": "{self.first_set}",\n   "key": "{self.key}",\n'
            f'   "last_set": "{self.last_set}",\n   "sha256": "{self.sha256}",\n   "size": {self.size},\n'
            f'   "split": "{self.split}"\n  }}'
        )


Block: TypeAlias = tuple[ShardEntry, ...]
"""A shard and those that add images to its sets, in order; mostly there are none."""


class Manifest(BaseModel):
    """A dataset of image sets: what made it, and its shards in order, those of training, validation and the test.

    It holds no times and no names of machines: runs that made the same data have the same manifest, byte for byte.
    """

    model_config = ConfigDict(frozen=True, **_STRICT)

    schema_version: Literal[1]
    kind: Kind
    made_by: dict[str, JsonValue]
    """The stage's name and parameters, the digests of what it read, and what was left out or rejected, if anything."""
    images_per_set: Count
    """Those that were added included. Procedures (``vpg``) differ in length: there it is the most in a set."""
    redrawn: Annotated[int, Field(ge=0)]
    """Images that came out bad (not finite, of one colour, in a held-out combination, rejected by the safety checker)
    and were drawn again, each attempt counted."""
    shards: tuple[ShardEntry, ...]

    @model_validator(mode="after")
    def _images_follow_each_other(self) -> Self:
        before = None
        for shard in self.shards:
            if shard.first_image and not (
                before and before.split == shard.split and before.first_image < shard.first_image < self.images_per_set
            ):
                raise ValueError(f"{shard.key} adds images from {shard.first_image} on, but not to the shard before it")
            before = shard
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a manifest.

        Raises:
            UserError: there is none, it is not what its maker wrote, or it does not follow the schema; names the first
                fault.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read manifest {path}: {error.strerror}; run the stage that makes it") from error
        check_seal(path)
        try:
            found = cls.model_validate_json(content)
            assert found._header  # numbers that cannot be written, such as of 5000 digits, are known by it
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(key) if str(key).isprintable() else repr(key) for key in fault["loc"]) or "the file"
            text = " ".join(fault["msg"].split())
            raise UserError(f"{path} is not a valid manifest: {where[:200]}: {text[:200]}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a valid manifest: made_by: {error}") from error
        return found

    def write(self, path: Path) -> None:
        """Writes the canonical JSON, whole or not at all, with its digest beside it (``.sha256``).

        Raises:
            UserError: the disk refuses.
        """
        with sealed_file(path) as draft, draft.open("wb") as file:
            file.writelines(self._pieces())

    @property
    def canonical(self) -> bytes:
        """The manifest as bytes: JSON with sorted keys, indented so that a change shows as a small difference."""
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        yield f'{self._header},\n "shards": ['.encode()
        for number, shard in enumerate(self.shards):
            yield f"{',' if number else ''}\n{shard.canonical}".encode()
        yield b"\n ]\n}\n" if self.shards else b"]\n}\n"

    @property
    def _header(self) -> str:
        """All that stands before the shards, which come last; Python's own JSON is slow when it indents many."""
        header = self.model_dump(mode="json", exclude={"shards"})
        return json.dumps(header, indent=1, sort_keys=True, ensure_ascii=False).removesuffix("\n}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
        return digest.hexdigest()

    def split(self, name: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == name)

    def blocks(self, name: Split) -> Iterator[Block]:
        """The same, each with those that add images to its sets."""
        return grouped(self.split(name))

    def sizes(self, block: Block) -> list[range]:
        """How many images the sets of each shard of a block may have."""
        if len(block) == 1:
            return [self.set_sizes]
        ends = [*(shard.first_image for shard in block[1:]), self.images_per_set]
        return [range(size := end - shard.first_image, size + 1) for shard, end in zip(block, ends, strict=True)]

    @property
    def ordered(self) -> bool:
        """Whether the images of a set have an order: those of a procedure do, not those of MIS; a view has a pose."""
        return self.kind == "vpg"

    @property
    def set_sizes(self) -> range:
        """How many images a set may have."""
        return range(2 if self.kind == "vpg" else self.images_per_set, self.images_per_set + 1)

    @property
    def sets(self) -> dict[str, int]:
        """How many sets each split has."""
        counts: Counter[str] = Counter()
        for *_, last in grouped(self.shards):
            counts[last.split] += last.count
        return dict(counts)


class _Ordered(Protocol):
    """An entry, or whatever else is said of a shard."""

    @property
    def first_image(self) -> int: ...


OfShard = TypeVar("OfShard", bound=_Ordered)


def grouped(shards: Iterable[OfShard]) -> Iterator[tuple[OfShard, ...]]:
    """Shards in a manifest's order, each with those that add images to its sets."""
    block: list[OfShard] = []
    for shard in shards:
        if block and not shard.first_image:
            yield tuple(block)
            block = []
        block.append(shard)
    if block:
        yield tuple(block)
