"""A photographer's studio for 3D parts: drawn off screen by PyVista, with fixed lights, supersampled.

The same parts and cameras give the same bytes, whatever was drawn before, in any process on one kind of machine.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Final, Literal, Self, TypeAlias

import numpy as np
import pyvista as pv
from numpy.typing import NDArray
from vtkmodules.vtkCommonCore import vtkLogger

from m2m.world.cameras import FIELD_OF_VIEW, Camera

SUPERSAMPLING: Final = 4

BACKGROUND: Final = ((226, 232, 240), (199, 208, 220))
"""RGB of the top row and of the bottom row; between them a straight gradient."""

LIGHTS: Final = (
    ((2.0, 3.0, 3.0), 0.62),
    ((0.5, -4.0, 1.5), 0.36),
    ((-4.0, 0.0, 1.0), 0.22),
    ((0.0, 0.0, -4.0), 0.1),
)
"""Direction in the world and intensity: a sun, two fills, what a table would reflect. None follows the camera."""

COLOURS: Final = "colours"
"""Data of a mesh's points or cells that have a colour each: 8-bit RGB or RGBA."""

AlphaMode: TypeAlias = Literal["OPAQUE", "MASK", "BLEND"]
"""What alpha means, in glTF's words: nothing; what is below a cutoff is not there; a surface is seen through."""

MOST_LAYERS: Final = 32
"""Surfaces before one another that are seen through."""

_MASK: Final = """//VTK::TCoord::Impl
  if (gl_FragData[0].a < {cutoff:.9f}) discard;
  gl_FragData[0].a = 1.0;
"""
"""After colour and texture, in the language of shaders."""

AMBIENT, DIFFUSE, SPECULAR, SPECULAR_POWER = 0.6, 0.68, 0.12, 18.0
"""Little highlight and no deep shadow: a colour must stay the one that a caption names."""


@dataclass(frozen=True)
class Part:
    """A mesh in one colour, in its place."""

    mesh: pv.PolyData
    """With point normals. A studio keeps every mesh that it has seen: hand it the same one again, not a copy."""

    colour: tuple[int, int, int]
    """8-bit RGB in full light; the darkest side keeps two thirds of it. Of a mesh with `COLOURS`: its highlights'."""

    place: NDArray[np.float64]
    """(4, 4): takes the mesh's own coordinates to the world's."""

    texture: pv.Texture | None = None
    """Lies over the mesh's texture coordinates and is multiplied by the colour."""

    alpha_mode: AlphaMode = "OPAQUE"
    """What the alpha of texture and `COLOURS` means."""

    alpha_cutoff: float = 0.5


