"""The readers of mesh files: what glTF, OBJ, PLY and STL say of a surface's shape and colour.

Each reader is a function of a `MeshFile` that gives `Surface` after `Surface`. What is damaged, missing or not
supported is a `ValueError` of one line; nothing of a file is believed before it is checked, since what draws is C++.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2m.files import open_regular
from m2m.photos import open_photo
from m2m.world.studio import AlphaMode

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]
Wrap: TypeAlias = Literal["REPEAT", "CLAMP_TO_EDGE", "MIRRORED_REPEAT"]
Rgba: TypeAlias = tuple[float, float, float, float]

WHITE: Final[Rgba] = (1.0, 1.0, 1.0, 1.0)
GREY: Final[Rgba] = (190 / 255, 190 / 255, 190 / 255, 1.0)
"""Of what has no colour."""

MOST_TRIANGLES: Final = 10_000_000
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Texture:
    """A picture to lie over a surface."""

    image: Image.Image
    """RGB or RGBA, in display (sRGB) coding."""

    wrap: Wrap = "REPEAT"
    smooth: bool = True
    """Between two texels lie those in between."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Triangles in one material. Colours are RGBA from 0 to 1 in display (sRGB) coding, and are multiplied."""

    points: Floats
    """(n, 3), in the file's axes."""

    faces: Indices
    """(m, 3): which points."""

    colour: Rgba = WHITE
    point_colours: Floats | None = None
    """(n, 4)"""

    face_colours: Floats | None = None
    """(m, 4)"""

    texture: Texture | None = None
    uv: Floats | None = None
    """(n, 2): where in the texture a point lies, (0, 0) its lower left corner; there if a texture is."""

    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: float = 0.5

    def checked(self) -> Surface:
        """The same without the points that no face shows, fit for a library that checks nothing.

        Raises:
            ValueError: a face names a point that is not there, or a number is not finite.
        """
        check_faces(self.faces, len(self.points))
        used, faces = np.unique(self.faces, return_inverse=True)
        surface = replace(
            self,
            points=self.points[used],
            faces=faces.reshape(-1, 3),
            point_colours=None if self.point_colours is None else self.point_colours[used],
            uv=None if self.uv is None else self.uv[used],
        )
        for numbers, name in (
            (surface.points, "a corner"),
            (surface.uv, "a texture coordinate"),
            (surface.point_colours, "a colour"),
            (surface.face_colours, "a colour"),
        ):
            if numbers is not None and not np.isfinite(numbers).all():
                raise ValueError(f"{name} is not finite")
        return surface


def check_faces(faces: Indices, points: int) -> None:
    """Raises:
    ValueError: a face names a point that is not there.
    """
    wrong = np.flatnonzero(((faces < 0) | (faces >= points)).any(axis=1))
    if len(wrong):
        names = ", ".join(map(str, faces[wrong[0]].tolist()))
        raise ValueError(f"face {wrong[0]} names the corners {names}; there are {points}, the first is 0")


def check_count(triangles: int) -> None:
    """Raises:
    ValueError: these are more triangles than can be drawn in bounded memory.
    """
    if triangles > MOST_TRIANGLES:
        raise ValueError(f"has more than {MOST_TRIANGLES} triangles; give a simpler mesh")


def fans(sizes: Indices) -> Indices:
    """Triangles (m, 3) of polygons with so many corners each: places in a list of all corners, one after the other."""
    starts = np.cumsum(sizes) - sizes
    triangles = np.maximum(sizes - 2, 0)
    check_count(int(triangles.sum()))
    first = np.repeat(starts, triangles)
    within = np.arange(len(first)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return np.stack([first, first + within + 1, first + within + 2], axis=1)


def display(linear: Floats) -> Floats:
    """RGBA of linear light in display (sRGB) coding; alpha stays what it is."""
    clipped = np.clip(linear, 0, 1)
    rgb = clipped[:, :3]
    coded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return np.column_stack([coded, clipped[:, 3]])


def _linear(display: Floats) -> Floats:
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


def multiplied(image: Image.Image, factor: Sequence[float], *, opaque: bool) -> Image.Image:
    """A texture times a factor of linear light; the alpha of an opaque one does not count."""
    image = image.convert("RGB" if opaque else "RGBA")
    codes = np.arange(256) / 255
    tables: list[int] = []
    for channel, amount in enumerate(factor[: len(image.getbands())]):
        values = codes * amount if channel == 3 else display(np.outer(_linear(codes) * amount, np.ones(4)))[:, 0]
        tables += np.rint(255 * np.clip(values, 0, 1)).astype(int).tolist()
    return image.point(tables)


class MeshFile:
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

    def picture(self, name: str, content: bytes | None = None) -> Image.Image:
        """A texture as 8-bit RGB, or RGBA if it has transparent parts, of a size that a graphics driver takes.

        Args:
            content: that of the file of this name if it is None.

        Raises:
            UserError: it is no picture that can be read.
        """
        picture = open_photo(
            self.read(name) if content is None else content, name=f"{self.path}: the texture {shown(name)}"
        )
        if picture.mode[0] in "IF":  # these would be cut off at 255
            numbers = np.asarray(picture, dtype=float) / (1 if picture.mode == "F" else 65535)
            picture = Image.fromarray(np.rint(255 * np.clip(numbers, 0, 1)).astype(np.uint8))
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
        place = folder
        for part in PurePosixPath(name).parts:
            if (place / part).exists():
                place /= part
            else:
                place = min(entry for entry in place.iterdir() if entry.name.casefold() == part.casefold())
        return place if place.is_file() else None
    except (OSError, ValueError):  # none is alike; too long for a name, a folder of others, no text
        return None
