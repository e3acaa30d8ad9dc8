"""Image sets in shards on disk, verified as they are read.

A shard is a WebDataset tar, which the `webdataset` library and every tool that knows the format read. A set is the
members ``{id}.json``, ``{id}.000.png`` …, and ``{id}.latents.npy`` where latents are kept, in this order. The same sets
give the same bytes. Pictures that a model drew say so themselves, wherever they go. Reading trusts nothing: members are
iterated, never extracted, and have to be just these.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from weakref import finalize

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m2m.errors import UserError
from m2m.files import file_digest, new_file
from m2m.manifest import SET_ID, ShardEntry, Split, shard_key
from m2m.photos import drawn_by_a_model

MAX_MEMBER = 64 << 20
"""Bytes of the largest member that is read."""
MAX_SIDE = 4096
"""Pixels of the longest side of an image that is decoded."""
MAX_PIXELS = 1 << 30
"""Of all images of a set: 999 of 1024 x 1024."""

_MEMBER = re.compile(rf"(?P<id>{SET_ID})\.(?P<part>json|\d{{3}}\.png|latents\.npy)")
_COMPRESSION = 3  # of zlib: a third of the time of the usual 6 for a few per cent more bytes
_LATENTS = np.dtype("<f4"), np.dtype("<f2")
_PNG_HEADER = struct.Struct(">8sI4sII")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Images that show one caption."""

    id: str
    caption: str
    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)"""
    latents: npt.NDArray[np.float32] | None = None
    """(N, 4, h, w), scaled: as the U-Net takes them. Of float16 they are stored so, and read as float32."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, by name: lists with one entry an image, such as seeds, steps or poses."""
    generator: str | None = None
    """SHA-256 of the model's folder that drew the images; their files then say so of themselves."""
    first_image: int = 0
    """Which image of its set the first of these is: not 0 where they are added to a set that lies in another shard."""

    @property
    def count(self) -> int:
        """N."""
        return len(self.images)

    def pictures(self, places: Iterable[int]) -> npt.NDArray[np.uint8]:
        """Some of its images: (n, H, W, 3)."""
        return self.images[list(places)]

    def cameras(self) -> npt.NDArray[np.float64]:
        """As of a `StoredSet`."""
        return cameras_of(self)


def cameras_of(one: ImageSet | StoredSet) -> npt.NDArray[np.float64]:
    """World-to-camera matrices (N, 3, 4), from the extras' ``poses``.

    Raises:
        UserError: the set has none, or they are not that.
    """
    try:
        cameras = np.array(one.extras["poses"], dtype=np.float64)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"set {one.id} has no poses; views need a camera for each image") from error
    if cameras.shape != (one.count, 3, 4) or not np.isfinite(cameras).all():
        raise UserError(f"set {one.id}: its poses are not {one.count} finite matrices of 3 x 4")
    return cameras


def write_shard(sets: Iterable[ImageSet], path: Path, split: Split) -> ShardEntry:
    """Writes sets in order as one tar, whole or not at all; gives its entry in a manifest.

    Raises:
        UserError: the disk refuses.
        ValueError: there is no set, or one has an id that cannot name files.
    """
    ids, first_image = list[str](), 0
    with new_file(path) as draft, tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image_set in sets:
            ids.append(image_set.id)
            first_image = image_set.first_image
            for name, content in _members(image_set):
                if not _MEMBER.fullmatch(name):
                    raise ValueError(f"{name!r} cannot be a member of a shard")
                member = tarfile.TarInfo(name)  # mode 0644, and no time, owner or group: the bytes are the content's
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if not ids:
            raise ValueError("a shard without sets")
    sha256, size, said = file_digest(path), path.stat().st_size, {"first_set": ids[0], "last_set": ids[-1]}
    return ShardEntry(
        key=shard_key(sha256), sha256=sha256, size=size, count=len(ids), split=split, first_image=first_image, **said
    )


Keep: TypeAlias = Callable[[str, Callable[[str], Any]], Any]
"""Of a part's name, and what decodes it: what was decoded."""


def decode_anew(part: str, decode: Callable[[str], Any]) -> Any:
    """Keeps nothing."""
    return decode(part)


