"""Mesh files, made by hand, show what their formats say, or are refused in one line that names them."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2m.errors import UserError
from m2m.world.cameras import Camera
from m2m.world.meshes import photograph_mesh, read_mesh
from m2m.world.studio import SURFACE_COLOURS, Studio
from tests.mutations import Reader, survives

FRONT = Camera(azimuth=-90, elevation=0)
"""Sees a file's x to the right, and up what is up in it."""
LEFT, RIGHT, TOP, BOTTOM = 22, 41, 22, 41
"""Columns and rows of a picture of 64 pixels, in the quarters of a square that fills it."""
CORNERS = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
TRIANGLES = [0, 1, 2, 0, 2, 3]
RED, GREEN, BLUE, YELLOW, BLACK, WHITE = (
    *((255, 0, 0), (0, 255, 0), (0, 0, 255)),
    *((255, 255, 0), (0, 0, 0), (255, 255, 255)),
)
FOUR = [[RED, GREEN], [BLUE, YELLOW]]
"""A texture whose quarters can be told apart."""


# Files


def png(rows: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(rows, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def enlarged(rows: Any) -> bytes:
    """A texture of 32 pixels a side, so that interpolation is not seen in the middle of a quarter."""
    array = np.array(rows, dtype=np.uint8)
    return png(array.repeat(32 // array.shape[0], axis=0).repeat(32 // array.shape[1], axis=1))


def numbers(values: Any, kind: str = "f4", **more: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    return np.array(values, dtype=f"<{kind}"), more


COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


def gltf(document: Mapping[str, Any], *arrays: tuple[np.ndarray[Any, Any], dict[str, Any]], **blobs: bytes) -> bytes:
    """A .glb: accessor and buffer view n hold array n; the buffer views of blobs, used as images, follow."""
    views, accessors, binary = [], [], b""
    for array, more in arrays:
        flat = array.reshape(len(array), -1)
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes})
        kind = COMPONENTS[array.dtype.str[1:]]
        described = {"componentType": kind, "count": len(array), "type": TYPES[flat.shape[1]]}
        accessors.append({"bufferView": len(accessors), **described, **more})
        binary += array.tobytes() + bytes(-array.nbytes % 4)
    images = []
    for blob in blobs.values():
        images.append({"bufferView": len(views), "mimeType": "image/png"})
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(blob)})
        binary += blob + bytes(-len(blob) % 4)
    whole = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
        **({"images": images} if images else {}),
        **document,
    }
    text = json.dumps(whole).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def square(
    material: Mapping[str, Any] | None = None,
    texture: bytes | None = None,
    more: Mapping[str, tuple[np.ndarray[Any, Any], dict[str, Any]]] | None = None,
    **document: Any,
) -> bytes:
    """A .glb of a square before the camera; attribute TEXCOORD_0 spans it, (0, 0) at its upper left."""
    attributes = {
        "POSITION": numbers(CORNERS),
        "TEXCOORD_0": numbers([(0, 1), (1, 1), (1, 0), (0, 0)]),
        **(more or {}),
    }
    arrays = [numbers(TRIANGLES, "u2"), *attributes.values()]
    primitive = {"indices": 0, "attributes": {name: index for index, name in enumerate(attributes, start=1)}}
    if material is not None:
        primitive["material"] = 0
        document["materials"] = [material]
    blobs = {}
    if texture is not None:
        blobs["texture"] = texture
        document.setdefault("textures", [{"source": 0}])
    return gltf({"meshes": [{"primitives": [primitive]}], **document}, *arrays, **blobs)


def base(**colour: Any) -> dict[str, Any]:
    return {"pbrMetallicRoughness": colour}


TEXTURED = base(baseColorTexture={"index": 0})

OBJ = """mtllib square.mtl
v -1 -1 0
v 1 -1 0
v 1 1 0
v -1 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl paint
f 1/1 2/2 3/3 4/4
"""
MTL = "newmtl paint\nmap_Kd square.png\n"


def obj_square(folder: Path, mtl: str = MTL, text: str = OBJ, texture: str = "square.png") -> Path:
    (folder / "square.obj").write_text(text)
    (folder / "square.mtl").write_text(mtl)
    (folder / texture).parent.mkdir(parents=True, exist_ok=True)
    (folder / texture).write_bytes(enlarged(FOUR))
    return folder / "square.obj"


def ply(vertices: Sequence[str], faces: Sequence[str], vertex: str = "", face: str = "", comment: str = "") -> bytes:
    header = [
        *("ply", "format ascii 1.0", *([f"comment {comment}"] if comment else [])),
        *(f"element vertex {len(vertices)}", "property float x", "property float y", "property float z"),
        *(f"property {each}" for each in vertex.split(";") if each),
        *(f"element face {len(faces)}", "property list uchar int vertex_indices"),
        *(f"property {each}" for each in face.split(";") if each),
        "end_header",
    ]
    return "\n".join([*header, *vertices, *faces, ""]).encode()


PLY_CORNERS = ["-1 0 -1", "1 0 -1", "1 0 1", "-1 0 1"]


def stl() -> bytes:
    corners = np.array([(-1, 0, -1), (1, 0, -1), (1, 0, 1), (-1, 0, 1)], dtype="<f4")[TRIANGLES].reshape(2, 9)
    facets = b"".join(bytes(12) + facet.tobytes() + bytes(2) for facet in corners)
    return bytes(80) + struct.pack("<I", 2) + facets


