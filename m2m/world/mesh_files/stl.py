"""STL: triangles alone, in bytes or in text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from m2m.world.mesh_files.source import LARGEST_TEXT, Source
from m2m.world.mesh_files.surface import GREY, Surface, check_count

_HEADER: Final = 84
_TRIANGLE: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX: Final = re.compile(rb"^\s*vertex\s+(\S+)\s+(\S+)\s+(\S+)\s*$", re.MULTILINE)


def read_stl(source: Source) -> Iterator[Surface]:
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
