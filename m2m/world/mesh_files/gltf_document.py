"""A glTF 2.0 file: what its JSON says, as far as it is read, and the numbers that its accessors describe."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from m2m.world.mesh_files import MOST_TRIANGLES, WHITE, Floats, Indices, MeshFile, Rgba, shown
from m2m.world.studio import AlphaMode

Index = Annotated[int, Field(ge=0)]
Vector = tuple[float, float, float]
Item = TypeVar("Item")

_KINDS: Final = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_LARGEST_NUMBERS: Final = 2**31
"""Bytes of all numbers of a file that are unpacked: many accessors may read the same bytes."""


class Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, allow_inf_nan=False)


class Transform(Record):
    offset: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    tex_coord: Index | None = None


class TextureInfo(Record):
    index: Index
    tex_coord: Index = 0
    transform: Transform = Field(default=Transform(), validation_alias=AliasPath("extensions", "KHR_texture_transform"))


class BaseColour(Record):
    """Of both ways to give one: by metal and roughness, or by gloss."""

    factor: Rgba = Field(default=WHITE, validation_alias=AliasChoices("baseColorFactor", "diffuseFactor"))
    texture: TextureInfo | None = Field(
        default=None, validation_alias=AliasChoices("baseColorTexture", "diffuseTexture")
    )


class Material(Record):
    pbr_metallic_roughness: BaseColour = BaseColour()
    glossy: BaseColour | None = Field(
        default=None, validation_alias=AliasPath("extensions", "KHR_materials_pbrSpecularGlossiness")
    )
    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: Annotated[float, Field(ge=0)] = 0.5


class Texture(Record):
    source: Index | None = None
    webp: Index | None = Field(default=None, validation_alias=AliasPath("extensions", "EXT_texture_webp", "source"))
    sampler: Index | None = None


class Sampler(Record):
    mag_filter: int | None = None
    wrap_s: Literal[10497, 33071, 33648] = 10497
    wrap_t: Literal[10497, 33071, 33648] = 10497


class Image(Record):
    uri: str | None = None
    buffer_view: Index | None = None
    name: str = ""


class Buffer(Record):
    uri: str | None = None
    byte_length: Index


class BufferView(Record):
    buffer: Index
    byte_offset: Index = 0
    byte_length: Index
    byte_stride: Annotated[int, Field(ge=1, le=252)] | None = None


class SparseValues(Record):
    buffer_view: Index
    byte_offset: Index = 0


class SparseIndices(SparseValues):
    component_type: Literal[5121, 5123, 5125]


class Sparse(Record):
    count: Index
    indices: SparseIndices
    values: SparseValues


class Accessor(Record):
    buffer_view: Index | None = None
    byte_offset: Index = 0
    component_type: Literal[5120, 5121, 5122, 5123, 5125, 5126]
    normalized: bool = False
    count: Index
    type: Literal["SCALAR", "VEC2", "VEC3", "VEC4", "MAT2", "MAT3", "MAT4"]
    sparse: Sparse | None = None


class Primitive(Record):
    attributes: dict[str, Index]
    indices: Index | None = None
    material: Index | None = None
    mode: Annotated[int, Field(ge=0, le=6)] = 4
    targets: tuple[dict[str, Index], ...] = ()


class Mesh(Record):
    primitives: tuple[Primitive, ...]
    weights: tuple[float, ...] = ()


class Skin(Record):
    joints: tuple[Index, ...]
    inverse_bind_matrices: Index | None = None


class Node(Record):
    children: tuple[Index, ...] = ()
    matrix: Annotated[tuple[float, ...], Field(min_length=16, max_length=16)] | None = None
    translation: Vector = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    scale: Vector = (1.0, 1.0, 1.0)
    mesh: Index | None = None
    skin: Index | None = None
    weights: tuple[float, ...] | None = None

    def local(self) -> Floats:
        """(4, 4): the node's own coordinates to its parent's."""
        if self.matrix is not None:
            return np.array(self.matrix).reshape(4, 4).T
        x, y, z, w = np.array(self.rotation) / (np.linalg.norm(self.rotation) or 1.0)
        turn = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        local = np.eye(4)
        local[:3, :3] = np.array(turn) * self.scale
        local[:3, 3] = self.translation
        return local


class Scene(Record):
    nodes: tuple[Index, ...] = ()


class Document(Record):
    version: str = Field(validation_alias=AliasPath("asset", "version"))
    scene: Index | None = None
    extensions_used: tuple[str, ...] = ()
    extensions_required: tuple[str, ...] = ()
    scenes: tuple[Scene, ...] = ()
    nodes: tuple[Node, ...] = ()
    meshes: tuple[Mesh, ...] = ()
    skins: tuple[Skin, ...] = ()
    materials: tuple[Material, ...] = ()
    textures: tuple[Texture, ...] = ()
    samplers: tuple[Sampler, ...] = ()
    images: tuple[Image, ...] = ()
    accessors: tuple[Accessor, ...] = ()
    buffer_views: tuple[BufferView, ...] = ()
    buffers: tuple[Buffer, ...] = ()


def item_at(items: Sequence[Item], index: int, name: str) -> Item:
    if index >= len(items):
        raise ValueError(f"names {name} {index}; there are {len(items)}, the first is 0")
    return items[index]


class Numbers:
    """Of one document, and what has been unpacked of them.

    Args:
        binary: the bytes that a binary file holds beside its JSON.

    All methods raise ValueError where the document asks for what is not there.
    """

    def __init__(self, source: MeshFile, document: Document, binary: bytes | None) -> None:
        self._source, self._document, self._binary = source, document, binary
        self._buffers: dict[int, bytes] = {}
        self._accessors: dict[int, NDArray[Any]] = {}
        self._unpacked = 0

    def description(self, index: int | None, name: str) -> Accessor:
        if index is None:
            raise ValueError(f"has a primitive without {name}")
        return item_at(self._document.accessors, index, "accessor")

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
        values = self._strided(described, described.count, kind, width)
        if described.sparse is not None:
            sparse = described.sparse
            where = self._strided(sparse.indices, sparse.count, np.dtype(_KINDS[sparse.indices.component_type]), 1)
            if (where >= described.count).any():
                raise ValueError(f"has {name} whose sparse indices go beyond {described.count}")
            values = values.copy()
            values[where[:, 0]] = self._strided(sparse.values, sparse.count, kind, width)
        self._accessors[index] = values
        return values

    def _strided(self, place: Accessor | SparseValues, count: int, kind: np.dtype[Any], width: int) -> NDArray[Any]:
        """(count, width) items that lie in a buffer view, maybe among others; zeros where there is none."""
        view, offset = place.buffer_view, place.byte_offset
        if view is None:
            return np.zeros((count, width), kind)
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
        view = item_at(self._document.buffer_views, index, "buffer view")
        if view.buffer not in self._buffers:
            buffer = item_at(self._document.buffers, view.buffer, "buffer")
            content = self._binary if buffer.uri is None and not view.buffer else self.resource(buffer.uri)
            if content is None:
                raise ValueError(f"buffer {view.buffer} is nowhere")
            if len(content) < buffer.byte_length:
                raise ValueError(f"buffer {view.buffer} has {len(content)} bytes of {buffer.byte_length}")
            self._buffers[view.buffer] = content
        content = self._buffers[view.buffer]
        if view.byte_offset + view.byte_length > len(content):
            raise ValueError(f"buffer view {index} goes beyond the {len(content)} bytes of its buffer")
        return memoryview(content)[view.byte_offset : view.byte_offset + view.byte_length], view.byte_stride

    def resource(self, uri: str | None) -> bytes | None:
        """The bytes at an address: in it, or in a file beside the mesh."""
        if uri is None:
            return None
        if uri.startswith("data:"):
            described, _, data = uri.partition(",")
            return base64.b64decode(data) if described.endswith(";base64") else unquote(data).encode("latin-1")
        scheme, colon, _ = uri.partition(":")
        if colon and len(scheme) > 1 and scheme.isalnum():
            raise ValueError(f"names {shown(uri)}; only files beside it are read")
        return self._source.read(uri)