# What is seen


def write(folder: Path, content: bytes, name: str = "square.glb") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def photo(path: Path, camera: Camera = FRONT) -> np.ndarray[Any, Any]:
    """(64, 64, 4)"""
    return studio().photograph(read_mesh(path), [camera])[0]


@cache
def studio() -> Studio:
    """One for all, which takes the time of thirty pictures."""
    return Studio(64)


@pytest.fixture(scope="module", autouse=True)
def _closed_studio() -> Iterator[None]:
    yield
    studio().close()
    studio.cache_clear()


def hues(path: Path) -> list[list[tuple[int, int, int]]]:
    """What is seen in the quarters of a square, each channel full or not at all."""
    picture = photo(path)
    assert (picture[..., 3] > 0).sum() > 1000
    return [
        [tuple(255 if channel > 100 else 0 for channel in picture[row, column, :3]) for column in (LEFT, RIGHT)]
        for row in (TOP, BOTTOM)
    ]


def colours(path: Path) -> np.ndarray[Any, Any]:
    """(n, 3 or 4): those of the corners of the only part."""
    (part,) = read_mesh(path)
    return np.asarray(part.mesh.point_data[SURFACE_COLOURS]).astype(int)


def texels(path: Path) -> np.ndarray[Any, Any]:
    (part,) = read_mesh(path)
    assert part.texture is not None
    return np.asarray(part.texture.to_array())


def coded(linear: float) -> int:
    """A byte of display (sRGB) coding."""
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


# Numbers that name what is not there


def test_a_square_is_seen_where_it_is(tmp_path: Path) -> None:
    assert hues(write(tmp_path, square(TEXTURED, enlarged(FOUR)))) == [[RED, GREEN], [BLUE, YELLOW]]
    assert hues(obj_square(tmp_path)) == [[RED, GREEN], [BLUE, YELLOW]]
    assert photo(write(tmp_path, stl(), "a.stl"))[32, 32, 3] == 255


