"""Image sets: in shards on disk, verified as they are read, and in the order in which training takes them.

A shard is a WebDataset tar, which the `webdataset` library and every tool that knows the format read. A set is the
members ``{id}.json``, ``{id}.000.png`` …, and ``{id}.latents.npy`` where latents are kept, in this order. The same sets
give the same bytes. Reading trusts nothing: members are iterated, never extracted, and have to be just these.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m2m.errors import UserError
from m2m.files import file_digest, new_file
from m2m.manifest import SET_ID, Manifest, ShardEntry, Split, shard_key
from m2m.seeds import derive
from m2m.store import Store

CACHE_BYTES = 1 << 30
"""Decoded images and latents that `ImageSets` keeps in memory."""
MAX_MEMBER = 64 << 20
"""Bytes of the largest member that is read."""
MAX_SIDE = 4096
"""Pixels of the longest side of an image that is decoded."""
MAX_PIXELS = 1 << 30
"""Of all images of a set: 999 of 1024 x 1024."""

_MEMBER = re.compile(rf"(?P<id>{SET_ID})\.(?P<part>json|\d{{3}}\.png|latents\.npy)")
_COMPRESSION = 3  # of zlib: a third of the time of the usual 6 for a few per cent more bytes
_PNG_HEADER = struct.Struct(">8sI4sII")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Images that show one caption."""

    id: str
    caption: str
    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)"""
    latents: npt.NDArray[np.float32] | None = None
    """(N, 4, h, w), scaled: as the U-Net takes them."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, by name: lists with one entry an image, such as seeds, steps or poses."""

    def cameras(self) -> npt.NDArray[np.float64]:
        """World-to-camera matrices (N, 3, 4), from the extras' ``poses``.

        Raises:
            UserError: the set has none, or they are not that.
        """
        try:
            cameras = np.array(self.extras["poses"], dtype=np.float64)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise UserError(f"set {self.id} has no poses; views need a camera for each image") from error
        if cameras.shape != (len(self.images), 3, 4) or not np.isfinite(cameras).all():
            raise UserError(f"set {self.id}: its poses are not {len(self.images)} finite matrices of 3 x 4")
        return cameras


def write_shard(sets: Iterable[ImageSet], path: Path, split: Split) -> ShardEntry:
    """Writes sets in order as one tar, whole or not at all; gives its entry in a manifest.

    Raises:
        UserError: the disk refuses.
        ValueError: there is no set, or one has an id that cannot name files.
    """
    ids: list[str] = []
    with new_file(path) as draft, tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image_set in sets:
            ids.append(image_set.id)
            for name, content in _members(image_set):
                if not _MEMBER.fullmatch(name):
                    raise ValueError(f"{name!r} cannot be a member of a shard")
                member = tarfile.TarInfo(name)  # mode 0644, and no time, owner or group: the bytes are the content's
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if not ids:
            raise ValueError("a shard without sets")
    sha256, size, sets_range = file_digest(path), path.stat().st_size, {"first_set": ids[0], "last_set": ids[-1]}
    return ShardEntry(key=shard_key(sha256), sha256=sha256, size=size, **sets_range, count=len(ids), split=split)


def read_shard(path: Path) -> Iterator[ImageSet]:
    """The sets of a shard, one after the other.

    Raises:
        UserError: the tar is cut or damaged, or holds anything that `write_shard` does not write; names the member.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            seen: set[str] = set()
            parts: dict[str, bytes] = {}
            current = None
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if not match or not member.isreg() or member.issparse() or member.name in seen:
                    raise _ShardError(f"member {member.name!r} does not belong in a shard")
                if member.size > MAX_MEMBER:
                    raise _ShardError(f"member {member.name} has {member.size} bytes, more than {MAX_MEMBER}")
                seen.add(member.name)
                if match["id"] != current and current is not None:
                    yield _assemble(current, parts)
                    parts = {}
                current = match["id"]
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                parts[match["part"]] = content.read()
            if current is None:
                raise _ShardError("it holds no set")
            yield _assemble(current, parts)
    except _ShardError as error:
        raise UserError(f"shard {path}: {error}") from error
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"shard {path}: cannot be read ({_one_line(error)})") from error


class _ShardError(Exception):
    """What is wrong with a shard."""


class _About(BaseModel):
    """The JSON of a set."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str
    caption: str
    images: Annotated[int, Field(ge=1, le=999)]
    latents: bool


