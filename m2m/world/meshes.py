"""Meshes that people have, with their textures or colours, made ready for a studio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyvista as pv
import trimesh
from numpy.typing import NDArray

from m2m.errors import UserError
from m2m.world.cameras import Camera
from m2m.world.studio import COLOURS, Part, Studio

FORMATS: Final[dict[str, Literal["y", "z"]]] = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "z", ".stl": "z"}
"""What can be read, and which axis points up in such files."""
RADIUS: Final = 0.9
"""Of the sphere about the origin that an object is made to fill: the world's cameras see all of it."""
GREY: Final = (190, 190, 190)

_Z_UP = {"y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), "z": np.eye(3)}


def read_mesh(path: Path) -> list[Part]:
    """The parts of a mesh file, upright (z up), in the middle of the world, within `RADIUS`.

    Raises:
        UserError: the file cannot be read or shows nothing; names it.
    """
    up = FORMATS.get(path.suffix.lower())
    if up is None:
        raise UserError(f"{path}: not a mesh that can be read; give one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a mesh")
    try:
        pieces = [piece for piece in trimesh.load_scene(path).dump() if isinstance(piece, trimesh.Trimesh)]
        parts = [_part(piece) for piece in pieces if len(piece.faces)]
    except Exception as error:  # whatever the readers of five formats raise for what is damaged or missing
        raise UserError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {error})") from error
    if not parts:
        raise UserError(f"{path}: holds no faces; give a mesh with a surface")
    points = np.concatenate([part.mesh.points for part in parts]).astype(float)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.linalg.norm(points - middle, axis=1).max()
    if not (np.isfinite(radius) and radius > 0):
        raise UserError(f"{path}: has no extent, or corners that are not finite; give a mesh with a surface")
    place = np.eye(4)
    place[:3, :3] = RADIUS / radius * _Z_UP[up]
    place[:3, 3] = -place[:3, :3] @ middle
    return [Part(mesh=part.mesh, colour=part.colour, place=place, texture=part.texture) for part in parts]


def photograph_mesh(path: Path, cameras: Sequence[Camera], size: int) -> NDArray[np.uint8]:
    """A mesh cut out, seen by each camera: (n, size, size, 4) RGBA, colours not multiplied by alpha.

    Raises:
        UserError: the file cannot be read or shows nothing; names it.
    """
    parts = read_mesh(path)
    with Studio(size) as studio:  # one for each mesh, so that none stays in memory
        return studio.photograph(parts, cameras)


def _part(piece: Any) -> Part:
    """A piece of a scene with its texture, else its vertices' or faces' colours, else its material's colour."""
    mesh = pv.PolyData.from_regular_faces(np.asarray(piece.vertices, dtype=float), np.asarray(piece.faces))
    visual, colour, texture = piece.visual, GREY, None
    if visual.kind == "texture":
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None and visual.uv is not None and len(visual.uv) == mesh.n_points:
            mesh.active_texture_coordinates = np.asarray(visual.uv, dtype=np.float32)
            texture = pv.numpy_to_texture(np.asarray(image.convert("RGB")))
            colour = (255, 255, 255)
        else:
            red, green, blue = (int(channel) for channel in np.asarray(material.main_color)[:3])
            colour = (red, green, blue)
    elif visual.kind in ("vertex", "face"):
        mesh.point_data[COLOURS] = np.asarray(visual.vertex_colors)[:, :3].astype(np.uint8)
    with_normals = mesh.compute_normals(cell_normals=False, split_vertices=True, feature_angle=30.0)
    return Part(mesh=pv.PolyData(with_normals), colour=colour, place=np.eye(4), texture=texture)
