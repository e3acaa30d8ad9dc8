"""Materials of Wavefront OBJ files (MTL): base colours, transparency, and textures with their options."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from m2m.world.mesh_files.source import LARGEST_TEXT, Source, shown

_log = logging.getLogger(__name__)

_OPTIONS: Final = {
    **dict.fromkeys(("-blendu", "-blendv", "-bm", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"), 1),
    "-mm": 2,
}
"""Options of a texture, and how many words each takes."""
_VECTORS: Final = ("-o", "-s", "-t")
"""Those that take one number to three."""


@dataclass(frozen=True)
class Map:
    """A texture as a material names it."""

    name: str
    offset: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    clamp: bool = False
    levels: tuple[float, float] = (0.0, 1.0)
    """What black and the range to white become."""
    channel: str = ""


@dataclass
class Material:
    colour: tuple[float, float, float] | None = None
    opacity: float = 1.0
    map_colour: Map | None = None
    map_opacity: Map | None = None


def read_materials(source: Source, libraries: Sequence[str]) -> dict[str, Material]:
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
    found = Map("")
    while rest.startswith("-"):
        option, _, rest = rest.partition(" ")
        rest = rest.lstrip()
        words = rest.split()
        if option in _VECTORS:
            numbers: list[float] = []
            while len(numbers) < 3 and len(words) > len(numbers) + 1 and _is_number(words[len(numbers)]):
                numbers.append(finite(words[len(numbers)]))
            if not numbers:
                raise ValueError(f"expected numbers after {option}")
            taken = len(numbers)
            default = 1.0 if option == "-s" else 0.0
            u, v = (*numbers, default)[:2]
            if option == "-t" and any(numbers):
                raise ValueError("turbulence is not supported")
            if option != "-t":
                found = replace(found, scale=(u, v)) if option == "-s" else replace(found, offset=(u, v))
        elif option in _OPTIONS:
            taken = _OPTIONS[option]
            if len(words) <= taken:
                raise ValueError(f"expected {taken} words and a file after {option}")
            match option:
                case "-clamp":
                    found = replace(found, clamp=words[0].lower() == "on")
                case "-mm":
                    found = replace(found, levels=(finite(words[0]), finite(words[1])))
                case "-imfchan":
                    found = replace(found, channel=words[0].lower())
        else:
            break  # a name that begins with a dash
        for word in words[:taken]:
            rest = rest[len(word) :].lstrip()
    if not rest:
        raise ValueError("names no file")
    return replace(found, name=rest)


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
