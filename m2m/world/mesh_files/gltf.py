"""glTF 2.0, as .gltf and .glb: geometry, scene graph, skins, morph targets, base colours.

What light does with a surface (metal, roughness, glow, bumps) is left out: a studio's light keeps colours as they are.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from m2m.world.mesh_files.source import LARGEST_TEXT, Source, shown
from m2m.world.mesh_files.surface import (
    MOST_TRIANGLES,
    WHITE,
    Floats,
    Indices,
    Rgba,
    Surface,
    Texture,
    Wrap,
    check_count,
    check_faces,
)
from m2m.world.studio import AlphaMode

_log = logging.getLogger(__name__)

_SUPPORTED: Final = {"KHR_texture_transform", "KHR_mesh_quantization", "EXT_texture_webp"}
_OF_LIGHT: Final = ("KHR_materials_", "KHR_lights_", "KHR_xmp", "KHR_animation_", "EXT_lights_")
"""Beginnings of the names of extensions that change neither shape nor base colour."""
_KINDS: Final = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_WRAPS: Final[dict[int, Wrap]] = {10497: "REPEAT", 33071: "CLAMP_TO_EDGE", 33648: "MIRRORED_REPEAT"}
_NEAREST: Final = 9728
_LARGEST_NUMBERS: Final = 2**31
"""Bytes of all numbers of a file that are unpacked: many accessors may read the same bytes."""

_Index = Annotated[int, Field(ge=0)]
_Vector = tuple[float, float, float]
_Item = TypeVar("_Item")


class _Record(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, allow_inf_nan=False)


class _Transform(_Record):
    offset: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    tex_coord: _Index | None = None


class _TextureInfoExtensions(_Record):
    transform: _Transform = Field(default=_Transform(), alias="KHR_texture_transform")


class _TextureInfo(_Record):
    index: _Index
    tex_coord: _Index = 0
    extensions: _TextureInfoExtensions = _TextureInfoExtensions()


class _BaseColour(_Record):
    base_color_factor: Rgba = WHITE
    base_color_texture: _TextureInfo | None = None


class _SpecularGlossiness(_Record):
    diffuse_factor: Rgba = WHITE
    diffuse_texture: _TextureInfo | None = None


class _MaterialExtensions(_Record):
    specular_glossiness: _SpecularGlossiness | None = Field(default=None, alias="KHR_materials_pbrSpecularGlossiness")


class _Material(_Record):
    pbr_metallic_roughness: _BaseColour = _BaseColour()
    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: Annotated[float, Field(ge=0)] = 0.5
    extensions: _MaterialExtensions = _MaterialExtensions()


class _Webp(_Record):
    source: _Index


class _TextureExtensions(_Record):
    webp: _Webp | None = Field(default=None, alias="EXT_texture_webp")


class _Texture(_Record):
    source: _Index | None = None
    sampler: _Index | None = None
    extensions: _TextureExtensions = _TextureExtensions()


class _Sampler(_Record):
    mag_filter: int | None = None
    wrap_s: Literal[10497, 33071, 33648] = 10497
    wrap_t: Literal[10497, 33071, 33648] = 10497


class _Image(_Record):
    uri: str | None = None
    buffer_view: _Index | None = None
    name: str = ""


class _Buffer(_Record):
    uri: str | None = None
    byte_length: _Index


class _BufferView(_Record):
    buffer: _Index
    byte_offset: _Index = 0
    byte_length: _Index
    byte_stride: Annotated[int, Field(ge=1, le=252)] | None = None


class _SparseIndices(_Record):
    buffer_view: _Index
    byte_offset: _Index = 0
    component_type: Literal[5121, 5123, 5125]


class _SparseValues(_Record):
    buffer_view: _Index
    byte_offset: _Index = 0


class _Sparse(_Record):
    count: _Index
    indices: _SparseIndices
    values: _SparseValues


class _Accessor(_Record):
    buffer_view: _Index | None = None
    byte_offset: _Index = 0
    component_type: Literal[5120, 5121, 5122, 5123, 5125, 5126]
    normalized: bool = False
    count: _Index
    type: Literal["SCALAR", "VEC2", "VEC3", "VEC4", "MAT2", "MAT3", "MAT4"]
    sparse: _Sparse | None = None


class _Primitive(_Record):
    attributes: dict[str, _Index]
    indices: _Index | None = None
    material: _Index | None = None
    mode: Annotated[int, Field(ge=0, le=6)] = 4
    targets: tuple[dict[str, _Index], ...] = ()


class _Mesh(_Record):
    primitives: tuple[_Primitive, ...]
    weights: tuple[float, ...] = ()


class _Skin(_Record):
    joints: tuple[_Index, ...]
    inverse_bind_matrices: _Index | None = None


class _Node(_Record):
    children: tuple[_Index, ...] = ()
    matrix: Annotated[tuple[float, ...], Field(min_length=16, max_length=16)] | None = None
    translation: _Vector = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    scale: _Vector = (1.0, 1.0, 1.0)
    mesh: _Index | None = None
    skin: _Index | None = None
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


class _Scene(_Record):
    nodes: tuple[_Index, ...] = ()


class _Asset(_Record):
    version: str


class _Document(_Record):
    asset: _Asset
    scene: _Index | None = None
    extensions_used: tuple[str, ...] = ()
    extensions_required: tuple[str, ...] = ()
    scenes: tuple[_Scene, ...] = ()
    nodes: tuple[_Node, ...] = ()
    meshes: tuple[_Mesh, ...] = ()
    skins: tuple[_Skin, ...] = ()
    materials: tuple[_Material, ...] = ()
    textures: tuple[_Texture, ...] = ()
    samplers: tuple[_Sampler, ...] = ()
    images: tuple[_Image, ...] = ()
    accessors: tuple[_Accessor, ...] = ()
    buffer_views: tuple[_BufferView, ...] = ()
    buffers: tuple[_Buffer, ...] = ()


def read_gltf(source: Source) -> Iterator[Surface]:
    """The triangles of the file's scene, as its nodes, skins and morph targets place them when nothing moves.

    Raises:
        ValueError: the file is damaged, names a file that is not there, or needs what is not supported.
    """
    text, binary = _chunks(source.read())
    try:
        document = _Document.model_validate_json(text.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its JSON"
        raise ValueError(f"is no glTF 2.0: {shown(place)}: {shown(first['msg'])}") from error
    if not document.asset.version.startswith("2."):
        raise ValueError(f"is glTF {shown(document.asset.version)}; save it as glTF 2.0")
    for name in document.extensions_required:
        if name not in _SUPPORTED and not name.startswith(_OF_LIGHT):
            raise ValueError(f"needs the extension {shown(name)}, which is not supported; export it without")
    for name in document.extensions_used:
        if name not in _SUPPORTED and not name.startswith(_OF_LIGHT):
            _log.warning("%s: drawn without the extension %s, which is not supported", source.path, shown(name))
    yield from _Reader(source, document, binary).surfaces()


def _chunks(content: bytes) -> tuple[bytes, bytes | None]:
    """The JSON of either kind of file, and the bytes that a binary one holds beside."""
    if content[:4] != b"glTF":
        if len(content) > LARGEST_TEXT:
            raise ValueError(f"is larger than {LARGEST_TEXT >> 20} MiB of text; save it as .glb")
        return content, None
    version = int.from_bytes(content[4:8], "little")
    if version != 2:
        raise ValueError(f"is binary glTF {version}; save it as glTF 2.0")
    text: bytes | None = None
    at = 12
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "little"), content[at + 4 : at + 8]
        chunk = content[at + 8 : at + 8 + length]
        if len(chunk) < length:
            raise ValueError(f"is cut short: a part of {length} bytes has {len(chunk)}")
        if text is None:
            if kind != b"JSON" or length > LARGEST_TEXT:
                raise ValueError("does not begin with its JSON")
            text = chunk
        elif kind == b"BIN\0":
            return text, chunk
        at += 8 + length
    if text is None:
        raise ValueError("is cut short: it has no JSON")
    return text, None


class _Reader:
    """One document, its buffers, and what has been unpacked of them."""

    def __init__(self, source: Source, document: _Document, binary: bytes | None) -> None:
        self._source = source
        self._document = document
        self._binary = binary
        self._buffers: dict[int, bytes] = {}
        self._accessors: dict[int, NDArray[Any]] = {}
        self._unpacked = 0
        self._images: dict[int, Image.Image] = {}
        self._textures: dict[tuple[object, ...], Texture] = {}

    def surfaces(self) -> Iterator[Surface]:
        """Those of all nodes in the scene."""
        nodes = self._document.nodes
        children = {child for node in nodes for child in node.children}
        roots: Sequence[int] = [index for index in range(len(nodes)) if index not in children]
        places = self._places(roots)
        if self._document.scenes:
            roots = _at(self._document.scenes, self._document.scene or 0, "scene").nodes
        shown: list[tuple[int, _Mesh, _Primitive]] = []
        waiting, seen = list(reversed(roots)), set[int]()
        while waiting:
            index = waiting.pop()
            if index in seen:
                raise ValueError(f"node {index} is in its scene twice")
            seen.add(index)
            node = _at(nodes, index, "node")
            waiting += reversed(node.children)
            if node.mesh is not None:
                mesh = _at(self._document.meshes, node.mesh, "mesh")
                shown += [(index, mesh, primitive) for primitive in mesh.primitives]
        check_count(sum(self._count(primitive) for _, _, primitive in shown))
        for index, mesh, primitive in shown:
            faces = self._faces(primitive)
            if len(faces):
                yield self._surface(primitive, faces, index, mesh, places)

    def _places(self, roots: Sequence[int]) -> dict[int, Floats]:
        """Of every node that hangs on a root: (4, 4), its coordinates to the world's."""
        places: dict[int, Floats] = {}
        waiting = [(root, np.eye(4)) for root in roots]
        while waiting:
            index, parent = waiting.pop()
            if index in places:
                raise ValueError(f"node {index} has two parents")
            node = _at(self._document.nodes, index, "node")
            places[index] = parent @ node.local()
            waiting += [(child, places[index]) for child in node.children]
        return places

    def _count(self, primitive: _Primitive) -> int:
        """How many triangles there are, at most."""
        if primitive.indices is None:
            corners = self._description(primitive.attributes.get("POSITION"), "POSITION").count
        else:
            corners = self._description(primitive.indices, "indices").count
        return corners // 3 if primitive.mode == 4 else corners

    def _faces(self, primitive: _Primitive) -> Indices:
        """(m, 3); none of points and lines."""
        count = self._description(primitive.attributes.get("POSITION"), "POSITION").count
        if primitive.indices is None:
            corners = np.arange(count)
        else:
            corners = self._values(primitive.indices, "indices", 1)[:, 0]
            if corners.dtype.kind == "f":
                raise ValueError("has indices that are no integers")
        corners = corners.astype(np.int64)
        match primitive.mode:
            case 4:
                faces = corners[: len(corners) // 3 * 3].reshape(-1, 3)
            case 5 if len(corners) >= 3:
                faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
                faces[1::2] = faces[1::2, ::-1]  # every other one runs the other way
            case 6 if len(corners) >= 3:
                faces = np.stack([np.full(len(corners) - 2, corners[0]), corners[1:-1], corners[2:]], axis=1)
            case _:
                faces = np.empty((0, 3), dtype=np.int64)
        check_faces(faces, count)
        return faces

    def _surface(
        self, primitive: _Primitive, faces: Indices, index: int, mesh: _Mesh, places: dict[int, Floats]
    ) -> Surface:
        node = self._document.nodes[index]
        used, renamed = np.unique(faces, return_inverse=True)

        def attribute(name: str, *widths: int) -> Floats | None:
            if name not in primitive.attributes:
                return None
            return self._at_points(primitive.attributes[name], name, used, *widths)

        points = attribute("POSITION", 3)
        assert points is not None  # _faces has looked
        weights = mesh.weights if node.weights is None else node.weights
        for weight, target in zip(weights, primitive.targets, strict=False):
            if weight and "POSITION" in target:
                points = points + weight * self._at_points(target["POSITION"], "a morph target", used, 3)
        if node.skin is not None and "JOINTS_0" in primitive.attributes:
            points = self._skinned(points, attribute, _at(self._document.skins, node.skin, "skin"), places)
        elif index in places:
            points = points @ places[index][:3, :3].T + places[index][:3, 3]
        else:
            raise ValueError(f"node {index} is its own ancestor")
        surface = Surface(points=points, faces=renamed.reshape(-1, 3))
        colours = attribute("COLOR_0", 3, 4)
        if colours is not None and colours.shape[1] == 3:
            colours = np.column_stack([colours, np.ones(len(colours))])
        if primitive.material is None:
            return replace(surface, point_colours=None if colours is None else _display(colours))
        material = _at(self._document.materials, primitive.material, "material")
        surface = replace(surface, alpha_mode=material.alpha_mode, alpha_cutoff=material.alpha_cutoff)
        glossy = material.extensions.specular_glossiness
        if glossy is not None:
            factor, info = glossy.diffuse_factor, glossy.diffuse_texture
        else:
            base = material.pbr_metallic_roughness
            factor, info = base.base_color_factor, base.base_color_texture
        if info is None:
            if colours is None:
                return replace(surface, colour=_display(np.array([factor]))[0].tolist())
            return replace(surface, point_colours=_display(colours * factor))
        transform = info.extensions.transform
        uv_set = info.tex_coord if transform.tex_coord is None else transform.tex_coord
        uv = attribute(f"TEXCOORD_{uv_set}", 2)
        if uv is None:
            raise ValueError(f"has a texture, but no TEXCOORD_{uv_set} that says where it lies")
        uv = uv * transform.scale
        sine, cosine = np.sin(transform.rotation), np.cos(transform.rotation)
        uv = uv @ np.array([[cosine, -sine], [sine, cosine]]) + transform.offset  # counter-clockwise where v runs down
        return replace(
            surface,
            uv=np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1),
            texture=self._texture(info.index, factor, opaque=material.alpha_mode == "OPAQUE"),
            point_colours=None if colours is None else _display(colours),
        )

    def _skinned(self, points: Floats, attribute: Any, skin: _Skin, places: dict[int, Floats]) -> Floats:
        """Where joints take points. Where the node itself stands does not count, says glTF."""
        count = len(skin.joints)
        if any(joint not in places for joint in skin.joints):
            raise ValueError("has a skin with a joint that is no node of a tree")
        bind = np.broadcast_to(np.eye(4), (count, 4, 4))
        if skin.inverse_bind_matrices is not None:
            flat = self._values(skin.inverse_bind_matrices, "inverse bind matrices", 16)
            if len(flat) < count:
                raise ValueError(f"has a skin of {count} joints and {len(flat)} inverse bind matrices")
            bind = flat[:count].astype(float).reshape(-1, 4, 4).transpose(0, 2, 1)
        matrices = np.stack([places[joint] for joint in skin.joints] or [np.eye(4)]) @ (bind if count else np.eye(4))
        moved, total = np.zeros_like(points), np.zeros(len(points))
        for group in range(8):
            joints, weights = attribute(f"JOINTS_{group}", 4), attribute(f"WEIGHTS_{group}", 4)
            if joints is None:
                break
            if weights is None:
                raise ValueError(f"has JOINTS_{group} without WEIGHTS_{group}")
            for joint, weight in zip(joints.T, weights.T, strict=True):
                joint = np.where(weight == 0, 0, joint)  # what does not count may be any number
                if not ((joint >= 0) & (joint < count)).all():
                    raise ValueError(f"has corners that hang on joints beyond the {count} of their skin")
                place = matrices[joint.astype(np.int64)]  # (n, 4, 4)
                moved += weight[:, None] * (np.einsum("nij,nj->ni", place[:, :3, :3], points) + place[:, :3, 3])
                total += weight
        return moved / np.where(total == 0, 1, total)[:, None]

    def _texture(self, index: int, factor: Rgba, *, opaque: bool) -> Texture:
        key = (index, factor, opaque)
        if key not in self._textures:
            texture = _at(self._document.textures, index, "texture")
            number = texture.source if texture.extensions.webp is None else texture.extensions.webp.source
            if number is None:
                raise ValueError(f"texture {index} is of a kind that is not supported; give PNG, JPEG or WebP")
            sampler = _Sampler()
            if texture.sampler is not None:
                sampler = _at(self._document.samplers, texture.sampler, "sampler")
            if sampler.wrap_s != sampler.wrap_t:
                _log.warning("%s: texture %d is repeated across as it is along", self._source.path, index)
            image = _multiplied(self._image(number), factor, opaque=opaque)
            self._source.charge(image)
            self._textures[key] = Texture(
                image=image, wrap=_WRAPS[sampler.wrap_s], smooth=sampler.mag_filter != _NEAREST
            )
        return self._textures[key]

    def _image(self, index: int) -> Image.Image:
        if index not in self._images:
            image = _at(self._document.images, index, "image")
            if image.buffer_view is not None:
                picture = self._source.picture(bytes(self._view(image.buffer_view)[0]), image.name or f"image {index}")
            elif image.uri is None:
                raise ValueError(f"image {index} is nowhere")
            elif image.uri.startswith("data:"):
                picture = self._source.picture(_embedded(image.uri), f"image {index}")
            else:
                picture = self._source.picture(self._source.find(_local(image.uri)), image.uri)
            self._images[index] = picture
        return self._images[index]

    def _description(self, index: int | None, name: str) -> _Accessor:
        if index is None:
            raise ValueError(f"has a primitive without {name}")
        return _at(self._document.accessors, index, "accessor")

    def _at_points(self, index: int, name: str, points: Indices, *widths: int) -> Floats:
        """(k, width): an attribute at some points; integers as glTF means them."""
        values = self._values(index, name, *widths)
        if points[-1] >= len(values):
            raise ValueError(f"has {name} for {len(values)} corners; a face names corner {points[-1]}, from 0")
        kind, chosen = values.dtype, values[points].astype(float)
        if self._description(index, name).normalized and kind.kind != "f":
            chosen = np.maximum(chosen / np.iinfo(kind).max, -1)
        return chosen

    def _values(self, index: int, name: str, *widths: int) -> NDArray[Any]:
        """(count, width): what an accessor holds."""
        described = self._description(index, name)
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
        content, stride = self._view(view)
        size = kind.itemsize * width
        stride = stride or size
        if count == 0:
            return np.empty((0, width), kind)
        if stride < size or offset + stride * (count - 1) + size > len(content):
            raise ValueError(f"buffer view {view} has {len(content)} bytes; {count} items of {size} do not fit")
        return np.ndarray((count, width), kind, content, offset, (stride, kind.itemsize))

    def _view(self, index: int) -> tuple[memoryview, int | None]:
        """The bytes of a buffer view, and its stride."""
        view = _at(self._document.buffer_views, index, "buffer view")
        if view.buffer not in self._buffers:
            buffer = _at(self._document.buffers, view.buffer, "buffer")
            if buffer.uri is None:
                if view.buffer or self._binary is None:
                    raise ValueError(f"buffer {view.buffer} is nowhere")
                content = self._binary
            elif buffer.uri.startswith("data:"):
                content = _embedded(buffer.uri)
            else:
                content = self._source.read(_local(buffer.uri))
            if len(content) < buffer.byte_length:
                raise ValueError(f"buffer {view.buffer} has {len(content)} bytes of {buffer.byte_length}")
            self._buffers[view.buffer] = content
        content = self._buffers[view.buffer]
        if view.byte_offset + view.byte_length > len(content):
            raise ValueError(f"buffer view {index} goes beyond the {len(content)} bytes of its buffer")
        return memoryview(content)[view.byte_offset : view.byte_offset + view.byte_length], view.byte_stride