BAD: dict[str, tuple[str, bytes, str]] = {
    "glTF corner": ("a.glb", square(more={"POSITION": numbers(CORNERS[:3])}), "names the corners 0, 2, 3"),
    "glTF attribute": ("a.glb", square(more={"COLOR_0": numbers(CORNERS[:3])}), "COLOR_0 for 3 corners"),
    "glTF accessor": (
        "a.glb",
        square(accessors=[{"bufferView": 0, "componentType": 5123, "count": 6000, "type": "SCALAR"}] * 3),
        "do not fit",
    ),
    "glTF index": ("a.glb", square(nodes=[{"mesh": 7}]), "names mesh 7; there are 1"),
    "glTF negative": ("a.glb", square(nodes=[{"mesh": -1}]), "nodes.0.mesh"),
    "glTF cycle": (
        "a.glb",
        square(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}]),
        "twice|two parents|ancestor",
    ),
    "glTF bomb": ("a.glb", square(scenes=[{"nodes": [*range(9)]}], nodes=[{"children": [1]}] * 9), "two parents"),
    "glTF nothing": (
        "a.glb",
        square(accessors=[{"componentType": 5126, "count": 2**40, "type": "SCALAR"}] * 3),
        "more than 10000000 triangles",
    ),
    "glTF not finite": ("a.glb", square(more={"POSITION": numbers([(np.nan, 0, 0), *CORNERS[1:]])}), "not finite"),
    "glTF 3.0": ("a.glb", square(asset={"version": "3.0"}), "save it as glTF 2.0"),
    "glTF Draco": ("a.glb", square(extensionsRequired=["KHR_draco_mesh_compression"]), "not supported"),
    "OBJ corner": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "line 4 .* 3 so far"),
    "OBJ zero": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "line 4"),
    "OBJ before": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -4\n", "line 4"),
    "OBJ texture": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/2\n", "line 5"),
    "OBJ huge": ("a.obj", b"v 1e308 0 0\nv -1e308 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
    "OBJ infinite": ("a.obj", b"v inf 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
    "OBJ digits": ("a.obj", b"v 0 0 0\nf 1 " + b"9" * 5000 + b" 1\n", "line 2"),
    "PLY corner": ("a.ply", ply(PLY_CORNERS, ["3 0 1 4"]), "names the corners 0, 1, 4"),
    "PLY negative": ("a.ply", ply(PLY_CORNERS, ["3 0 1 -1"]), "names the corners 0, 1, -1"),
    "PLY count": ("a.ply", ply(PLY_CORNERS, ["3 0 1 2"]).replace(b"face 1", b"face 99999999999"), "cut short"),
    "PLY list": ("a.ply", ply(PLY_CORNERS, ["-3 0 1 2"]), "a list of -3"),
    "PLY no faces": ("a.ply", ply(PLY_CORNERS, []), "no faces"),
    "STL count": ("a.stl", bytes(80) + b"\xff" * 4 + stl()[84:], "announces 4294967295"),
    "STL not finite": ("a.stl", stl()[:96] + b"\x00\x00\x80\x7f" + stl()[100:], "not finite"),
    "no extent": ("a.obj", b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "no extent"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_number_that_names_nothing_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, words = BAD[case]
    path = write(tmp_path, content, name)
    with pytest.raises(UserError, match=words) as error:
        read_mesh(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def test_what_no_face_shows_does_not_count(tmp_path: Path) -> None:
    """Corners that are not finite, or far away, but of no face."""
    path = write(tmp_path, OBJ.replace("vt 0 0\n", "v nan 0 0\nv 1e30 0 0\nvt 0 0\n", 1).encode(), "a.obj")
    path.write_text(path.read_text().replace("mtllib square.mtl\n", "").replace("usemtl paint\n", ""))
    assert photo(path)[TOP, LEFT, 3] == 255


def test_a_small_thing_far_away_keeps_its_shape(tmp_path: Path) -> None:
    """As where coordinates are those of a map: 32-bit floats would not tell its corners apart."""
    corners = [f"v {5e6 + x / 100} {4e6 + y / 100} {z}" for x, y, z in CORNERS]
    path = write(tmp_path, "\n".join([*corners, "f 1 2 3 4"]).encode(), "a.obj")
    alpha = photo(path)[..., 3]
    assert alpha[TOP, LEFT] == alpha[BOTTOM, RIGHT] == 255


def test_a_deep_graph_of_nodes_is_read(tmp_path: Path) -> None:
    chain = [{"children": [index + 1]} for index in range(5_000)]
    path = write(tmp_path, square(nodes=[*chain, {"mesh": 0}]))
    assert photo(path)[32, 32, 3] == 255


def test_what_would_unpack_to_too_much_is_refused(tmp_path: Path) -> None:
    many = 3_000_000
    mesh = {"primitives": [{"attributes": {"POSITION": 0}}]}
    nothing = [{"componentType": 5126, "count": many, "type": "VEC3"}]
    document = {
        "accessors": nothing,
        "meshes": [mesh],
        "nodes": [{"mesh": 0}] * 50,
        "scenes": [{"nodes": [*range(50)]}],
    }
    with pytest.raises(UserError, match="more than 10000000 triangles"):
        read_mesh(write(tmp_path, gltf(document)))
    header = png([[0]]).replace(struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000))
    with pytest.raises(UserError, match=r"square\.glb: the texture"):
        read_mesh(write(tmp_path, square(TEXTURED, header)))


# glTF's materials


def test_a_factor_is_linear_and_its_default_is_white(tmp_path: Path) -> None:
    grey = base(baseColorFactor=[0.5, 0.2, 0, 1])
    assert colours(write(tmp_path, square(grey)))[0].tolist() == [coded(0.5), coded(0.2), 0]
    for nothing in ({}, base(), None):
        assert colours(write(tmp_path, square(nothing)))[0].tolist() == [255, 255, 255]


def test_texture_factor_and_corner_colours_are_multiplied(tmp_path: Path) -> None:
    factor = base(baseColorTexture={"index": 0}, baseColorFactor=[0.5, 1, 0.25, 1])
    texture = png(np.full((2, 2, 3), 188))  # half of full light
    paint = {"COLOR_0": numbers([(1, 0.5, 1, 1)] * 4)}
    path = write(tmp_path, square(factor, texture, paint))
    half = ((188 / 255 + 0.055) / 1.055) ** 2.4
    assert texels(path)[0, 0].tolist() == [coded(0.5 * half), 188, coded(0.25 * half)]
    assert colours(path)[0].tolist() == [255, coded(0.5), 255]
    red, green, blue, alpha = photo(path)[32, 32]
    assert alpha == 255
    assert (red / green, blue / green) == pytest.approx((137 / 138.6, 99 / 138.6), abs=0.03)
    path = write(tmp_path, square(base(baseColorFactor=[0.5, 1, 0.25, 1]), more=paint))
    assert colours(path)[0].tolist() == [coded(0.5), coded(0.5), coded(0.25)]


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_corner_colours_may_be_quantised(tmp_path: Path, kind: str) -> None:
    full = np.iinfo(kind).max
    paint = {"COLOR_0": numbers([(full, full // 5, 0, full)] * 4, kind, normalized=True)}
    assert colours(write(tmp_path, square(more=paint)))[0].tolist() == [255, coded(0.2), 0]


def alpha_texture(alpha: Sequence[Sequence[int]]) -> bytes:
    rgb = np.full((2, 2, 3), 128)
    return enlarged(np.concatenate([rgb, np.array(alpha)[..., None]], axis=2))


def test_alpha_means_what_its_mode_says(tmp_path: Path) -> None:
    texture = alpha_texture([[255, 140], [100, 0]])

    def alphas(mode: str, **more: Any) -> list[int]:
        picture = photo(write(tmp_path, square({**TEXTURED, "alphaMode": mode, **more}, texture)))
        return [picture[row, column, 3] for row in (TOP, BOTTOM) for column in (LEFT, RIGHT)]

    assert alphas("OPAQUE") == [255, 255, 255, 255]
    assert alphas("MASK") == [255, 255, 0, 0]
    assert alphas("MASK", alphaCutoff=0.3) == [255, 255, 255, 0]
    assert alphas("BLEND") == pytest.approx([255, 140, 100, 0], abs=1)


def test_what_is_seen_through_shows_what_lies_behind(tmp_path: Path) -> None:
    """Two squares, red before blue, in whatever order they come; their colours are not multiplied by alpha."""
    front, behind = base(baseColorFactor=[0.2, 0, 0, 0.5]), base(baseColorFactor=[0, 0, 0.2, 0.5])
    materials = [{**front, "alphaMode": "BLEND"}, {**behind, "alphaMode": "BLEND"}]
    pictures = []
    for order in ((0, 1), (1, 0)):
        primitives = [{"indices": 0, "attributes": {"POSITION": 1 + each}, "material": each} for each in order]
        far = [(x, y, -0.01) for x, y, _ in CORNERS]
        arrays = numbers(TRIANGLES, "u2"), numbers(CORNERS), numbers(far)
        document = {"meshes": [{"primitives": primitives}], "materials": materials}
        pictures.append(photo(write(tmp_path, gltf(document, *arrays)))[32, 32])
    red, green, blue, alpha = pictures[0].astype(int)
    assert alpha == pytest.approx(191, abs=2)
    assert red == pytest.approx(2 * blue, rel=0.05)
    assert red > 50
    assert green < 10
    assert pictures[0].tolist() == pictures[1].tolist()


def test_the_alpha_of_corners_and_factors_counts(tmp_path: Path) -> None:
    paint = {"COLOR_0": numbers([(1, 1, 1, 0.5)] * 4)}
    glass = {**base(baseColorFactor=[1, 1, 1, 0.5]), "alphaMode": "BLEND"}
    assert photo(write(tmp_path, square(glass, more=paint)))[32, 32, 3] == pytest.approx(64, abs=1)
    assert photo(write(tmp_path, square(base(baseColorFactor=[1, 1, 1, 0.5]), more=paint)))[32, 32, 3] == 255


def test_texture_coordinates_may_be_quantised_or_another_set(tmp_path: Path) -> None:
    turned = [(1, 0), (0, 0), (0, 1), (1, 1)]  # by half a turn
    expected = [[YELLOW, BLUE], [GREEN, RED]]
    bytes_ = numbers(np.array(turned) * 255, "u1", normalized=True)
    path = write(tmp_path, square(TEXTURED, enlarged(FOUR), {"TEXCOORD_0": bytes_}))
    assert hues(path) == expected
    second = base(baseColorTexture={"index": 0, "texCoord": 1})
    assert hues(write(tmp_path, square(second, enlarged(FOUR), {"TEXCOORD_1": numbers(turned)}))) == expected
    with pytest.raises(UserError, match="no TEXCOORD_1"):
        read_mesh(write(tmp_path, square(second, enlarged(FOUR))))


def test_positions_may_be_quantised(tmp_path: Path) -> None:
    flat = numbers(np.array(CORNERS) * 127, "i1", normalized=True)
    document = {"extensionsUsed": ["KHR_mesh_quantization"], "extensionsRequired": ["KHR_mesh_quantization"]}
    path = write(tmp_path, square(TEXTURED, enlarged(FOUR), {"POSITION": flat}, **document))
    assert hues(path) == FOUR


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"offset": [0.5, 0]}, [[GREEN, RED], [YELLOW, BLUE]]),
        ({"offset": [0, 0.5]}, [[BLUE, YELLOW], [RED, GREEN]]),
        ({"scale": [0.5, 0.5]}, [[RED, RED], [RED, RED]]),
        ({"scale": [0.5, 0.5], "offset": [0.5, 0.5]}, [[YELLOW, YELLOW], [YELLOW, YELLOW]]),
        # Counter-clockwise: the right of the square takes what lies above.
        ({"rotation": np.pi / 2, "offset": [0, 1]}, [[BLUE, RED], [YELLOW, GREEN]]),
        ({"texCoord": 1}, [[YELLOW, BLUE], [GREEN, RED]]),
    ],
)
def test_a_texture_is_moved_as_its_transform_says(
    tmp_path: Path, transform: dict[str, Any], expected: list[list[tuple[int, int, int]]]
) -> None:
    material = base(baseColorTexture={"index": 0, "extensions": {"KHR_texture_transform": transform}})
    turned = {"TEXCOORD_1": numbers([(1, 0), (0, 0), (0, 1), (1, 1)])}
    assert hues(write(tmp_path, square(material, enlarged(FOUR), turned))) == expected


def test_a_texture_ends_or_goes_on_as_its_sampler_says(tmp_path: Path) -> None:
    wide = {"TEXCOORD_0": numbers([(1, 1), (3, 1), (3, 0), (1, 0)])}  # beyond the right edge
    for wrap, expected in (
        (33071, [[GREEN, GREEN], [YELLOW, YELLOW]]),
        (33648, [[GREEN, RED], [YELLOW, BLUE]]),
    ):
        document = {"samplers": [{"wrapS": wrap, "wrapT": wrap}], "textures": [{"source": 0, "sampler": 0}]}
        path = write(tmp_path, square(TEXTURED, enlarged(FOUR), wide, **document))
        seen = photo(path)
        quarter = [[seen[row, column, :3] > 100 for column in (17, 37)] for row in (TOP, BOTTOM)]
        assert (np.array(quarter) * 255).tolist() == [[list(each) for each in row] for row in expected]


def test_textures_lie_beside_the_file_or_in_it(tmp_path: Path) -> None:
    (tmp_path / "My Texture.png").write_bytes(enlarged(FOUR))
    inside = "data:image/png;base64," + base64.b64encode(enlarged(FOUR)).decode()
    for uri in ("My%20Texture.png", "My Texture.png", "my texture.PNG", r"C:\art\My Texture.png", inside):
        assert hues(write(tmp_path, square(TEXTURED, images=[{"uri": uri}], textures=[{"source": 0}]))) == FOUR
    for uri in ("gone.png", "gone\udcff\n.png", "a" * 5000, "gone\0.png"):
        with pytest.raises(UserError, match="which is not there") as error:
            read_mesh(
                write(
                    tmp_path,
                    square(
                        TEXTURED, images=[{"uri": uri.encode("utf-8", "replace").decode()}], textures=[{"source": 0}]
                    ),
                )
            )
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="only files beside it"):
        read_mesh(write(tmp_path, square(TEXTURED, images=[{"uri": "https://x.y/z.png"}], textures=[{"source": 0}])))
    with pytest.raises(UserError, match=r"gone\.bin"):
        read_mesh(write(tmp_path, square(buffers=[{"byteLength": 9, "uri": "gone.bin"}])))


def test_a_texture_of_16_bits_or_of_grey_is_read(tmp_path: Path) -> None:
    grey = np.full((4, 4), 32768, dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    assert texels(write(tmp_path, square(TEXTURED, file.getvalue())))[0, 0].tolist() == [128, 128, 128]


def test_the_older_way_to_give_a_base_colour_is_read(tmp_path: Path) -> None:
    glossy = {"extensions": {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0.5, 0, 0, 1]}}}
    assert colours(write(tmp_path, square(glossy)))[0].tolist() == [coded(0.5), 0, 0]


# glTF's geometry


def test_a_skinned_model_stands_where_its_joints_are(tmp_path: Path) -> None:
    """The armature turns the model upright, and the node that holds it would turn it once more."""
    lying = [(x, 0, -y) for x, y, _ in CORNERS]  # as modelled: y forward
    quarter = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]  # about x: what lies stands up
    primitive = {
        "indices": 0,
        "material": 0,
        "attributes": {"POSITION": 1, "TEXCOORD_0": 2, "JOINTS_0": 3, "WEIGHTS_0": 4},
    }
    arrays = [
        numbers(TRIANGLES, "u2"),
        numbers(lying),
        numbers([(0, 1), (1, 1), (1, 0), (0, 0)]),
        numbers([(0, 1, 0, 0)] * 4, "u1"),
        numbers([(0.5, 0.5, 0, 0)] * 4),
        numbers([np.eye(4)] * 2),
    ]
    document = {
        "meshes": [{"primitives": [primitive]}],
        "materials": [TEXTURED],
        "textures": [{"source": 0}],
        "nodes": [
            {"children": [1, 2], "rotation": quarter},
            {"mesh": 0, "skin": 0, "rotation": quarter, "translation": [9, 9, 9]},
            {"children": [3]},
            {},
        ],
        "skins": [{"joints": [2, 3], "inverseBindMatrices": 5}],
    }
    assert hues(write(tmp_path, gltf(document, *arrays, texture=enlarged(FOUR)))) == FOUR
    arrays[3] = numbers([(0, 9, 0, 0)] * 4, "u1")
    with pytest.raises(UserError, match="joints beyond the 2"):
        read_mesh(write(tmp_path, gltf(document, *arrays, texture=enlarged(FOUR))))