class Shard:
    """Where the members of a shard lie in its file: nothing is decoded, or even read, until it is asked for.

    The file stays open, so that it may be removed meanwhile; any number of threads may read.

    Raises:
        UserError: the tar is cut or damaged, or holds members that `write_shard` does not write; names the member.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, dict[str, tuple[int, int]]] = {}
        self.offsets: dict[str, int] = {}
        """By its id where each set begins in the file: who reads on from there reads it."""
        with self.explained():
            self._descriptor = os.open(path, os.O_RDONLY)
            finalize(self, os.close, self._descriptor)
            with os.fdopen(os.dup(self._descriptor), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    self._note(member)
            if not self._members:
                raise ShardError("it holds no set")

    def __iter__(self) -> Iterator[str]:
        """The ids of its sets, in order."""
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def open_set(self, id_: str, keep: Keep = decode_anew) -> StoredSet:
        """One of its sets, of which the description alone is read.

        Args:
            keep: as a `StoredSet` takes it.

        Raises:
            UserError: it is not what describes a set, or does not describe the members that are there.
        """
        with self.explained():
            return StoredSet(self, id_, _about(id_, self._members[id_], self.read(id_, "json")), keep)

    def read(self, id_: str, part: str) -> bytes:
        """A member's content.

        Raises:
            UserError: it cannot be read.
        """
        with self.explained():
            if (place := self._members[id_].get(part)) is None:
                return b""
            content = os.pread(self._descriptor, place[1], place[0])
            if len(content) != place[1]:
                raise ShardError(f"{id_}.{part} is cut")
            return content

    def _note(self, member: tarfile.TarInfo) -> None:
        match = _MEMBER.fullmatch(member.name)
        if not match or not member.isreg() or member.issparse():
            raise ShardError(f"member {member.name!r} does not belong in a shard")
        if member.size > MAX_MEMBER:
            raise ShardError(f"member {member.name} has {member.size} bytes, more than {MAX_MEMBER}")
        parts = self._members.setdefault(match["id"], {})
        # One set comes after the other, as who streams it needs it.
        if match["part"] in parts or next(reversed(self._members)) != match["id"]:
            raise ShardError(f"member {member.name!r} does not belong in a shard")
        parts[match["part"]] = member.offset_data, member.size
        self.offsets.setdefault(match["id"], member.offset)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Says in one line what is wrong, and with which shard."""
        try:
            yield
        except ShardError as error:
            raise UserError(f"shard {self._path}: {error}") from error
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise UserError(f"shard {self._path}: cannot be read ({_one_line(error)})") from error


