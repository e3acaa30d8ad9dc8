"""A mesh file and what it names beside itself: buffers, materials, textures."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote

import numpy as np
from PIL import Image

from m2m.files import open_regular
from m2m.photos import open_photo

LARGEST_FILE: Final = 2**30
LARGEST_TEXT: Final = 2**28
"""Bytes of a file of numbers in text, which take ten times as much in memory."""
MOST_PIXELS: Final = 2**28
"""Of all textures of a mesh together."""
LEAST_PIXELS: Final = 2**18
"""That each texture counts for, however small: a graphics context holds a thousand."""
LARGEST_SIDE: Final = 2048
"""Pixels of a texture: more would not be seen, and not every graphics driver takes them."""

_ELSEWHERE: Final = ("textures", "../textures", "../materials/textures")
"""Where publishers of meshes put textures that are named as if they lay beside the mesh (the last: Google's scans)."""


class Source:
    """One mesh file, and the bounds on what it may unpack to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels = 0

    def read(self, name: str | None = None, *, largest: int = LARGEST_FILE) -> bytes:
        """The bytes of the mesh file, or of one that it names.

        Raises:
            ValueError: there is no such file, or it is larger than ``largest``.
        """
        path = self.path if name is None else self.find(name)
        with open_regular(path) as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"{shown(path.name)} is larger than {largest >> 20} MiB; give a simpler mesh")
        return content

    def find(self, name: str) -> Path:
        """The regular file that is meant: with ``\\`` or ``/``, percent-encoded or not, in any case; beside the mesh,
        where it says, or where publishers put textures.

        Raises:
            ValueError: there is no such file.
        """
        posix = name.replace("\\", "/")
        for spelt in dict.fromkeys((name, posix, unquote(posix))):
            base = PurePosixPath(spelt).name
            for place in (spelt, base, *(f"{folder}/{base}" for folder in _ELSEWHERE)):
                found = _in_any_case(self.path.parent, place)
                if found is not None:
                    return found
        raise ValueError(f"names the file {shown(name)}, which is not there; put it beside the mesh")

    def picture(self, content: Path | bytes, name: str) -> Image.Image:
        """A texture as 8-bit RGB, or RGBA if it has transparent parts, of a size that a graphics driver takes.

        Raises:
            UserError: it is no picture that can be read.
        """
        picture = open_photo(content, name=f"{self.path}: the texture {shown(name)}")
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # these would be cut off at 255
            numbers = np.asarray(picture, dtype=float)
            full = 65535 if picture.mode != "F" else 1
            picture = Image.fromarray(np.rint(255 * np.clip(numbers / full, 0, 1)).astype(np.uint8))
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
        return picture

    def charge(self, picture: Image.Image) -> None:
        """Counts a texture that is going to be drawn.

        Raises:
            ValueError: all together have too many pixels.
        """
        self._pixels += max(picture.width * picture.height, LEAST_PIXELS)
        if self._pixels > MOST_PIXELS:
            raise ValueError(f"has textures of more than {MOST_PIXELS >> 20} megapixels in all; give smaller ones")


def shown(text: str) -> str:
    """Text out of a file, fit for a line on a terminal."""
    return repr(text if len(text) <= 120 else f"{text[:120]}…")


def _in_any_case(folder: Path, name: str) -> Path | None:
    """The file of this name, else the first that differs in capitals only, in any part of the name."""
    try:
        if (folder / name).is_file():
            return folder / name
        place = folder
        for part in PurePosixPath(name).parts:
            if (place / part).exists():
                place /= part
            else:
                alike = sorted(entry for entry in place.iterdir() if entry.name.casefold() == part.casefold())
                if not alike:
                    return None
                place = alike[0]
        return place if place.is_file() else None
    except (OSError, ValueError):  # too long for a name, a folder of others, no text
        return None