def test_morph_targets_are_applied_by_their_weights(tmp_path: Path) -> None:
    flat = numbers([(x, 0, 0) for x, _, _ in CORNERS])
    target = numbers([(0, 2 * y, 0) for _, y, _ in CORNERS])
    primitive = {"indices": 0, "attributes": {"POSITION": 1}, "targets": [{"POSITION": 2}]}
    mesh = {"primitives": [primitive], "weights": [0.5]}
    path = write(tmp_path, gltf({"meshes": [mesh]}, numbers(TRIANGLES, "u2"), flat, target))
    assert photo(path)[TOP, LEFT, 3] == 255


@pytest.mark.parametrize(("mode", "corners"), [(4, TRIANGLES), (5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])])
def test_triangles_come_alone_in_strips_and_in_fans(tmp_path: Path, mode: int, corners: list[int]) -> None:
    primitive = {"indices": 0, "attributes": {"POSITION": 1}, "mode": mode}
    path = write(tmp_path, gltf({"meshes": [{"primitives": [primitive]}]}, numbers(corners, "u1"), numbers(CORNERS)))
    alpha = photo(path)[..., 3]
    assert all(alpha[row, column] == 255 for row in (TOP, BOTTOM) for column in (LEFT, RIGHT))


def test_sparse_and_interleaved_numbers_are_read(tmp_path: Path) -> None:
    sparse = {
        "count": 1,
        "indices": {"bufferView": 2, "componentType": 5121},
        "values": {"bufferView": 3},
    }
    wrong = np.array(CORNERS, dtype=float)
    wrong[3] = (5, 5, 5)
    both = np.concatenate([wrong, wrong], axis=1)  # stride 24
    content = gltf(
        {
            "meshes": [{"primitives": [{"indices": 0, "attributes": {"POSITION": 1}}]}],
            "accessors": [
                {"bufferView": 0, "componentType": 5121, "count": 6, "type": "SCALAR"},
                {"bufferView": 1, "componentType": 5126, "count": 4, "type": "VEC3", "sparse": sparse},
            ],
            "bufferViews": [
                {"buffer": 0, "byteOffset": 0, "byteLength": 6},
                {"buffer": 0, "byteOffset": 8, "byteLength": 96, "byteStride": 24},
                {"buffer": 0, "byteOffset": 104, "byteLength": 1},
                {"buffer": 0, "byteOffset": 108, "byteLength": 12},
            ],
        },
        numbers(TRIANGLES, "u1"),
        numbers(both.reshape(-1, 3)),
        numbers([3], "u1"),
        numbers([CORNERS[3]]),
    )
    alpha = photo(write(tmp_path, content))[..., 3]
    assert all(alpha[row, column] == 255 for row in (TOP, BOTTOM) for column in (LEFT, RIGHT))


