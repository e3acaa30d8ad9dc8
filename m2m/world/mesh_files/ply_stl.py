"""What scanners and printers write: PLY (the Stanford polygon format) and STL.

PLY has polygons with colours at corners or faces, or with textures as MeshLab writes them; STL has triangles alone.
Either is in bytes or in text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2m.world.mesh_files import (
    GREY,
    LARGEST_TEXT,
    WHITE,
    Floats,
    Indices,
    MeshFile,
    Surface,
    Texture,
    check_count,
    check_faces,
    fans,
    shown,
)

_TYPES: Final = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
_FORMATS: Final = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_FULL: Final = {"u1": 255.0, "u2": 65535.0, "i4": 255.0, "u4": 255.0}
"""What is one in a colour: integers wider than 16 bits hold what a byte does."""
_HEADER: Final = 84
_TRIANGLE: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX: Final = re.compile(rb"^\s*vertex\s+(\S+)\s+(\S+)\s+(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    """As numpy writes it, without byte order."""
    count: str = ""
    """Of a list: the kind of its length."""


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


@dataclass(frozen=True)
class _Values:
    """What an element's properties hold."""

    scalars: dict[str, Floats]
    lists: dict[str, tuple[Floats, Indices]]
    """All items one after the other, and how many each element has."""
    kinds: Mapping[str, str]


def read_ply(source: MeshFile) -> Iterator[Surface]:
    """The polygons; a surface for each texture.

    Raises:
        ValueError: the file is damaged, or names a texture that is not there.
    """
    content = source.read()
    order, elements, textures, start = _read_header(content)
    if not order and len(content) > LARGEST_TEXT:
        raise ValueError(f"is larger than {LARGEST_TEXT >> 20} MiB of text; save it as binary PLY")
    values = _read_elements(memoryview(content)[start:], order, elements)
    if "vertex" not in values or "face" not in values:
        raise ValueError("holds no faces; give a mesh with a surface")
    corners, polygons = values["vertex"], values["face"]
    points = np.stack([_scalar(corners, axis) for axis in "xyz"], axis=1)
    listed = polygons.lists.get("vertex_indices") or polygons.lists.get("vertex_index")
    if listed is None:
        raise ValueError("has faces without a list vertex_indices")
    places = fans(listed[1])  # (m, 3)
    of_face = np.repeat(np.arange(len(listed[1])), np.maximum(listed[1] - 2, 0))  # (m,)
    faces = listed[0].astype(np.int64)[places]
    check_faces(faces, len(points))

    uv = _uv(corners)
    if "texcoord" in polygons.lists:  # a pair at each corner of each face: no two faces share a corner then
        pairs, sizes = polygons.lists["texcoord"]
        if not np.array_equal(sizes, 2 * listed[1]):
            raise ValueError("has faces whose texcoord does not hold two numbers a corner")
        uv = pairs.reshape(-1, 2)[places].reshape(-1, 2)
        unshared = faces.reshape(-1)
        faces = np.arange(len(unshared)).reshape(-1, 3)
    else:
        unshared = np.arange(len(points))
    point_colours = _colours(corners)
    face_colours = _colours(polygons)
    if textures and uv is None:
        raise ValueError(f"names the texture {shown(textures[0])}, but has no texture coordinates")
    whole = Surface(
        points=points[unshared],
        faces=faces,
        colour=GREY if point_colours is None and face_colours is None and not textures else WHITE,
        point_colours=None if point_colours is None else point_colours[unshared],
        face_colours=None if face_colours is None else face_colours[of_face],
        alpha_mode="BLEND",
    )
    if not textures:
        yield whole
        return
    number = polygons.scalars.get("texnumber", np.zeros(len(listed[1])))[of_face]
    if not np.isin(number, np.arange(len(textures))).all():
        raise ValueError(f"has faces with a texnumber beyond its {len(textures)} textures")
    for index, name in enumerate(textures):
        chosen = number == index
        if chosen.any():
            image = source.picture(name)
            source.charge(image)
            yield Surface(
                points=whole.points,
                faces=faces[chosen],
                point_colours=whole.point_colours,
                face_colours=None if whole.face_colours is None else whole.face_colours[chosen],
                texture=Texture(image=image),
                uv=uv,
                alpha_mode="BLEND",
            )


def _scalar(values: _Values, name: str) -> Floats:
    if name not in values.scalars:
        raise ValueError(f"has corners without {name}")
    return values.scalars[name]


def _uv(values: _Values) -> Floats | None:
    for pair in (("texture_u", "texture_v"), ("u", "v"), ("s", "t")):
        if all(name in values.scalars for name in pair):
            return np.stack([values.scalars[name] for name in pair], axis=1)
    return None


def _colours(values: _Values) -> Floats | None:
    """(n, 4), or nothing if there are none."""
    shares = {name: numbers / _FULL.get(values.kinds[name], 1.0) for name, numbers in values.scalars.items()}
    for prefix in ("", "diffuse_"):
        names = [f"{prefix}{channel}" for channel in ("red", "green", "blue")]
        if all(name in shares for name in names):
            rgb = [shares[name] for name in names]
            return np.stack([*rgb, shares.get("alpha", np.ones_like(rgb[0]))], axis=1)
    return None