class StoredSet:
    """A set in a shard: what describes it is known, pictures and latents are decoded when they are asked for.

    Args:
        keep: gives what was decoded of a part before, or has it decoded.
    """

    def __init__(self, shard: Shard, id_: str, about: _About, keep: Keep) -> None:
        self._shard, self._about, self._keep = shard, about, keep
        self.id, self.caption, self.count = id_, about.caption, about.images
        self.extras: Mapping[str, Any] = about.model_extra or {}
        self.generator, self.first_image = about.generator, about.first_image

    def pictures(self, places: Iterable[int]) -> npt.NDArray[np.uint8]:
        """Some of its images: (n, H, W, 3).

        Raises:
            UserError: one cannot be decoded, or they differ in size.
        """
        names = [f"{self.first_image + place:03}.png" for place in places]
        pictures = [self._keep(name, self._picture) for name in names]
        with self._shard.explained():
            if len({picture.shape for picture in pictures}) > 1:
                raise ShardError(f"the images of {self.id} differ in size")
        return np.stack(pictures)

    @property
    def latents_kept(self) -> bool:
        """Whether there are latents."""
        return self._about.latents

    @property
    def latents(self) -> npt.NDArray[np.float32] | None:
        """(N, 4, h, w), scaled; None if there are none. Not to be changed.

        Raises:
            UserError: they are not that.
        """
        return self._keep("latents.npy", self._latents) if self.latents_kept else None

    def cameras(self) -> npt.NDArray[np.float64]:
        """World-to-camera matrices (N, 3, 4), from the extras' ``poses``.

        Raises:
            UserError: the set has none, or they are not that.
        """
        return cameras_of(self)

    def _picture(self, part: str) -> npt.NDArray[np.uint8]:
        with self._shard.explained():
            return _decode_image(f"{self.id}.{part}", self._shard.read(self.id, part), most=MAX_PIXELS // self.count)

    def _latents(self, part: str) -> npt.NDArray[np.float32]:
        with self._shard.explained():
            latents = _decode_latents(f"{self.id}.{part}", self._shard.read(self.id, part))
            if len(latents) != self.count:
                raise ShardError(f"{self.id} has {self.count} images and the latents of {len(latents)}")
        return latents

    def whole(self) -> ImageSet:
        """All of it."""
        names = ("id", "caption", "latents", "extras", "generator", "first_image")
        return ImageSet(images=self.pictures(range(self.count)), **{name: getattr(self, name) for name in names})


def read_shard(path: Path) -> Iterator[ImageSet]:
    """The sets of a shard, one after the other.

    Raises:
        UserError: the tar is cut or damaged, or holds anything that `write_shard` does not write; names the member.
    """
    shard = Shard(path)
    return (shard.open_set(id_).whole() for id_ in shard)


class ShardError(Exception):
    """What is wrong with a shard."""


class _About(BaseModel):
    """The JSON of a set."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str
    caption: str
    images: Annotated[int, Field(ge=1, le=999)]
    latents: bool
    generator: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    first_image: Annotated[int, Field(ge=0, le=999)] = 0


def _members(image_set: ImageSet) -> Iterator[tuple[str, bytes]]:
    about = _About(
        id=image_set.id,
        caption=image_set.caption,
        images=len(image_set.images),
        latents=image_set.latents is not None,
        generator=image_set.generator,
        first_image=image_set.first_image,
        **image_set.extras,
    )
    content = about.model_dump(exclude={name for name in ("generator", "first_image") if not getattr(about, name)})
    yield f"{image_set.id}.json", json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    for place, image in enumerate(image_set.images):
        file, mark, index = io.BytesIO(), None, image_set.first_image + place
        if image_set.generator:
            of_this = {name.removesuffix("s"): values[place] for name, values in image_set.extras.items()}
            note = {"set": image_set.id, "image": index, "model": image_set.generator, **of_this}
            mark = drawn_by_a_model(note)
        Image.fromarray(image).save(file, "PNG", compress_level=_COMPRESSION, pnginfo=mark)
        yield f"{image_set.id}.{index:03}.png", file.getvalue()
    if image_set.latents is not None:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(image_set.latents), allow_pickle=False)
        yield f"{image_set.id}.latents.npy", file.getvalue()


def _about(id_: str, parts: Collection[str], content: bytes) -> _About:
    """What describes a set that has these parts."""
    try:
        about = _About.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise ShardError(f"{id_}.json is not what describes a set: {_one_line(fault['msg'])}") from error
    names = [f"{about.first_image + index:03}.png" for index in range(about.images)]
    if about.id != id_ or set(parts) != {"json", *names} | ({"latents.npy"} if about.latents else set()):
        described = f"{about.images} images of {_one_line(about.id)} {'with' if about.latents else 'without'} latents"
        found = ", ".join(sorted(set(parts) - {"json"})) or "none"
        raise ShardError(f"{id_}.json describes {described}, but there are {found}")
    return about


def _decode_image(name: str, content: bytes, *, most: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) of a PNG. Its size is read before anything is decoded.

    Args:
        most: pixels that it may have.
    """
    if len(content) < _PNG_HEADER.size or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ShardError(f"{name} is no PNG")
    *_, width, height = _PNG_HEADER.unpack_from(content)
    if max(width, height) > MAX_SIDE or width * height > most:
        raise ShardError(
            f"{name} has {width} x {height} pixels, more than {MAX_SIDE} a side or {MAX_PIXELS} in its set"
        )
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (width, height):  # a second header is what the decoder goes by
                raise ShardError(f"{name} says of itself that it has two sizes")
            if image.mode != "RGB":
                raise ShardError(f"{name} is of mode {image.mode}; expected RGB")
            return np.array(image)
    except ShardError:
        raise
    except Exception as error:  # whatever the decoder stumbles over
        raise ShardError(f"{name} cannot be decoded: {_one_line(error)}") from error


def _decode_latents(name: str, content: bytes) -> npt.NDArray[np.float32]:
    """(N, 4, h, w) of an .npy file. Its header is checked against its length before anything is allocated."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # whatever the parser of its header stumbles over
        raise ShardError(f"{name} is no .npy file: {_one_line(error)}") from error
    if version != (1, 0) or is_fortran or dtype not in _LATENTS or len(shape) != 4 or min(shape) < 1:
        found = _one_line(f"{dtype} of shape {shape}")
        raise ShardError(
            f"{name} holds {found}; expected float32 or float16 of shape (images, channels, height, width)"
        )
    if len(content) - file.tell() != dtype.itemsize * prod(shape):
        raise ShardError(f"{name} is of another length than its shape {shape} asks for")
    latents = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape).astype(np.float32)
    if not np.isfinite(latents).all():
        raise ShardError(f"{name} is not finite")
    return latents


def _one_line(error: object) -> str:
    """What a library says, as part of a line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