def test_only_the_scene_of_the_file_is_shown(tmp_path: Path) -> None:
    nodes = [{"mesh": 0}, {"mesh": 0, "translation": [50, 0, 0]}]
    path = write(tmp_path, square(nodes=nodes, scenes=[{"nodes": [1]}, {"nodes": [0]}], scene=1))
    assert photo(path)[TOP, LEFT, 3] == 255


def test_an_extension_that_is_not_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_mesh(write(tmp_path, square(extensionsUsed=["EXT_mesh_gpu_instancing", "KHR_materials_clearcoat"])))
    assert "EXT_mesh_gpu_instancing" in caplog.text
    assert "clearcoat" not in caplog.text


# OBJ with MTL


@pytest.mark.parametrize(
    ("named", "lies"),
    [
        ("square.png", "square.png"),
        ("Square.PNG", "square.png"),
        ("my texture.png", "my texture.png"),
        ("my%20texture.png", "my texture.png"),
        (r"textures\square.png", "textures/square.png"),
        (r"C:\Users\me\Square.png", "square.png"),
        ("/home/me/art/square.png", "square.png"),
        ("Maps/square.png", "maps/square.png"),
        ("square.png", "../materials/textures/square.png"),
        ("square.png", "../textures/square.png"),
        ("-s 1 1 1 -o 0 0 0 square.png", "square.png"),
        ("-clamp on -blendu off -mm 0 1 -bm 1.0 my texture.png", "my texture.png"),
    ],
)
def test_a_texture_is_found_as_it_is_named(tmp_path: Path, named: str, lies: str) -> None:
    folder = tmp_path / "shoe" / "meshes"
    folder.mkdir(parents=True)
    assert hues(obj_square(folder, f"newmtl paint\nmap_Kd {named}\n", texture=lies)) == FOUR


