"""Meshes that people have, with their textures or colours, made ready for a studio."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pyvista as pv
from numpy.typing import NDArray

from m2m.errors import UserError
from m2m.world.cameras import Camera
from m2m.world.mesh_files import Floats, MeshFile, Surface, check_count, shown
from m2m.world.mesh_files.gltf import read_gltf
from m2m.world.mesh_files.obj import read_obj
from m2m.world.mesh_files.ply_stl import read_ply, read_stl
from m2m.world.studio import SURFACE_COLOURS, Part, Studio

Reader = Callable[[MeshFile], Iterator[Surface]]

_Y_UP: Final = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
_Z_UP: Final = np.eye(3)
FORMATS: Final[dict[str, tuple[Reader, NDArray[np.float64]]]] = {
    ".glb": (read_gltf, _Y_UP),
    ".gltf": (read_gltf, _Y_UP),
    ".obj": (read_obj, _Y_UP),
    ".ply": (read_ply, _Z_UP),
    ".stl": (read_stl, _Z_UP),
}
"""What can be read, by what, and what takes the axes of such files to the world's."""
RADIUS: Final = 0.9
"""Of the sphere about the origin that an object is made to fill: the world's cameras see all of it."""
MOST_PARTS: Final = 2000
"""That a studio shows at a time."""


def read_mesh(path: Path) -> list[Part]:
    """The parts of a mesh file, upright (z up), in the middle of the world, within `RADIUS`.

    Raises:
        UserError: the file cannot be read, needs what is not supported, or shows nothing; names it.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: not a mesh that can be read; give one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a mesh")
    read, axes = FORMATS[path.suffix.lower()]
    try:
        with np.errstate(all="ignore"):  # what overflows is not finite, and refused as that
            surfaces = [surface.checked() for surface in read(MeshFile(path)) if len(surface.faces)]
            return [_part(alike) for alike in _alike(_placed(surfaces, axes))]
    except (ValueError, OSError, MemoryError) as error:
        reason = str(error) if isinstance(error, ValueError) else shown(f"{type(error).__name__}: {error}")
        raise UserError(f"{path}: {reason}") from error


def photograph_mesh(path: Path, cameras: Sequence[Camera], size: int) -> NDArray[np.uint8]:
    """A mesh cut out, seen by each camera: (n, size, size, 4) RGBA, colours not multiplied by alpha.

    Raises:
        UserError: the file cannot be read or shows nothing; names it.
    """
    parts = read_mesh(path)
    with closing(Studio(size)) as studio:  # one for each mesh, so that none stays in memory
        pictures = studio.photograph(parts, cameras)
    blank = np.flatnonzero(~pictures[..., 3].any(axis=(1, 2)))
    if len(blank):
        raise UserError(
            f"{path}: nothing of it is seen in view {blank[0]} ({len(blank)} of {len(cameras)} are blank); "
            "give a mesh that is neither transparent nor too thin"
        )
    return pictures


def _placed(surfaces: Sequence[Surface], axes: Floats) -> list[Surface]:
    """Surfaces turned, moved and scaled together, before their numbers lose digits as 32-bit floats.

    Raises:
        ValueError: there are none, or they have no extent.
    """
    if not surfaces:
        raise ValueError("holds no faces; give a mesh with a surface")
    check_count(sum(len(surface.faces) for surface in surfaces))
    corners = [(surface.points.min(axis=0), surface.points.max(axis=0)) for surface in surfaces]
    middle = (np.min([low for low, _ in corners], axis=0) + np.max([high for _, high in corners], axis=0)) / 2
    radius = max(np.linalg.norm(surface.points - middle, axis=1).max() for surface in surfaces)
    if not 0 < radius < np.inf:
        raise ValueError("has no extent, or one that is not finite; give a mesh with a surface")
    return [replace(each, points=RADIUS * ((each.points - middle) / radius) @ axes.T) for each in surfaces]


def _alike(surfaces: Sequence[Surface]) -> Collection[list[Surface]]:
    """Surfaces by what a studio must know apart, since a scene may have a node for each screw.

    Raises:
        ValueError: these are too many for a studio.
    """
    groups: dict[tuple[object, ...], list[Surface]] = {}
    for surface in surfaces:
        mode = "OPAQUE" if surface.alpha_mode == "BLEND" and _is_opaque(surface) else surface.alpha_mode
        cutoff = surface.alpha_cutoff if mode == "MASK" else None
        key = (id(surface.texture), mode, cutoff, surface.face_colours is None)
        groups.setdefault(key, []).append(replace(surface, alpha_mode=mode))
    if len(groups) > MOST_PARTS:
        raise ValueError(f"has more than {MOST_PARTS} materials; give a simpler mesh")
    return groups.values()


def _is_opaque(surface: Surface) -> bool:
    colours = (surface.point_colours, surface.face_colours)
    return (
        surface.colour[3] >= 1
        and all(rgba is None or bool((rgba[:, 3] >= 1).all()) for rgba in colours)
        and (surface.texture is None or bool((np.asarray(surface.texture.image.convert("RGBA"))[..., 3] == 255).all()))
    )


def _part(surfaces: Sequence[Surface]) -> Part:
    """Surfaces that are alike, as one."""
    first = surfaces[0]
    starts = np.cumsum([0, *(len(each.points) for each in surfaces)])
    mesh = pv.PolyData.from_regular_faces(
        np.concatenate([each.points for each in surfaces]),
        np.concatenate([each.faces + start for each, start in zip(surfaces, starts, strict=False)]),
    )
    channels = 3 if first.alpha_mode == "OPAQUE" else 4
    rgba = np.concatenate([_bytes(each) for each in surfaces])
    (mesh.point_data if first.face_colours is None else mesh.cell_data)[SURFACE_COLOURS] = rgba[:, :channels]
    red, green, blue, _ = np.rint(rgba.mean(axis=0)).astype(int).tolist()
    texture = None
    if first.texture is not None:
        uv = np.concatenate([each.uv for each in surfaces if each.uv is not None])
        mesh.active_texture_coordinates = uv.astype(np.float32)
        texture = pv.numpy_to_texture(np.asarray(first.texture.image.convert("RGB" if channels == 3 else "RGBA")))
        texture.wrap = pv.Texture.WrapType[first.texture.wrap]
        texture.interpolate = first.texture.smooth
    with_normals = mesh.compute_normals(cell_normals=False, split_vertices=True, feature_angle=30.0)
    return Part(
        mesh=pv.PolyData(with_normals),
        colour=(red, green, blue),
        place=np.eye(4),
        texture=texture,
        alpha_mode=first.alpha_mode,
        alpha_cutoff=first.alpha_cutoff,
    )


def _bytes(surface: Surface) -> NDArray[np.uint8]:
    """(n, 4): the colours of faces, if they have some, else of points."""
    colours = surface.point_colours if surface.face_colours is None else surface.face_colours
    rgba = np.tile(surface.colour, (len(surface.points), 1)) if colours is None else colours * surface.colour
    return np.asarray(np.rint(255 * np.clip(rgba, 0, 1)), dtype=np.uint8)
