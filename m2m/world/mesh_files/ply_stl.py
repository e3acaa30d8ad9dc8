"""What scanners and printers write: PLY (the Stanford polygon format) and STL.

PLY has polygons with colours at corners or faces, or with textures as MeshLab writes them; STL has triangles alone.
Either is in bytes or in text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, TypeAlias

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


_Element: TypeAlias = tuple[int, dict[str, tuple[str, str]]]
"""How many there are; of each property its kind, as numpy writes it without byte order, and of a list its length's."""
_Lists: TypeAlias = dict[str, tuple[Floats, Indices]]
"""All items one after the other, and how many each element has."""


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
    (corners, _), (polygons, lists) = values["vertex"], values["face"]
    for axis in "xyz":
        if axis not in corners:
            raise ValueError(f"has corners without {axis}")
    points = np.stack([corners[axis] for axis in "xyz"], axis=1)
    polygon_corners = lists.get("vertex_indices") or lists.get("vertex_index")
    if polygon_corners is None:
        raise ValueError("has faces without a list vertex_indices")
    listed, sizes = polygon_corners
    places = fans(sizes)  # (m, 3)
    of_face = np.repeat(np.arange(len(sizes)), np.maximum(sizes - 2, 0))  # (m,)
    faces = listed.astype(np.int64)[places]
    check_faces(faces, len(points))

    unshared, uv = np.arange(len(points)), None
    for pair in (("s", "t"), ("u", "v"), ("texture_u", "texture_v")):
        if corners.keys() >= {*pair}:
            uv = np.stack([corners[name] for name in pair], axis=1)
    if "texcoord" in lists:  # a pair at each corner of each face: no two faces share a corner then
        pairs, numbers = lists["texcoord"]
        if not np.array_equal(numbers, 2 * sizes):
            raise ValueError("has faces whose texcoord does not hold two numbers a corner")
        uv = pairs.reshape(-1, 2)[places].reshape(-1, 2)
        unshared = faces.reshape(-1)
        faces = np.arange(len(unshared)).reshape(-1, 3)
    point_colours = _colours(corners, elements["vertex"])
    face_colours = _colours(polygons, elements["face"])
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
    number = polygons.get("texnumber", np.zeros(len(sizes)))[of_face]
    if not np.isin(number, np.arange(len(textures))).all():
        raise ValueError(f"has faces with a texnumber beyond its {len(textures)} textures")
    for index, name in enumerate(textures):
        chosen = number == index
        if chosen.any():
            image = source.picture(name)
            source.charge(image)
            colours = None if whole.face_colours is None else whole.face_colours[chosen]
            yield replace(whole, faces=faces[chosen], face_colours=colours, texture=Texture(image=image), uv=uv)


def _colours(scalars: dict[str, Floats], element: _Element) -> Floats | None:
    """(n, 4), or nothing if there are none."""
    shares = {name: numbers / _FULL.get(element[1][name][0], 1.0) for name, numbers in scalars.items()}
    for prefix in ("", "diffuse_"):
        names = [f"{prefix}{channel}" for channel in ("red", "green", "blue")]
        if all(name in shares for name in names):
            rgb = [shares[name] for name in names]
            return np.stack([*rgb, shares.get("alpha", np.ones_like(rgb[0]))], axis=1)
    return None


def _read_header(content: bytes) -> tuple[str, dict[str, _Element], list[str], int]:
    """The byte order ("" for text), the elements, the textures' names, and where the values begin."""
    order: str | None = None
    elements: dict[str, _Element] = {}
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
                if name in elements:
                    raise ValueError("has an element twice")
                elements[name] = (int(count), {})
            case ["property", *listed, kind, name] if (
                elements and {kind, *listed[1:]} <= _TYPES.keys() and (len(listed), *listed[:1]) in ((0,), (2, "list"))
            ):
                element = next(reversed(elements))
                length = _TYPES[listed[1]] if listed else ""
                if length[:1] == "f":
                    raise ValueError(f"line {number + 1}: the length of a list is a {listed[1]}")
                if name in elements[element][1]:
                    raise ValueError(f"the element {shown(element)} has a property twice")
                elements[element][1][name] = (_TYPES[kind], length)
            case ["end_header"] if order is not None:
                return order, elements, textures, start
            case _:
                raise ValueError(f"line {number + 1} of its header is {shown(line)}; that is not PLY 1.0")
    raise ValueError("is no PLY: its header has no end")


def _read_elements(
    content: memoryview, order: str, elements: dict[str, _Element]
) -> dict[str, tuple[dict[str, Floats], _Lists]]:
    """The numbers and the lists of all; what is text is read as if it were in bytes, every number a double."""
    if not order:
        content = np.array(bytes(content).split(), dtype=float).view(np.uint8).data

    def kind(name: str) -> np.dtype[Any]:
        return np.dtype(order + name if order else float)

    values: dict[str, tuple[dict[str, Floats], _Lists]] = {}
    at = 0
    for element, (count, properties) in elements.items():
        kinds = {name: (kind(item), kind(length) if length else None) for name, (item, length) in properties.items()}
        smallest = sum((length or item).itemsize for item, length in kinds.values())
        items: dict[str, list[NDArray[Any]]] = {name: [np.empty(0)] for name in properties}
        sizes: dict[str, list[Indices]] = {name: [np.empty(0, np.int64)] for name in properties}
        left = run = count if properties else 0
        while left:
            fits = left < count or smallest * count <= len(content) - at
            row = _row_type(content, at, element, kinds) if fits else None
            if row is None:
                raise ValueError(f"is cut short: {count} of {shown(element)} announced")
            # Nearly always the lists of all rows are of one length, that of the first row's.
            table = np.frombuffer(content, row, min(run, left, (len(content) - at) // row.itemsize), at)
            same = np.ones(len(table), np.bool_)
            for name in (name for name, (_, length) in kinds.items() if length):
                same &= table[f"# {name}"] == row[name].shape[0]
            alike = len(table) if same.all() else int(same.argmin())
            for name in properties:
                items[name].append(table[name][:alike].reshape(-1))
                sizes[name].append(np.full(alike, row[name].shape[0]))
            at, left, run = at + alike * row.itemsize, left - alike, 2 * alike
        joined = {name: np.concatenate(parts).astype(float) for name, parts in items.items()}
        values[element] = (
            {name: joined[name] for name, (_, length) in properties.items() if not length},
            {name: (joined[name], np.concatenate(sizes[name])) for name, (_, length) in properties.items() if length},
        )
    return values


def _row_type(
    content: memoryview, at: int, element: str, kinds: dict[str, tuple[np.dtype[Any], np.dtype[Any] | None]]
) -> np.dtype[Any] | None:
    """How the element that begins at a byte lies there, each list after its length; None if it goes beyond the end."""
    fields: list[Any] = []
    for name, (item, length) in kinds.items():
        size = 1
        if length:
            if at + length.itemsize > len(content):
                return None
            (size,) = np.frombuffer(content, length, 1, at).tolist()
            if not 0 <= size < 2**31 or size % 1:
                raise ValueError(f"has a list of {size} items in {shown(element)}")
            fields.append((f"# {name}", length))
            at += length.itemsize
        at += int(size) * item.itemsize
        if at > len(content):
            return None
        fields.append((name, item, (int(size),)))
    return np.dtype(fields)


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