def test_options_move_and_scale_a_texture(tmp_path: Path) -> None:
    for options, expected in (
        ("-o 0.5 0", [[GREEN, RED], [YELLOW, BLUE]]),
        ("-s 0.5 0.5 1", [[BLUE, BLUE], [BLUE, BLUE]]),
        ("-s 0.5 0.5 -o 0.5", [[YELLOW, YELLOW], [YELLOW, YELLOW]]),
    ):
        assert hues(obj_square(tmp_path, f"newmtl paint\nmap_Kd {options} square.png\n")) == expected
    with pytest.raises(UserError, match="turbulence is not supported"):
        read_mesh(obj_square(tmp_path, "newmtl paint\nmap_Kd -t 1 1 1 square.png\n"))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    path = obj_square(tmp_path, "newmtl paint\nmap_Kd gone.png\n")
    with pytest.raises(UserError, match=r"square\.obj: names the file 'gone\.png', which is not there"):
        read_mesh(path)
    (tmp_path / "square.mtl").unlink()
    with pytest.raises(UserError, match=r"square\.mtl', which is not there"):
        read_mesh(path)
    (tmp_path / "Square.MTL").write_text(MTL)
    assert hues(path) == FOUR


def test_materials_that_no_face_uses_are_not_looked_for(tmp_path: Path) -> None:
    path = obj_square(tmp_path, MTL + "newmtl other\nmap_Kd gone.png\n")
    assert hues(path) == FOUR


def test_a_material_that_is_not_there_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert colours(obj_square(tmp_path, "newmtl other\nKd 1 0 0\n"))[0].tolist() == [190, 190, 190]
    assert "has no material 'paint'" in caplog.text


def test_the_colours_of_material_texture_and_corners_are_multiplied(tmp_path: Path) -> None:
    assert hues(obj_square(tmp_path, MTL + "Kd 1 0 1\n")) == [[RED, BLACK], [BLUE, RED]]
    painted = OBJ.replace(" 0\n", " 0 1 0.5 0\n", 4)
    path = obj_square(tmp_path, "newmtl paint\nKd 0.5 1 1\n", painted)
    assert colours(path)[0].tolist() == [128, 128, 0]
    assert colours(obj_square(tmp_path, "newmtl paint\nKd 0.5 0.25 0\n"))[0].tolist() == [128, 64, 0]


