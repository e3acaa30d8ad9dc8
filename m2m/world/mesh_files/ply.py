"""PLY (the Stanford polygon format): polygons with colours at corners or faces, or with textures as MeshLab writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from m2m.world.mesh_files.ply_elements import Element, Values, read_binary, read_header, read_text
from m2m.world.mesh_files.source import LARGEST_TEXT, Source, shown
from m2m.world.mesh_files.surface import GREY, WHITE, Floats, Surface, Texture, check_faces, fans

_FULL: Final = {"u1": 255.0, "u2": 65535.0, "i4": 255.0, "u4": 255.0}
"""What is one in a colour: integers wider than 16 bits hold what a byte does."""


def read_ply(source: Source) -> Iterator[Surface]:
    """The polygons; a surface for each texture.

    Raises:
        ValueError: the file is damaged, or names a texture that is not there.
    """
    content = source.read()
    order, elements, textures, start = read_header(content)
    if order:
        values = read_binary(memoryview(content)[start:], order, elements)
    else:
        if len(content) > LARGEST_TEXT:
            raise ValueError(f"is larger than {LARGEST_TEXT >> 20} MiB of text; save it as binary PLY")
        values = read_text(content[start:], elements)
    named = {element.name: element for element in elements}
    if "vertex" not in values or "face" not in values:
        raise ValueError("holds no faces; give a mesh with a surface")
    corners, polygons = values["vertex"], values["face"]
    points = np.stack([_scalar(corners, axis) for axis in "xyz"], axis=1)
    listed = polygons.lists.get("vertex_indices") or polygons.lists.get("vertex_index")
    if listed is None:
        raise ValueError("has faces without a list vertex_indices")
    places = fans(listed[1])  # (m, 3)
    of_face = np.repeat(np.arange(len(listed[1])), np.maximum(listed[1] - 2, 0))  # (m,)
    faces = listed[0].astype(np.int64)[places]
    check_faces(faces, len(points))

    uv = _uv(corners)
    if "texcoord" in polygons.lists:  # a pair at each corner of each face: no two faces share a corner then
        pairs, sizes = polygons.lists["texcoord"]
        if not np.array_equal(sizes, 2 * listed[1]):
            raise ValueError("has faces whose texcoord does not hold two numbers a corner")
        uv = pairs.reshape(-1, 2)[places].reshape(-1, 2)
        unshared = faces.reshape(-1)
        faces = np.arange(len(unshared)).reshape(-1, 3)
    else:
        unshared = np.arange(len(points))
    point_colours = _colours(corners, named["vertex"])
    face_colours = _colours(polygons, named["face"])
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
    number = polygons.scalars.get("texnumber", np.zeros(len(listed[1])))[of_face]
    if not np.isin(number, np.arange(len(textures))).all():
        raise ValueError(f"has faces with a texnumber beyond its {len(textures)} textures")
    for index, name in enumerate(textures):
        chosen = number == index
        if chosen.any():
            image = source.picture(source.find(name), name)
            source.charge(image)
            yield Surface(
                points=whole.points,
                faces=faces[chosen],
                point_colours=whole.point_colours,
                face_colours=None if whole.face_colours is None else whole.face_colours[chosen],
                texture=Texture(image=image),
                uv=uv,
                alpha_mode="BLEND",
            )


def _scalar(values: Values, name: str) -> Floats:
    if name not in values.scalars:
        raise ValueError(f"has corners without {name}")
    return values.scalars[name]


def _uv(values: Values) -> Floats | None:
    for pair in (("texture_u", "texture_v"), ("u", "v"), ("s", "t")):
        if all(name in values.scalars for name in pair):
            return np.stack([values.scalars[name] for name in pair], axis=1)
    return None


def _colours(values: Values, element: Element) -> Floats | None:
    """(n, 4), or nothing if there are none."""
    for prefix in ("", "diffuse_"):
        names = [f"{prefix}{channel}" for channel in ("red", "green", "blue")]
        if all(name in values.scalars for name in names):
            channels = [values.scalars[name] / _FULL.get(element.kind(name), 1.0) for name in names]
            alpha = "alpha"
            channels.append(
                values.scalars[alpha] / _FULL.get(element.kind(alpha), 1.0)
                if alpha in values.scalars
                else np.ones_like(channels[0])
            )
            return np.stack(channels, axis=1)
    return None