def _read_header(content: bytes) -> tuple[str, list[_Element], list[str], int]:
    """The byte order ("" for text), the elements, the textures' names, and where the values begin."""
    order: str | None = None
    elements: list[_Element] = []
    textures: list[str] = []
    start = 0
    for number in range(10_000):
        end = content.find(b"\n", start)
        if end < 0:
            break
        line = content[start:end].decode("utf-8", "surrogateescape").strip()
        start = end + 1
        match line.split():
            case ["ply"] if number == 0:
                pass
            case _ if number == 0:
                break
            case ["format", name, "1.0"] if name in _FORMATS:
                order = _FORMATS[name]
            case ["comment", "TextureFile", *_]:
                textures.append(line.split("TextureFile", 1)[1].strip())
            case ["comment" | "obj_info", *_] | []:
                pass
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 12:
                elements.append(_Element(name, int(count)))
            case ["property", kind, name] if kind in _TYPES and elements:
                elements[-1].properties.append(_Property(name, _TYPES[kind]))
            case ["property", "list", count, kind, name] if {count, kind} <= _TYPES.keys() and elements:
                if _TYPES[count][0] == "f":
                    raise ValueError(f"line {number + 1}: the length of a list is a {count}")
                elements[-1].properties.append(_Property(name, _TYPES[kind], _TYPES[count]))
            case ["end_header"] if order is not None:
                for element in elements:
                    if len({each.name for each in element.properties}) < len(element.properties):
                        raise ValueError(f"the element {shown(element.name)} has a property twice")
                if len({element.name for element in elements}) < len(elements):
                    raise ValueError("has an element twice")
                return order, elements, textures, start
            case _:
                raise ValueError(f"line {number + 1} of its header is {shown(line)}; that is not PLY 1.0")
    raise ValueError("is no PLY: its header has no end")


def _read_elements(content: memoryview, order: str, elements: Sequence[_Element]) -> dict[str, _Values]:
    """All of them; what is text is read as if it were in bytes, every number a double."""
    if not order:
        content = np.array(bytes(content).split(), dtype=float).view(np.uint8).data

    def kind(name: str) -> np.dtype[Any]:
        return np.dtype(order + name) if order else np.dtype(float)

    values: dict[str, _Values] = {}
    at = 0
    for element in elements:
        smallest = sum(kind(each.count or each.kind).itemsize for each in element.properties)
        if smallest * element.count > len(content) - at:
            raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
        items: dict[str, list[NDArray[Any]]] = {each.name: [np.empty(0)] for each in element.properties}
        sizes: dict[str, list[int]] = {each.name: [] for each in element.properties}
        left = element.count if element.properties else 0
        if left:
            # Nearly always the lists of all rows are of one length, that of the first row's.
            row, _ = _read_row(content, at, kind, element)
            fields: list[Any] = []
            for each in element.properties:
                fields += [(f"# {each.name}", kind(each.count))] if each.count else []
                fields.append((each.name, kind(each.kind), (len(row[each.name]),)))
            uniform = np.dtype(fields)
            if uniform.itemsize * left <= len(content) - at:
                table = np.frombuffer(content, uniform, left, at)
                counted = [each.name for each in element.properties if each.count]
                if all((table[f"# {name}"] == len(row[name])).all() for name in counted):
                    for name, of_first in row.items():
                        items[name].append(table[name].reshape(-1))
                        sizes[name] += [len(of_first)] * left
                    at += uniform.itemsize * left
                    left = 0
        for _ in range(left):
            row, at = _read_row(content, at, kind, element)
            for name, of_row in row.items():
                items[name].append(of_row)
                sizes[name].append(len(of_row))
        joined = {name: np.concatenate(parts).astype(float) for name, parts in items.items()}
        values[element.name] = _Values(
            {each.name: joined[each.name] for each in element.properties if not each.count},
            {
                each.name: (joined[each.name], np.array(sizes[each.name], dtype=np.int64))
                for each in element.properties
                if each.count
            },
            {each.name: each.kind for each in element.properties},
        )
    return values


def _read_row(
    content: memoryview, at: int, kind: Callable[[str], np.dtype[Any]], element: _Element
) -> tuple[dict[str, NDArray[Any]], int]:
    """The values of the element that begins at a byte, and the byte after it."""
    row: dict[str, NDArray[Any]] = {}

    def take(name: str, size: int) -> NDArray[Any]:
        nonlocal at
        start, at = at, at + size * kind(name).itemsize
        if at > len(content):
            raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
        return np.frombuffer(content[start:at], kind(name))

    for each in element.properties:
        size = take(each.count, 1)[0] if each.count else 1
        if not 0 <= size < 2**31 or size % 1:
            raise ValueError(f"has a list of {size} items in {shown(element.name)}")
        row[each.name] = take(each.kind, int(size))
    return row, at


def read_stl(source: MeshFile) -> Iterator[Surface]:
    """The triangles in grey: the format has no colours that programs agree on.

    Raises:
        ValueError: the file is damaged.
    """
    content = source.read()
    announced = int.from_bytes(content[80:_HEADER], "little")
    if len(content) == _HEADER + announced * _TRIANGLE.itemsize:  # some that begin with "solid" are in bytes
        corners = np.frombuffer(content, _TRIANGLE, offset=_HEADER)["corners"].reshape(-1, 3).astype(float)
    elif content.lstrip()[:5].lower() == b"solid":
        if len(content) > LARGEST_TEXT:
            raise ValueError(f"is larger than {LARGEST_TEXT >> 20} MiB of text; save it as binary STL")
        named = content.lower()
        corners = np.array(_VERTEX.findall(named), dtype=float).reshape(-1, 3)
        if len(corners) != named.count(b"vertex") or len(corners) != 3 * named.count(b"endloop"):
            raise ValueError("has lines that are no corners, or facets that are not of three")
    else:
        raise ValueError(f"is no STL: announces {announced} triangles in {len(content)} bytes")
    check_count(len(corners) // 3)
    points, faces = np.unique(corners, axis=0, return_inverse=True)  # neighbours share corners, or each would be flat
    yield Surface(points=points, faces=faces.reshape(-1, 3), colour=GREY)