def test_what_a_material_says_of_transparency_is_seen(tmp_path: Path) -> None:
    for line, alpha in (("d 0.5", 128), ("Tr 0.75", 64), ("d -halo 0.5", 128), ("d 1.0", 255)):
        assert photo(obj_square(tmp_path, MTL + line))[TOP, LEFT, 3] == pytest.approx(alpha, abs=1)
    (tmp_path / "holes.png").write_bytes(enlarged([[255, 0], [128, 255]]))
    picture = photo(obj_square(tmp_path, MTL + "map_d holes.png"))
    seen = [picture[row, column, 3] for row in (TOP, BOTTOM) for column in (LEFT, RIGHT)]
    assert seen == pytest.approx([255, 0, 128, 255], abs=1)


def test_several_libraries_and_a_name_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "other.mtl").write_text("newmtl other\nKd 1 0 0\n")
    assert hues(obj_square(tmp_path, text=OBJ.replace("square.mtl", "other.mtl square.mtl"))) == FOUR
    (tmp_path / "my square.mtl").write_text(MTL)
    assert hues(obj_square(tmp_path, text=OBJ.replace("square.mtl", "my square.mtl"))) == FOUR


def test_faces_count_back_go_on_and_have_any_number_of_corners(tmp_path: Path) -> None:
    text = OBJ.replace("f 1/1 2/2 3/3 4/4", "f -4/-4 -3/-3 \\\n-2/-2 # a comment\nf 1/1/ 3/3/ 4/4/")
    assert hues(obj_square(tmp_path, text=text)) == FOUR
    assert hues(obj_square(tmp_path, text=OBJ.replace("\n", "\r\n"))) == FOUR


# PLY and STL


def test_faces_keep_colours_of_their_own(tmp_path: Path) -> None:
    """Left red and right green, along a sharp line; of a square, a triangle and another, which are three sizes."""
    vertices = ["-1 0 -1", "0 0 -1", "1 0 -1", "1 0 1", "0 0 1", "-1 0 1"]
    faces = ["4 0 1 4 5 200 0 0", "3 1 2 3 0 200 0", "3 1 3 4 0 200 0"]
    face = "uchar red;uchar green;uchar blue"
    path = write(tmp_path, ply(vertices, faces, face=face), "a.ply")
    picture = photo(path)
    for column in (LEFT, 30):
        assert picture[TOP, column, 0] > 100
        assert picture[TOP, column, 1] < 10
    for column in (33, RIGHT):
        assert picture[TOP, column, 1] > 100
        assert picture[TOP, column, 0] < 10


def test_colours_of_bytes_and_of_floats_are_the_same(tmp_path: Path) -> None:
    for kind, colour in (("uchar", "51 102 255"), ("float", "0.2 0.4 1"), ("ushort", "13107 26214 65535")):
        vertex = f"{kind} red;{kind} green;{kind} blue"
        path = write(tmp_path, ply([f"{each} {colour}" for each in PLY_CORNERS], ["4 0 1 2 3"], vertex), "a.ply")
        assert colours(path)[0].tolist() == [51, 102, 255]


@pytest.mark.parametrize("names", ["s;t", "u;v", "texture_u;texture_v"])
def test_a_ply_has_a_texture_at_its_corners(tmp_path: Path, names: str) -> None:
    (tmp_path / "square.png").write_bytes(enlarged(FOUR))
    vertex = ";".join(f"float {name}" for name in names.split(";"))
    vertices = [f"{each} {uv}" for each, uv in zip(PLY_CORNERS, ("0 0", "1 0", "1 1", "0 1"), strict=True)]
    content = ply(vertices, ["4 0 1 2 3"], vertex, comment="TextureFile Square.PNG")
    assert hues(write(tmp_path, content, "a.ply")) == FOUR
    (tmp_path / "square.png").unlink()
    with pytest.raises(UserError, match=r"Square\.PNG', which is not there"):
        read_mesh(write(tmp_path, content, "a.ply"))


def test_a_ply_has_textures_at_the_corners_of_its_faces(tmp_path: Path) -> None:
    """Two files; each face says which."""
    (tmp_path / "a.png").write_bytes(enlarged(FOUR))
    (tmp_path / "b.png").write_bytes(enlarged([[WHITE, WHITE], [WHITE, WHITE]]))
    faces = ["3 0 1 2 6 0 0 1 0 1 1 0", "3 0 2 3 6 0 0 1 1 0 1 1"]
    face = "list uchar float texcoord;int texnumber"
    content = ply(PLY_CORNERS, faces, face=face, comment="TextureFile a.png\ncomment TextureFile b.png")
    assert hues(write(tmp_path, content, "a.ply"))[0][0] == WHITE
    assert hues(write(tmp_path, content, "a.ply"))[1][1] == YELLOW


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("sizes", [(3, 3), (3, 4)])
def test_a_binary_ply_of_either_order(tmp_path: Path, order: str, sizes: tuple[int, int]) -> None:
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    text = ply(PLY_CORNERS, ["", ""]).replace(b"ascii", name.encode())
    header = text[: text.index(b"end_header\n") + 11]
    corners = np.array([each.split() for each in PLY_CORNERS], dtype=f"{order}f4").tobytes()
    lists = {3: [[0, 1, 2], [0, 2, 3]], 4: [[], [0, 1, 2, 3]]}
    faces = b""
    for index, size in enumerate(sizes):
        faces += struct.pack(f"{order}B{size}i", size, *lists[size][index])
    path = write(tmp_path, header + corners + faces, "a.ply")
    alpha = photo(path)[..., 3]
    assert all(alpha[row, column] == 255 for row in (TOP, BOTTOM) for column in (LEFT, RIGHT))
    with pytest.raises(UserError, match="cut short"):
        read_mesh(write(tmp_path, (header + corners + faces)[:-2], "a.ply"))