class Studio:
    """An off-screen scene that is set up once and photographs one object after another.

    Holds a graphics context, which belongs to the process and the thread that made it. A context manager.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._process = os.getpid()
        pixels = size * SUPERSAMPLING
        with _quiet_start():
            self._plotter = pv.Plotter(off_screen=True, window_size=[pixels, pixels], lighting="none")
            self._plotter.disable_anti_aliasing()  # supersampling gives the same edges with every driver
            self._plotter.set_background("black")  # type: ignore[arg-type]  # adds nothing to what is seen through
            self._plotter.enable_depth_peeling(MOST_LAYERS, occlusion_ratio=0)  # type: ignore[arg-type]
            for position, intensity in LIGHTS:
                self._plotter.add_light(pv.Light(position=position, intensity=intensity, light_type="scene light"))
            self._plotter.show(auto_close=False, interactive=False)
        self._actors: dict[str, tuple[pv.PolyData, pv.Actor]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphics context. A closed studio takes no more pictures."""
        self._show(actor for _, actor in self._actors.values())  # the renderer frees what is shown
        self._plotter.close()

    def photograph(self, parts: Sequence[Part], cameras: Sequence[Camera]) -> NDArray[np.uint8]:
        """The parts alone, seen by each camera: (n, size, size, 4) RGBA, colours not multiplied by alpha.

        Raises:
            RuntimeError: in a forked child, where the driver's threads are missing and it would wait for ever.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a studio cannot be used in a forked process: start workers by 'spawn'")
        actors = [self._actor(slot, part) for slot, part in enumerate(parts)]
        for actor, part in zip(actors, parts, strict=True):
            actor.user_matrix = part.place
            actor.prop.color = part.colour
        self._show(actors)
        pictures = np.empty((len(cameras), self.size, self.size, 4), dtype=np.uint8)
        for picture, camera in zip(pictures, cameras, strict=True):
            picture[:] = self._shoot(camera)
        return pictures

    def _show(self, actors: Iterable[pv.Actor]) -> None:
        """These and no others, drawn in this order: where two surfaces are as near to the camera, the last is seen.

        Those that leave keep what the graphics context holds of them, which a renderer would free.
        """
        shown = self._plotter.renderer.GetViewProps()
        shown.RemoveAllItems()
        for actor in actors:
            shown.AddItem(actor)

    def _actor(self, slot: int, part: Part) -> pv.Actor:
        """The actor that shows a mesh, kept for the next object: two parts may share a mesh, so one for each slot."""
        mesh = part.mesh
        name = f"{slot} {id(mesh)}"  # the mesh is kept beside its actor, so that its id stays its own
        if name not in self._actors:
            coloured = COLOURS in mesh.point_data or COLOURS in mesh.cell_data
            actor = self._plotter.add_mesh(
                mesh,
                name=name,
                texture=part.texture,
                scalars=COLOURS if coloured else None,
                rgb=coloured,
                ambient=AMBIENT,
                diffuse=DIFFUSE,
                specular=SPECULAR,
                specular_power=SPECULAR_POWER,
                reset_camera=False,
                render=False,
            )
            if part.alpha_mode == "BLEND":
                actor.ForceTranslucentOn()
            else:
                actor.ForceOpaqueOn()
            if part.alpha_mode == "MASK":
                actor.GetShaderProperty().AddFragmentShaderReplacement(
                    "//VTK::TCoord::Impl", True, _MASK.format(cutoff=min(part.alpha_cutoff, 2.0)), False
                )
            self._actors[name] = mesh, actor
        return self._actors[name][1]

    def _shoot(self, camera: Camera) -> NDArray[np.uint8]:
        """(size, size, 4) RGBA, each pixel the mean of those that were drawn for it."""
        view = self._plotter.camera
        view.view_angle = FIELD_OF_VIEW
        view.position = tuple(camera.position)
        view.focal_point = (0.0, 0.0, 0.0)
        view.up = tuple(-camera.rotation[1])
        view.clipping_range = (0.05 * camera.distance, 3 * camera.distance)
        self._plotter.render()
        drawn = np.asarray(self._plotter.screenshot(return_img=True, transparent_background=True))
        sums = drawn.astype(np.uint16)  # (4 size, 4 size, 4): colours multiplied by alpha
        sums *= drawn[..., 3:] > 0
        rows = reduce(np.add, (sums[line::SUPERSAMPLING] for line in range(SUPERSAMPLING)))  # (size, 4 size, 4)
        blocks = reduce(np.add, (rows[:, column::SUPERSAMPLING] for column in range(SUPERSAMPLING)))  # (size, size, 4)
        alpha = blocks[..., 3:].astype(np.float32)  # (size, size, 1)
        colour = 255 * blocks[..., :3].astype(np.float32) / np.maximum(alpha, 1)
        rgba = np.concatenate([np.minimum(colour, 255), alpha / SUPERSAMPLING**2], axis=2)
        return np.asarray(np.rint(rgba), dtype=np.uint8)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep VTK from reporting, where there is no display, that it found none before it goes on without one."""
    verbosity = vtkLogger.GetCurrentVerbosityCutoff()
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
    try:
        yield
    finally:
        vtkLogger.SetStderrVerbosity(verbosity)


def before_background(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut-out pictures (n, h, w, 4), as `Studio.photograph` returns them, before the background: (n, h, w, 3) RGB."""
    top, bottom = np.asarray(BACKGROUND, dtype=np.float32)
    rows = top + (bottom - top) * np.linspace(0, 1, rgba.shape[1], dtype=np.float32)[:, None, None]  # (h, 1, 3)
    alpha = rgba[..., 3:] / np.float32(255)
    return np.asarray(np.rint(rgba[..., :3] * alpha + rows * (1 - alpha)), dtype=np.uint8)