def _members(image_set: ImageSet) -> Iterator[tuple[str, bytes]]:
    about = _About(
        id=image_set.id,
        caption=image_set.caption,
        images=len(image_set.images),
        latents=image_set.latents is not None,
        **image_set.extras,
    )
    yield f"{image_set.id}.json", json.dumps(about.model_dump(), sort_keys=True, ensure_ascii=False).encode()
    for index, image in enumerate(image_set.images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=_COMPRESSION)
        yield f"{image_set.id}.{index:03}.png", file.getvalue()
    if image_set.latents is not None:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(image_set.latents, "<f4"), allow_pickle=False)
        yield f"{image_set.id}.latents.npy", file.getvalue()


def _assemble(id_: str, parts: Mapping[str, bytes]) -> ImageSet:
    """One set from its members' contents, by part of the name."""
    try:
        about = _About.model_validate_json(parts.get("json", b""))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise _ShardError(f"{id_}.json is not what describes a set: {_one_line(fault['msg'])}") from error
    names = [f"{index:03}.png" for index in range(about.images)]
    if about.id != id_ or set(parts) != {"json", *names} | ({"latents.npy"} if about.latents else set()):
        described = f"{about.images} images of {_one_line(about.id)} {'with' if about.latents else 'without'} latents"
        found = ", ".join(sorted(set(parts) - {"json"})) or "none"
        raise _ShardError(f"{id_}.json describes {described}, but there are {found}")
    images: list[npt.NDArray[np.uint8]] = []
    for name in names:
        images.append(_decode_image(f"{id_}.{name}", parts[name], most=MAX_PIXELS // about.images))
        if images[-1].shape != images[0].shape:
            raise _ShardError(f"the images of {id_} differ in size")
    latents = _decode_latents(f"{id_}.latents.npy", parts["latents.npy"]) if about.latents else None
    if latents is not None and len(latents) != len(images):
        raise _ShardError(f"{id_} has {len(images)} images and the latents of {len(latents)}")
    extras = about.model_extra or {}
    return ImageSet(id=id_, caption=about.caption, images=np.stack(images), latents=latents, extras=extras)


def _decode_image(name: str, content: bytes, *, most: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) of a PNG. Its size is read before anything is decoded.

    Args:
        most: pixels that it may have.
    """
    if len(content) < _PNG_HEADER.size or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise _ShardError(f"{name} is no PNG")
    *_, width, height = _PNG_HEADER.unpack_from(content)
    if max(width, height) > MAX_SIDE or width * height > most:
        raise _ShardError(
            f"{name} has {width} x {height} pixels, more than {MAX_SIDE} a side or {MAX_PIXELS} in its set"
        )
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (width, height):  # a second header is what the decoder goes by
                raise _ShardError(f"{name} says of itself that it has two sizes")
            if image.mode != "RGB":
                raise _ShardError(f"{name} is of mode {image.mode}; expected RGB")
            return np.array(image)
    except _ShardError:
        raise
    except Exception as error:  # whatever the decoder stumbles over
        raise _ShardError(f"{name} cannot be decoded: {_one_line(error)}") from error


def _decode_latents(name: str, content: bytes) -> npt.NDArray[np.float32]:
    """(N, 4, h, w) of an .npy file. Its header is checked against its length before anything is allocated."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # whatever the parser of its header stumbles over
        raise _ShardError(f"{name} is no .npy file: {_one_line(error)}") from error
    if version != (1, 0) or is_fortran or dtype != np.dtype("<f4") or len(shape) != 4 or min(shape) < 1:
        found = _one_line(f"{dtype} of shape {shape}")
        raise _ShardError(f"{name} holds {found}; expected float32 of shape (images, channels, height, width)")
    if len(content) - file.tell() != 4 * prod(shape):
        raise _ShardError(f"{name} is of another length than its shape {shape} asks for")
    return np.frombuffer(content, "<f4", offset=file.tell()).reshape(shape).copy()


def _one_line(error: object) -> str:
    """What a library says, as part of a line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


# Reading a dataset


class ImageSets:
    """The sets of one split, in the manifest's order.

    A shard is fetched, verified and decoded when one of its sets is asked for.

    Args:
        cache_bytes: how much of what was decoded stays in memory; the shard that was used last always does.
    """

    def __init__(self, store: Store, manifest: Manifest, split: Split, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._set_sizes = manifest.set_sizes
        self._shards = manifest.split(split)
        self._ends = list(accumulate(shard.count for shard in self._shards))
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, list[ImageSet]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> ImageSet:
        """One set.

        Raises:
            IndexError: there are not so many.
            UserError: its shard is missing or damaged, or does not hold what the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = bisect_right(self._ends, index)
        shard = self._shards[position]
        return self._sets(shard)[index - self._ends[position] + shard.count]

    def _sets(self, shard: ShardEntry) -> list[ImageSet]:
        if shard.key in self._cache:
            self._cache.move_to_end(shard.key)
            return self._cache[shard.key]
        sets = list(read_shard(self._store.get(shard.key, shard.sha256, shard.size)))
        if problems := shard_problems(shard, sets, self._set_sizes):
            raise UserError(f"{shard.key}: {problems[0]}")
        self._cache[shard.key] = sets
        while len(self._cache) > 1 and sum(map(_size, self._cache.values())) > self._cache_bytes:
            self._cache.popitem(last=False)
        return sets


def shard_problems(shard: ShardEntry, sets: Sequence[ImageSet], set_sizes: range) -> list[str]:
    """In what the sets of a shard differ from what the manifest says of it.

    Args:
        set_sizes: how many images a set may have (`Manifest.set_sizes`).
    """
    problems = []
    expected = " to ".join(map(str, sorted({set_sizes[0], set_sizes[-1]})))
    if len(sets) != shard.count:
        problems.append(f"it holds {len(sets)} sets; the manifest says {shard.count}")
    if sets and (sets[0].id, sets[-1].id) != (shard.first_set, shard.last_set):
        problems.append(
            f"it holds the sets {sets[0].id} to {sets[-1].id}; the manifest says {shard.first_set} to {shard.last_set}"
        )
    for image_set in sets:
        if len(image_set.images) not in set_sizes:
            problems.append(
                f"set {image_set.id} has {len(image_set.images)} images; the manifest says {expected} in each set"
            )
        if image_set.latents is not None and not np.isfinite(image_set.latents).all():
            problems.append(f"set {image_set.id} has latents that are not finite")
    return problems


def batch_order(*, seed: int, sets: int, sets_per_step: int, step: int) -> list[tuple[int, int]]:
    """The global batch of optimizer step `step` (from 0): for each set its index, and in which epoch it comes up.

    An epoch takes every set once, in an order of its own; batches go on over its end.

    A pure function, so that any rank at any time, resumed or not, knows any batch.
    """
    batch = []
    for position in range(step * sets_per_step, (step + 1) * sets_per_step):
        epoch, place = divmod(position, sets)
        batch.append((int(_epoch_order(seed, epoch, sets)[place]), epoch))
    return batch


def choose_images(*, seed: int, index: int, epoch: int, images: int, set_size: int, ordered: bool) -> tuple[int, ...]:
    """Which images of a set an epoch trains on, `set_size` of its `images`, or all if it has fewer.

    Each epoch makes another choice: where images have an order a run of them, else any, in random order.
    """
    draws = np.random.default_rng(derive(seed, "images", epoch, index))
    if ordered:
        start = int(draws.integers(max(images - set_size, 0) + 1))
        return tuple(range(start, min(start + set_size, images)))
    return tuple(draws.permutation(images)[:set_size].tolist())


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, sets: int) -> npt.NDArray[np.int64]:
    """The order of the sets in one epoch. (sets,)"""
    return np.random.default_rng(derive(seed, "epoch", epoch)).permutation(sets)


def _size(sets: list[ImageSet]) -> int:
    return sum(s.images.nbytes + (0 if s.latents is None else s.latents.nbytes) for s in sets)
