"""The numbers of a glTF file: its buffers, and what its accessors say lies in them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2m.world.mesh_files import gltf_json
from m2m.world.mesh_files.source import Source
from m2m.world.mesh_files.surface import MOST_TRIANGLES, Floats, Indices

_KINDS: Final = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_LARGEST_NUMBERS: Final = 2**31
"""Bytes of all numbers of a file that are unpacked: many accessors may read the same bytes."""


class Numbers:
    """Of one document, and what has been unpacked of them.

    Args:
        binary: the bytes that a binary file holds beside its JSON.

    All methods raise ValueError where the document asks for what is not there.
    """

    def __init__(self, source: Source, document: gltf_json.Document, binary: bytes | None) -> None:
        self._source, self._document, self._binary = source, document, binary
        self._buffers: dict[int, bytes] = {}
        self._accessors: dict[int, NDArray[Any]] = {}
        self._unpacked = 0

    def description(self, index: int | None, name: str) -> gltf_json.Accessor:
        if index is None:
            raise ValueError(f"has a primitive without {name}")
        return gltf_json.item_at(self._document.accessors, index, "accessor")

    def at_points(self, index: int, name: str, points: Indices, *widths: int) -> Floats:
        """(k, width): an attribute at some points; integers as glTF means them."""
        values = self.values(index, name, *widths)
        if points[-1] >= len(values):
            raise ValueError(f"has {name} for {len(values)} corners; a face names corner {points[-1]}, from 0")
        kind, chosen = values.dtype, values[points].astype(float)
        if self.description(index, name).normalized and kind.kind != "f":
            chosen = np.maximum(chosen / np.iinfo(kind).max, -1)
        return chosen

    def values(self, index: int, name: str, *widths: int) -> NDArray[Any]:
        """(count, width): what an accessor holds."""
        described = self.description(index, name)
        width = _WIDTHS.get(described.type, 0)
        if width not in widths:
            raise ValueError(f"has {name} of type {described.type}")
        if index in self._accessors:
            return self._accessors[index]
        kind = np.dtype(_KINDS[described.component_type])
        self._unpacked += described.count * width * kind.itemsize
        if self._unpacked > _LARGEST_NUMBERS or described.count > 3 * MOST_TRIANGLES:
            raise ValueError("would unpack to too many corners; give a simpler mesh")
        if described.buffer_view is None:
            values = np.zeros((described.count, width), kind)
        else:
            values = self._strided(described.buffer_view, described.byte_offset, described.count, kind, width)
        if described.sparse is not None:
            sparse = described.sparse
            where_kind = np.dtype(_KINDS[sparse.indices.component_type])
            where = self._strided(sparse.indices.buffer_view, sparse.indices.byte_offset, sparse.count, where_kind, 1)
            if (where >= described.count).any():
                raise ValueError(f"has {name} whose sparse indices go beyond {described.count}")
            values = values.copy()
            values[where[:, 0]] = self._strided(
                sparse.values.buffer_view, sparse.values.byte_offset, sparse.count, kind, width
            )
        self._accessors[index] = values
        return values

    def _strided(self, view: int, offset: int, count: int, kind: np.dtype[Any], width: int) -> NDArray[Any]:
        """(count, width) items that lie in a buffer view, maybe among others."""
        content, stride = self.view(view)
        size = kind.itemsize * width
        stride = stride or size
        if count == 0:
            return np.empty((0, width), kind)
        if stride < size or offset + stride * (count - 1) + size > len(content):
            raise ValueError(f"buffer view {view} has {len(content)} bytes; {count} items of {size} do not fit")
        return np.ndarray((count, width), kind, content, offset, (stride, kind.itemsize))

    def view(self, index: int) -> tuple[memoryview, int | None]:
        """The bytes of a buffer view, and its stride."""
        view = gltf_json.item_at(self._document.buffer_views, index, "buffer view")
        if view.buffer not in self._buffers:
            buffer = gltf_json.item_at(self._document.buffers, view.buffer, "buffer")
            if buffer.uri is None:
                if view.buffer or self._binary is None:
                    raise ValueError(f"buffer {view.buffer} is nowhere")
                content = self._binary
            elif buffer.uri.startswith("data:"):
                content = gltf_json.embedded(buffer.uri)
            else:
                content = self._source.read(gltf_json.local_name(buffer.uri))
            if len(content) < buffer.byte_length:
                raise ValueError(f"buffer {view.buffer} has {len(content)} bytes of {buffer.byte_length}")
            self._buffers[view.buffer] = content
        content = self._buffers[view.buffer]
        if view.byte_offset + view.byte_length > len(content):
            raise ValueError(f"buffer view {index} goes beyond the {len(content)} bytes of its buffer")
        return memoryview(content)[view.byte_offset : view.byte_offset + view.byte_length], view.byte_stride
