"""What the JSON of glTF 2.0 says, as far as it is read: geometry, scene graph, skins, base colours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar
from urllib.parse import unquote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from m2m.world.mesh_files.source import shown
from m2m.world.mesh_files.surface import WHITE, Floats, Rgba
from m2m.world.studio import AlphaMode

Index = Annotated[int, Field(ge=0)]
Vector = tuple[float, float, float]
Item = TypeVar("Item")


class Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, allow_inf_nan=False)


class Transform(Record):
    offset: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    tex_coord: Index | None = None


class TextureInfoExtensions(Record):
    transform: Transform = Field(default=Transform(), alias="KHR_texture_transform")


class TextureInfo(Record):
    index: Index
    tex_coord: Index = 0
    extensions: TextureInfoExtensions = TextureInfoExtensions()


class BaseColour(Record):
    base_color_factor: Rgba = WHITE
    base_color_texture: TextureInfo | None = None


class SpecularGlossiness(Record):
    diffuse_factor: Rgba = WHITE
    diffuse_texture: TextureInfo | None = None


class MaterialExtensions(Record):
    specular_glossiness: SpecularGlossiness | None = Field(default=None, alias="KHR_materials_pbrSpecularGlossiness")


class Material(Record):
    pbr_metallic_roughness: BaseColour = BaseColour()
    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: Annotated[float, Field(ge=0)] = 0.5
    extensions: MaterialExtensions = MaterialExtensions()


class Webp(Record):
    source: Index


class TextureExtensions(Record):
    webp: Webp | None = Field(default=None, alias="EXT_texture_webp")


class Texture(Record):
    source: Index | None = None
    sampler: Index | None = None
    extensions: TextureExtensions = TextureExtensions()


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


class SparseIndices(Record):
    buffer_view: Index
    byte_offset: Index = 0
    component_type: Literal[5121, 5123, 5125]


class SparseValues(Record):
    buffer_view: Index
    byte_offset: Index = 0


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


class Asset(Record):
    version: str


class Document(Record):
    asset: Asset
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


def local_name(uri: str) -> str:
    """The name of a file, of an address that is one."""
    scheme, colon, _ = uri.partition(":")
    if colon and len(scheme) > 1 and scheme.isalnum():
        raise ValueError(f"names {shown(uri)}; only files beside it are read")
    return uri


def embedded(uri: str) -> bytes:
    described, _, data = uri.partition(",")
    if not described.endswith(";base64"):
        return unquote(data).encode("latin-1")
    return base64.b64decode(data)
