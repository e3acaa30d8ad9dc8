"""glTF 2.0, as .gltf and .glb: geometry, scene graph, skins, morph targets, base colours.

What light does with a surface (metal, roughness, glow, bumps) is left out: a studio's light keeps colours as they are.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from PIL import Image
from pydantic import ValidationError

from m2m.world.mesh_files import (
    LARGEST_TEXT,
    Floats,
    Indices,
    MeshFile,
    Rgba,
    Surface,
    Texture,
    Wrap,
    check_count,
    check_faces,
    display,
    multiplied,
    shown,
)
from m2m.world.mesh_files.gltf_document import Document, Material, Mesh, Numbers, Primitive, Sampler, Skin, item_at

_log = logging.getLogger(__name__)

_SUPPORTED: Final = {"KHR_texture_transform", "KHR_mesh_quantization", "EXT_texture_webp"}
_OF_LIGHT: Final = ("KHR_materials_", "KHR_lights_", "KHR_xmp", "KHR_animation_", "EXT_lights_")
"""Beginnings of the names of extensions that change neither shape nor base colour."""
_WRAPS: Final[dict[int, Wrap]] = {10497: "REPEAT", 33071: "CLAMP_TO_EDGE", 33648: "MIRRORED_REPEAT"}
_NEAREST: Final = 9728


def read_gltf(source: MeshFile) -> Iterator[Surface]:
    """The triangles of the file's scene, as its nodes, skins and morph targets place them when nothing moves.

    Raises:
        ValueError: the file is damaged, names a file that is not there, or needs what is not supported.
    """
    text, binary = _chunks(source.read())
    try:
        document = Document.model_validate_json(text.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its JSON"
        raise ValueError(f"is no glTF 2.0: {shown(place)}: {shown(first['msg'])}") from error
    if not document.version.startswith("2."):
        raise ValueError(f"is glTF {shown(document.version)}; save it as glTF 2.0")
    for name in (*document.extensions_required, *document.extensions_used):
        if name not in _SUPPORTED and not name.startswith(_OF_LIGHT):
            if name in document.extensions_required:
                raise ValueError(f"needs the extension {shown(name)}, which is not supported; export it without")
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
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(content) and b"BIN\0" not in chunks:
        length, kind = struct.unpack_from("<I4s", content, at)
        chunk = content[at + 8 : at + 8 + length]
        if len(chunk) < length:
            raise ValueError(f"is cut short: a part of {length} bytes has {len(chunk)}")
        if not chunks and (kind != b"JSON" or length > LARGEST_TEXT):
            raise ValueError("does not begin with its JSON")
        chunks.setdefault(kind, chunk)
        at += 8 + length
    if not chunks:
        raise ValueError("is cut short: it has no JSON")
    return chunks[b"JSON"], chunks.get(b"BIN\0")


class _Reader:
    """One document, its buffers, and what has been unpacked of them."""

    def __init__(self, source: MeshFile, document: Document, binary: bytes | None) -> None:
        self._source = source
        self._document = document
        self._numbers = Numbers(source, document, binary)
        self._images: dict[int, Image.Image] = {}
        self._textures: dict[tuple[object, ...], Texture] = {}

    def surfaces(self) -> Iterator[Surface]:
        """Those of all nodes in the scene."""
        nodes = self._document.nodes
        children = {child for node in nodes for child in node.children}
        roots: Sequence[int] = [index for index in range(len(nodes)) if index not in children]
        places = self._places(roots)
        if self._document.scenes:
            roots = item_at(self._document.scenes, self._document.scene or 0, "scene").nodes
        drawn: list[tuple[int, Mesh, Primitive]] = []
        waiting, seen = list(reversed(roots)), set[int]()
        while waiting:
            index = waiting.pop()
            if index in seen:
                raise ValueError(f"node {index} is in its scene twice")
            seen.add(index)
            node = item_at(nodes, index, "node")
            waiting += reversed(node.children)
            if node.mesh is not None:
                mesh = item_at(self._document.meshes, node.mesh, "mesh")
                drawn += [(index, mesh, primitive) for primitive in mesh.primitives]
        check_count(sum(self._count(primitive) for _, _, primitive in drawn))
        for index, mesh, primitive in drawn:
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
            node = item_at(self._document.nodes, index, "node")
            places[index] = parent @ node.local()
            waiting += [(child, places[index]) for child in node.children]
        return places

    def _count(self, primitive: Primitive) -> int:
        """How many triangles there are, at most."""
        positions = (primitive.attributes.get("POSITION"), "POSITION")
        described = positions if primitive.indices is None else (primitive.indices, "indices")
        corners = self._numbers.description(*described).count
        return corners // 3 if primitive.mode == 4 else corners

    def _faces(self, primitive: Primitive) -> Indices:
        """(m, 3); none of points and lines."""
        count = self._numbers.description(primitive.attributes.get("POSITION"), "POSITION").count
        if primitive.indices is None:
            corners = np.arange(count)
        else:
            corners = self._numbers.values(primitive.indices, "indices", 1)[:, 0]
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
        self, primitive: Primitive, faces: Indices, index: int, mesh: Mesh, places: dict[int, Floats]
    ) -> Surface:
        node = self._document.nodes[index]
        used, renamed = np.unique(faces, return_inverse=True)

        def attribute(name: str, *widths: int) -> Floats | None:
            if name not in primitive.attributes:
                return None
            return self._numbers.at_points(primitive.attributes[name], name, used, *widths)

        points = attribute("POSITION", 3)
        assert points is not None  # _faces has looked
        weights = mesh.weights if node.weights is None else node.weights
        for weight, target in zip(weights, primitive.targets, strict=False):
            if weight and "POSITION" in target:
                points = points + weight * self._numbers.at_points(target["POSITION"], "a morph target", used, 3)
        if node.skin is not None and "JOINTS_0" in primitive.attributes:
            points = self._skinned(points, attribute, item_at(self._document.skins, node.skin, "skin"), places)
        elif index in places:
            points = points @ places[index][:3, :3].T + places[index][:3, 3]
        else:
            raise ValueError(f"node {index} is its own ancestor")
        named = primitive.material
        material = Material() if named is None else item_at(self._document.materials, named, "material")
        surface = Surface(points=points, faces=renamed.reshape(-1, 3))
        surface = replace(surface, alpha_mode=material.alpha_mode, alpha_cutoff=material.alpha_cutoff)
        colours = attribute("COLOR_0", 3, 4)
        if colours is not None and colours.shape[1] == 3:
            colours = np.column_stack([colours, np.ones(len(colours))])
        base = material.glossy or material.pbr_metallic_roughness
        factor, info = base.factor, base.texture
        if info is None:
            if colours is None:
                return replace(surface, colour=display(np.array([factor]))[0].tolist())
            return replace(surface, point_colours=display(colours * factor))
        transform = info.transform
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
            point_colours=None if colours is None else display(colours),
        )

    def _skinned(self, points: Floats, attribute: Any, skin: Skin, places: dict[int, Floats]) -> Floats:
        """Where joints take points. Where the node itself stands does not count, says glTF."""
        count = len(skin.joints)
        if any(joint not in places for joint in skin.joints):
            raise ValueError("has a skin with a joint that is no node of a tree")
        bind = np.broadcast_to(np.eye(4), (count, 4, 4))
        if skin.inverse_bind_matrices is not None:
            flat = self._numbers.values(skin.inverse_bind_matrices, "inverse bind matrices", 16)
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
            texture = item_at(self._document.textures, index, "texture")
            number = texture.source if texture.webp is None else texture.webp
            if number is None:
                raise ValueError(f"texture {index} is of a kind that is not supported; give PNG, JPEG or WebP")
            named = texture.sampler
            sampler = Sampler() if named is None else item_at(self._document.samplers, named, "sampler")
            if sampler.wrap_s != sampler.wrap_t:
                _log.warning("%s: texture %d is repeated across as it is along", self._source.path, index)
            image = multiplied(self._image(number), factor, opaque=opaque)
            self._source.charge(image)
            self._textures[key] = Texture(
                image=image, wrap=_WRAPS[sampler.wrap_s], smooth=sampler.mag_filter != _NEAREST
            )
        return self._textures[key]

    def _image(self, index: int) -> Image.Image:
        if index not in self._images:
            image = item_at(self._document.images, index, "image")
            if image.buffer_view is not None:
                content: bytes | None = bytes(self._numbers.view(image.buffer_view)[0])
            else:
                content = self._numbers.resource(image.uri)
            if content is None:
                raise ValueError(f"image {index} is nowhere")
            in_a_file = image.buffer_view is None and image.uri and not image.uri.startswith("data:")
            name = image.uri if in_a_file else image.name
            self._images[index] = self._source.picture(name or f"image {index}", content)
        return self._images[index]
