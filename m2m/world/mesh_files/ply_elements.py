"""The header of a PLY file, and the elements that it announces, as text or in either order of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from m2m.world.mesh_files.source import shown
from m2m.world.mesh_files.surface import Floats, Indices

_TYPES: Final = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}
_FORMATS: Final = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}

_Lists: TypeAlias = tuple[Floats, Indices]
"""All items one after the other, and how many each element has."""


@dataclass(frozen=True)
class Property:
    name: str
    kind: str
    """As numpy writes it, without byte order."""
    count: str = ""
    """Of a list: the kind of its length."""


@dataclass(frozen=True)
class Element:
    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    def kind(self, name: str) -> str:
        return next(each.kind for each in self.properties if each.name == name)


@dataclass
class Values:
    """What an element's properties hold."""

    scalars: dict[str, Floats] = field(default_factory=dict)
    lists: dict[str, _Lists] = field(default_factory=dict)


def read_header(content: bytes) -> tuple[str, list[Element], list[str], int]:
    """The byte order ("" for text), the elements, the textures' names, and where the values begin."""
    order: str | None = None
    elements: list[Element] = []
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
                elements.append(Element(name, int(count)))
            case ["property", kind, name] if kind in _TYPES and elements:
                elements[-1].properties.append(Property(name, _TYPES[kind]))
            case ["property", "list", count, kind, name] if {count, kind} <= _TYPES.keys() and elements:
                if _TYPES[count][0] == "f":
                    raise ValueError(f"line {number + 1}: the length of a list is a {count}")
                elements[-1].properties.append(Property(name, _TYPES[kind], _TYPES[count]))
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


def read_text(content: bytes, elements: Sequence[Element]) -> dict[str, Values]:
    numbers = np.array(content.split(), dtype=float)
    values: dict[str, Values] = {}
    at = 0
    for element in elements:
        scalars, lists = _rows(element)
        width = len(element.properties)
        if width * element.count > len(numbers) - at:
            raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
        if not any(each.count for each in element.properties):
            table = numbers[at : at + width * element.count].reshape(element.count, width)
            at += width * element.count
            values[element.name] = Values({each.name: table[:, i] for i, each in enumerate(element.properties)})
            continue
        for _ in range(element.count):
            for each in element.properties:
                size = 1
                if each.count:
                    size = _length(numbers[at : at + 1], element)
                    at += 1
                    lists[each.name][1].append(size)
                if at + size > len(numbers):
                    raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
                (lists[each.name][0] if each.count else scalars[each.name]).append(numbers[at : at + size])
                at += size
        values[element.name] = _joined(scalars, lists)
    return values


def read_binary(content: memoryview, order: str, elements: Sequence[Element]) -> dict[str, Values]:
    values: dict[str, Values] = {}
    at = 0
    for element in elements:
        smallest = sum(np.dtype(each.count or each.kind).itemsize for each in element.properties)
        if smallest * element.count > len(content) - at:
            raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
        if not (element.properties and element.count):
            values[element.name] = _joined(*_rows(element))
            continue
        # Nearly always the lists of all rows are of one length, that of the first row's.
        row, _ = _row(content, at, order, element)
        sizes = {name: len(items) for name, items in row.items()}
        fields: list[Any] = []
        for each in element.properties:
            fields += [(f"# {each.name}", order + each.count)] if each.count else []
            fields.append((each.name, order + each.kind, (sizes[each.name],)))
        uniform = np.dtype(fields)
        if uniform.itemsize * element.count <= len(content) - at:
            table = np.frombuffer(content, uniform, element.count, at)
            if all((table[f"# {each.name}"] == sizes[each.name]).all() for each in element.properties if each.count):
                values[element.name] = Values(
                    {p.name: table[p.name][:, 0].astype(float) for p in element.properties if not p.count},
                    {
                        p.name: (
                            table[p.name].reshape(-1).astype(float),
                            np.full(element.count, sizes[p.name], dtype=np.int64),
                        )
                        for p in element.properties
                        if p.count
                    },
                )
                at += uniform.itemsize * element.count
                continue
        scalars, lists = _rows(element)
        for _ in range(element.count):
            row, at = _row(content, at, order, element)
            for each in element.properties:
                (lists[each.name][0] if each.count else scalars[each.name]).append(row[each.name])
                if each.count:
                    lists[each.name][1].append(len(row[each.name]))
        values[element.name] = _joined(scalars, lists)
    return values


def _row(content: memoryview, at: int, order: str, element: Element) -> tuple[dict[str, NDArray[Any]], int]:
    """The values of the element that begins at a byte, and the byte after it."""
    row: dict[str, NDArray[Any]] = {}
    for each in element.properties:
        size = 1
        if each.count:
            kind = np.dtype(order + each.count)
            size = _length(np.frombuffer(content[at : at + kind.itemsize], kind), element)
            at += kind.itemsize
        kind = np.dtype(order + each.kind)
        end = at + size * kind.itemsize
        if end > len(content):
            raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
        row[each.name] = np.frombuffer(content[at:end], kind)
        at = end
    return row, at


def _length(number: NDArray[Any], element: Element) -> int:
    if len(number) == 0:
        raise ValueError(f"is cut short: {element.count} of {shown(element.name)} announced")
    if not 0 <= number[0] < 2**31 or number[0] % 1:
        raise ValueError(f"has a list of {number[0]} items in {shown(element.name)}")
    return int(number[0])


def _rows(element: Element) -> tuple[dict[str, list[Any]], dict[str, tuple[list[Any], list[int]]]]:
    """Room for an element's scalars and lists, row by row."""
    return (
        {each.name: [] for each in element.properties if not each.count},
        {each.name: ([], []) for each in element.properties if each.count},
    )


def _joined(scalars: dict[str, list[Any]], lists: dict[str, tuple[list[Any], list[int]]]) -> Values:
    nothing = np.empty(0)
    return Values(
        {name: np.concatenate([nothing, *rows]).astype(float) for name, rows in scalars.items()},
        {
            name: (np.concatenate([nothing, *rows]).astype(float), np.array(sizes, dtype=np.int64))
            for name, (rows, sizes) in lists.items()
        },
    )
