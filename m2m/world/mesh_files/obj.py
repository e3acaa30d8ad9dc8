"""Wavefront OBJ with its materials (MTL): polygons, their textures with options, transparency, colours at corners."""

from __future__ import annotations

import logging
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from m2m.world.mesh_files import (
    GREY,
    LARGEST_TEXT,
    MOST_TRIANGLES,
    WHITE,
    Floats,
    MeshFile,
    Surface,
    Texture,
    fans,
    shown,
)

_log = logging.getLogger(__name__)

_OPTIONS: Final = {
    **dict.fromkeys(("-blendu", "-blendv", "-bm", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"), (1, 1)),
    "-mm": (2, 2),
    **dict.fromkeys(("-o", "-s", "-t"), (1, 3)),
}
"""Options of a texture, and how many words each takes: so many, or of numbers as many as there are within."""


class _Group(NamedTuple):
    """The faces of one material."""

    sizes: array[int]
    corners: array[int]
    uvs: array[int]
    """Of each corner; -1: none."""


def read_obj(source: MeshFile) -> Iterator[Surface]:
    """The polygons; a surface for each material.

    Raises:
        ValueError: the file is damaged, or names a file that is not there.
    """
    text = source.read(largest=LARGEST_TEXT).decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")
    corners, colours, uvs = array("d"), array("d"), array("d")
    groups: defaultdict[str, _Group] = defaultdict(lambda: _Group(array("q"), array("q"), array("q")))
    libraries: list[str] = []
    group: _Group | None = None
    total = 0
    for number, line in enumerate(text.replace("\\\n", " ").split("\n"), start=1):
        words = line.split("#", 1)[0].split() if "#" in line and line.lstrip()[:1] != "m" else line.split()
        if not words:
            continue
        try:
            match words[0]:
                case "v":
                    x, y, z, *more = map(float, words[1:8])
                    corners.extend((x, y, z))
                    if len(more) >= 3:
                        colours.extend(more[-3:])
                case "vt":
                    uvs.append(float(words[1]))
                    uvs.append(float(words[2]) if len(words) > 2 else 0.0)
                case "f" | "fo":
                    if group is None:
                        group = groups[""]
                    for word in words[1:]:
                        corner, _, rest = word.partition("/")
                        uv = rest.partition("/")[0]
                        group.corners.append(_index(corner, len(corners) // 3))
                        group.uvs.append(_index(uv, len(uvs) // 2) if uv else -1)
                    group.sizes.append(len(words) - 1)
                    total += max(len(words) - 3, 0)
                    if total > MOST_TRIANGLES:
                        break
                case "usemtl":
                    group = groups[line.split(maxsplit=1)[1].strip() if len(words) > 1 else ""]
                case "mtllib":
                    libraries.append(line.split(maxsplit=1)[1].strip())
        except (ValueError, IndexError, OverflowError) as error:
            raise ValueError(f"line {number} is {shown(line.strip())} ({error})") from error
    points = np.array(corners, dtype=float).reshape(-1, 3)
    point_colours: Floats | None = None
    if colours:  # no standard has them; bytes are as common as numbers up to 1
        if len(colours) != len(corners):
            raise ValueError("has colours at some corners only")
        rgb = np.array(colours, dtype=float).reshape(-1, 3)
        point_colours = np.column_stack([rgb / 255 if rgb.max() > 1 else rgb, np.ones(len(points))])
    all_uvs = np.array(uvs, dtype=float).reshape(-1, 2)
    materials = cache(lambda: read_materials(source, libraries))  # only if a face needs one
    for name, faces in groups.items():
        if not faces.sizes:
            continue
        material = None
        if name:
            material = materials().get(name)
            if material is None:
                _log.warning("%s: has no material %s; drawn without", source.path, shown(name))
        yield _surface(source, faces, points, point_colours, all_uvs, material)


def _index(word: str, count: int) -> int:
    """From 0, of one that counts from 1, or backward from the newest."""
    index = int(word)
    if not 1 <= abs(index) <= count:
        raise ValueError(f"{shown(word)}, but there are {count} so far")
    return index - 1 if index > 0 else count + index


def _surface(
    source: MeshFile, group: _Group, points: Floats, colours: Floats | None, uvs: Floats, material: Material | None
) -> Surface:
    corner, uv = np.array(group.corners, dtype=np.int64), np.array(group.uvs, dtype=np.int64)
    pairs, unshared = np.unique(corner * (len(uvs) + 1) + uv + 1, return_inverse=True)
    corner, uv = np.divmod(pairs, len(uvs) + 1)
    faces = unshared.reshape(-1)[fans(np.array(group.sizes, dtype=np.int64))]
    surface = Surface(
        points=points[corner],
        faces=faces,
        colour=GREY if colours is None else WHITE,
        point_colours=None if colours is None else colours[corner],
    )
    if material is None:
        return surface
    maps = [each for each in (material.map_colour, material.map_opacity) if each]
    if material.colour is not None or maps:
        surface = replace(surface, colour=(*(material.colour or (1.0, 1.0, 1.0)), 1.0))
    surface = replace(
        surface,
        colour=(*surface.colour[:3], material.opacity),
        alpha_mode="BLEND" if material.opacity < 1 or material.map_opacity else "OPAQUE",
    )
    if not maps:
        return surface
    if (uv == 0).any():
        raise ValueError(f"has faces without texture coordinates below the texture {shown(maps[0].name)}")
    if len({(each.offset, each.scale, each.clamp) for each in maps}) > 1:
        raise ValueError("has a material whose map_Kd and map_d lie differently, which is not supported")
    return replace(
        surface,
        uv=uvs[uv - 1] * maps[0].scale + np.array(maps[0].offset),
        texture=Texture(image=_image(source, material), wrap="CLAMP_TO_EDGE" if maps[0].clamp else "REPEAT"),
    )


def _image(source: MeshFile, material: Material) -> Image.Image:
    """The colours of a material's textures, with what they say of opacity as alpha."""
    colour = opacity = None
    if material.map_colour:
        colour = _levels(source.picture(material.map_colour.name).convert("RGB"), material.map_colour)
    if material.map_opacity:
        picture = source.picture(material.map_opacity.name)
        has_alpha = picture.mode == "RGBA" and material.map_opacity.channel in ("", "m")
        opacity = picture.getchannel("A") if has_alpha else picture.convert("L")
        opacity = _levels(opacity, material.map_opacity)
        colour = colour or Image.new("RGB", opacity.size, "white")
        colour.putalpha(opacity.resize(colour.size))
    assert colour is not None
    source.charge(colour)
    return colour


def _levels(picture: Image.Image, wanted: Map) -> Image.Image:
    base, gain = wanted.levels
    table = np.rint(np.clip(255 * base + gain * np.arange(256), 0, 255)).astype(int).tolist()
    return picture.point(table * len(picture.getbands()))


# Materials


@dataclass(frozen=True)
class Map:
    """A texture as a material names it."""

    name: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    clamp: bool
    levels: tuple[float, ...]
    """What black and the range to white become."""
    channel: str


@dataclass
class Material:
    colour: tuple[float, float, float] | None = None
    opacity: float = 1.0
    map_colour: Map | None = None
    map_opacity: Map | None = None


def read_materials(source: MeshFile, libraries: Sequence[str]) -> dict[str, Material]:
    """Those of all libraries; a line names one file, or several divided by spaces.

    Raises:
        ValueError: a library is damaged or not there.
    """
    materials: dict[str, Material] = {}
    for line in libraries:
        try:
            names = [line] if source.find(line) else []
        except ValueError:
            names = line.split()
        for name in names:
            text = source.read(name, largest=LARGEST_TEXT).decode("utf-8-sig", "surrogateescape")
            for number, statement in enumerate(text.splitlines(), start=1):
                try:
                    _read_statement(statement.strip(), materials)
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{shown(name)}, line {number} is {shown(statement.strip())} ({error})") from error
    return materials


def _read_statement(statement: str, materials: dict[str, Material]) -> None:
    keyword, _, rest = statement.replace("\t", " ").partition(" ")
    rest = rest.strip()
    if keyword == "newmtl":
        materials[rest] = Material()
    if not materials or not rest:
        return
    material = next(reversed(materials.values()))
    match keyword.lower():
        case "kd":
            if rest.split()[0] in ("spectral", "xyz"):
                raise ValueError("only RGB is supported")
            red, *more = (finite(word) for word in rest.split()[:3])
            green, blue = more if len(more) == 2 else (red, red)
            material.colour = (red, green, blue)
        case "d":
            material.opacity = finite(rest.split()[-1])
        case "tr":
            material.opacity = 1 - finite(rest.split()[-1])
        case "map_kd":
            material.map_colour = _map(rest)
        case "map_d":
            material.map_opacity = _map(rest)


def _map(rest: str) -> Map:
    """Options, then a name that may hold spaces."""
    given: dict[str, list[str]] = {}
    while (words := rest.split()) and words[0] in _OPTIONS:
        option, words = words[0], words[1:-1]  # what comes last is of the name
        least, most = _OPTIONS[option]
        values = words[:most] if least == most else list(takewhile(_is_number, words[:most]))
        if len(values) < least:
            raise ValueError(f"expected {'numbers' if least < most else f'{least} words'} and a file after {option}")
        if option == "-t" and any(map(finite, values)):
            raise ValueError("turbulence is not supported")
        given[option] = values
        for word in (option, *values):
            rest = rest[len(word) :].lstrip()
    if rest.startswith("-") and " " in rest:  # an option that nobody knows
        rest = rest.split(maxsplit=1)[1]
    if not rest:
        raise ValueError("names no file")
    defaults = {"-o": (0.0, 0.0), "-s": (1.0, 1.0), "-mm": (0.0, 1.0)}
    offset, scale, levels = (
        (*map(finite, given.get(option, ())), *default)[:2] for option, default in defaults.items()
    )
    clamp, channel = (given.get(option, [""])[0].lower() for option in ("-clamp", "-imfchan"))
    return Map(rest, offset, scale, clamp == "on", levels, channel)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def finite(word: str) -> float:
    number = float(word)
    if not abs(number) < 1e9:
        raise ValueError(f"{shown(word)} is no number that means anything here")
    return number