def _at(items: Sequence[_Item], index: int, name: str) -> _Item:
    if index >= len(items):
        raise ValueError(f"names {name} {index}; there are {len(items)}, the first is 0")
    return items[index]


def _local(uri: str) -> str:
    """The name of a file, of an address that is one."""
    scheme, colon, _ = uri.partition(":")
    if colon and len(scheme) > 1 and scheme.isalnum():
        raise ValueError(f"names {shown(uri)}; only files beside it are read")
    return uri


def _embedded(uri: str) -> bytes:
    described, _, data = uri.partition(",")
    if not described.endswith(";base64"):
        return unquote(data).encode("latin-1")
    return base64.b64decode(data)


def _display(linear: Floats) -> Floats:
    """RGBA of linear light in display (sRGB) coding; alpha stays what it is."""
    clipped = np.clip(linear, 0, 1)
    rgb = clipped[:, :3]
    coded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return np.column_stack([coded, clipped[:, 3]])


def _linear(display: Floats) -> Floats:
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


def _multiplied(image: Image.Image, factor: Sequence[float], *, opaque: bool) -> Image.Image:
    """A texture times a factor of linear light; the alpha of an opaque one does not count."""
    image = image.convert("RGB" if opaque else "RGBA")
    codes = np.arange(256) / 255
    tables: list[int] = []
    for channel, amount in enumerate(factor[: len(image.getbands())]):
        values = codes * amount if channel == 3 else _display(np.outer(_linear(codes) * amount, np.ones(4)))[:, 0]
        tables += np.rint(255 * np.clip(values, 0, 1)).astype(int).tolist()
    return image.point(tables)
