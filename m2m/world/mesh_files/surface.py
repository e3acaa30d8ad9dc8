"""A surface in one material: what every reader of mesh files gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2m.world.studio import AlphaMode

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]
Wrap: TypeAlias = Literal["REPEAT", "CLAMP_TO_EDGE", "MIRRORED_REPEAT"]
Rgba: TypeAlias = tuple[float, float, float, float]

WHITE: Final[Rgba] = (1.0, 1.0, 1.0, 1.0)
GREY: Final[Rgba] = (190 / 255, 190 / 255, 190 / 255, 1.0)
"""Of what has no colour."""

MOST_TRIANGLES: Final = 10_000_000


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