def test_an_stl_in_text(tmp_path: Path) -> None:
    facet = "facet normal 0 0 1\nouter loop\nvertex {}\nvertex {}\nvertex {}\nendloop\nendfacet\n"
    facets = facet.format(*PLY_CORNERS[:3]) + facet.format(PLY_CORNERS[0], *PLY_CORNERS[2:])
    text = f"solid a vertex\n{facets}endsolid a\n"
    with pytest.raises(UserError, match="no corners"):
        read_mesh(write(tmp_path, text.replace("vertex 1 0", "vertex 1", 1).encode(), "a.stl"))
    alpha = photo(write(tmp_path, text.replace("solid a vertex", "solid a").upper().encode(), "a.stl"))[..., 3]
    assert all(alpha[row, column] == 255 for row in (TOP, BOTTOM) for column in (LEFT, RIGHT))


# What is not seen


@pytest.mark.parametrize(
    "content",
    [
        square({**base(baseColorFactor=[1, 1, 1, 0]), "alphaMode": "BLEND"}),
        square({**base(baseColorFactor=[1, 1, 1, 0.2]), "alphaMode": "MASK"}),
        square(more={"POSITION": numbers([(0, y, 0) for _, y, _ in CORNERS])}),
    ],
    ids=["transparent", "below the cutoff", "a line"],
)
def test_a_mesh_of_which_nothing_is_seen_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match="nothing of it is seen in view 0 ") as error:
        photograph_mesh(path, [FRONT], 64)
    assert str(error.value).startswith(str(path))


# Damaged files


def glb_reader() -> Reader:
    paint = {"COLOR_0": numbers([(255, 51, 0, 255)] * 4, "u1", normalized=True)}
    factor = {**base(baseColorTexture={"index": 0}, baseColorFactor=[1, 1, 0.5, 0.9]), "alphaMode": "MASK"}
    return square(factor, png(FOUR), paint), "a.glb", read_mesh


def gltf_reader() -> Reader:
    """A skin, a morph target and strips, in text."""
    arrays = [
        numbers([0, 1, 3, 2], "u1"),
        numbers(CORNERS),
        numbers([(0, 0, 0, 0)] * 4, "u1"),
        numbers([(1, 0, 0, 0)] * 4),
        numbers([np.eye(4)]),
    ]
    attributes = {"POSITION": 1, "JOINTS_0": 2, "WEIGHTS_0": 3}
    primitive = {"indices": 0, "mode": 5, "attributes": attributes, "targets": [{"POSITION": 1}]}
    document = {
        "meshes": [{"primitives": [primitive], "weights": [0.5]}],
        "nodes": [{"mesh": 0, "skin": 0, "children": [1]}, {"rotation": [0, 0, 0.6, 0.8]}],
        "skins": [{"joints": [1], "inverseBindMatrices": 4}],
    }
    content = gltf(document, *arrays)
    length = struct.unpack("<I", content[12:16])[0]
    whole = json.loads(content[20 : 20 + length])
    binary = base64.b64encode(content[28 + length :]).decode()
    whole["buffers"][0]["uri"] = f"data:application/octet-stream;base64,{binary}"
    return json.dumps(whole).encode(), "a.gltf", read_mesh


def obj_reader() -> Reader:
    return OBJ.replace("mtllib square.mtl\n", "").replace(" 0\n", " 0 1 0.5 0\n", 4).encode(), "a.obj", read_mesh


def mtl_reader() -> Reader:
    mtl = (
        MTL.replace("square.png", "-s 1 1 -o 0.5 square.png")
        + "Kd 0.5 1 1\nd 0.5\nmap_d -s 1 1 -o 0.5 -imfchan l square.png\n"
    )

    def read(path: Path) -> object:
        return read_mesh(obj_square(path.parent, path.read_bytes().decode("latin-1")))

    return mtl.encode(), "damaged.mtl", read


def ply_reader() -> Reader:
    vertex = "uchar red;uchar green;uchar blue"
    return ply([f"{each} 9 9 200" for each in PLY_CORNERS], ["3 0 1 2", "4 0 1 2 3"], vertex), "a.ply", read_mesh


def binary_ply_reader() -> Reader:
    text = ply(PLY_CORNERS, ["", ""]).replace(b"ascii", b"binary_little_endian")
    header = text[: text.index(b"end_header\n") + 11]
    corners = np.array([each.split() for each in PLY_CORNERS], dtype="<f4").tobytes()
    faces = struct.pack("<B3iB4i", 3, 0, 1, 2, 4, 0, 1, 2, 3)
    return header + corners + faces, "a.ply", read_mesh


def stl_reader() -> Reader:
    return stl(), "a.stl", read_mesh


READERS: list[Callable[[], Reader]] = [
    *(glb_reader, gltf_reader, obj_reader, mtl_reader, ply_reader, binary_ply_reader, stl_reader)
]


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused_in_a_line(reader: Callable[[], Reader]) -> None:
    survives(f"tests.world.test_meshes:{reader.__name__}", 100)
