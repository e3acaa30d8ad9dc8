"""A photographer's studio for 3D parts, drawn off screen by PyVista, with fixed lights; and the world's objects in it.

The same parts and cameras give the same bytes, whatever was drawn before, in any process on one kind of machine. An
object is one solid with a smaller one of another colour fixed to its side, so that a picture tells from where it was
taken.
"""

import atexit
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
import pyvista as pv
from numpy.typing import ArrayLike, NDArray
from vtkmodules.vtkCommonCore import vtkLogger

from m2m.manifest import FIELD_OF_VIEW
from m2m.world.cameras import Camera
from m2m.world.grammar import COLOURS

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

SURFACE_COLOURS: Final = "colours"
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

MATERIAL: Final[Mapping[str, Any]] = {"ambient": 0.6, "diffuse": 0.68, "specular": 0.12, "specular_power": 18.0}
"""Little highlight and no deep shadow: a colour must stay the one that a caption names."""


@dataclass(frozen=True)
class Part:
    """A mesh in one colour, in its place."""

    mesh: pv.PolyData
    """With point normals. A studio keeps every mesh that it has seen: hand it the same one again, not a copy."""

    colour: tuple[int, int, int]
    """8-bit RGB in full light; the darkest side keeps two thirds of it. Of a mesh with `SURFACE_COLOURS`: highlights"""

    place: NDArray[np.float64]
    """(4, 4): takes the mesh's own coordinates to the world's."""

    texture: pv.Texture | None = None
    """Lies over the mesh's texture coordinates and is multiplied by the colour."""

    alpha_mode: AlphaMode = "OPAQUE"
    """What the alpha of texture and `SURFACE_COLOURS` means."""

    alpha_cutoff: float = 0.5


class Studio:
    """An off-screen scene that is set up once and photographs one object after another.

    Holds a graphics context, which belongs to the process and the thread that made it. A context manager.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._process = os.getpid()
        pixels = size * SUPERSAMPLING
        # Where there is no display, VTK would report that it found none before it goes on without one.
        verbosity = vtkLogger.GetCurrentVerbosityCutoff()
        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
        try:
            self._plotter = pv.Plotter(off_screen=True, window_size=[pixels, pixels], lighting="none")
            self._plotter.disable_anti_aliasing()  # supersampling gives the same edges with every driver
            self._plotter.set_background("black")  # adds nothing to what is seen through
            self._plotter.enable_depth_peeling(MOST_LAYERS, occlusion_ratio=0)
            for position, intensity in LIGHTS:
                self._plotter.add_light(pv.Light(position=position, intensity=intensity, light_type="scene light"))
            self._plotter.show(auto_close=False, interactive=False)
        finally:
            vtkLogger.SetStderrVerbosity(verbosity)
        self._actors: dict[str, tuple[pv.PolyData, pv.Actor]] = {}

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
            coloured = SURFACE_COLOURS in mesh.point_data or SURFACE_COLOURS in mesh.cell_data
            actor = self._plotter.add_mesh(
                mesh,
                name=name,
                texture=part.texture,
                scalars=SURFACE_COLOURS if coloured else None,
                rgb=coloured,
                **MATERIAL,
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


# The world's solids

SINK: Final = 0.06
"""World units by which the second solid stands in the main one, so that no gap shows at a curved side."""

THREE_QUARTER: Final = 60.0
"""Degrees from the second solid's side of the main one to the object's front."""


@dataclass(frozen=True)
class Shape:
    """One kind of solid: its middle at the origin, its axis along z, about one unit wide."""

    mesh: Callable[[], pv.PolyData]
    half_height: float
    reach: Callable[[float, float], float]
    """Angle about z in radians and height to the distance of the surface from the axis, in mesh units."""

    lean: Callable[[float], float] = lambda _height: 0.0
    """Height to the angle in radians by which the surface there looks up."""

    smooth: bool = False
    """Round all over. Others keep their edges; the facets of their round sides are too narrow to be seen."""


def _square(angle: float) -> float:
    """Distance from the centre of a square of half width 1 to its edge."""
    return 1 / max(abs(math.cos(angle)), abs(math.sin(angle)))


def _pyramid() -> pv.PolyData:
    """A cone of four sides, turned so that these face along x and y."""
    cone = pv.Cone(direction=(0, 0, 1), height=0.96, radius=0.47 * math.sqrt(2), resolution=4)
    return pv.PolyData(cone.rotate_z(45))


SHAPES: Final[dict[str, Shape]] = {
    "cube": Shape(
        mesh=lambda: pv.Cube(x_length=0.8, y_length=0.8, z_length=0.8),
        half_height=0.4,
        reach=lambda angle, _height: 0.4 * _square(angle),
    ),
    "sphere": Shape(
        mesh=lambda: pv.Sphere(radius=0.54, theta_resolution=64, phi_resolution=48),
        half_height=0.54,
        reach=lambda _angle, height: math.sqrt(0.54**2 - height**2),
        lean=lambda height: math.asin(height / 0.54),
        smooth=True,
    ),
    "cone": Shape(
        mesh=lambda: pv.Cone(direction=(0, 0, 1), height=1.1, radius=0.54, resolution=160),
        half_height=0.55,
        reach=lambda _angle, height: 0.54 * (0.55 - height) / 1.1,
        lean=lambda _height: math.atan2(0.54, 1.1),
    ),
    "cylinder": Shape(
        mesh=lambda: pv.Cylinder(direction=(0, 0, 1), height=0.96, radius=0.43, resolution=160),
        half_height=0.48,
        reach=lambda _angle, _height: 0.43,
    ),
    "pyramid": Shape(
        mesh=_pyramid,
        half_height=0.48,
        reach=lambda angle, height: 0.47 * _square(angle) * (0.48 - height) / 0.96,
        lean=lambda _height: math.atan2(0.47, 0.96),
    ),
    "torus": Shape(
        mesh=lambda: pv.ParametricTorus(ringradius=0.42, crosssectionradius=0.18, u_res=72, v_res=36, w_res=36),
        half_height=0.18,
        reach=lambda _angle, height: 0.42 + math.sqrt(0.18**2 - height**2),
        lean=lambda height: math.asin(height / 0.18),
        smooth=True,
    ),
}


@cache
def _mesh(solid: str) -> pv.PolyData:
    """A solid's mesh with the normals that shade it."""
    angle = 180.0 if SHAPES[solid].smooth else 1.0
    mesh = SHAPES[solid].mesh()
    return pv.PolyData(mesh.compute_normals(cell_normals=False, split_vertices=True, feature_angle=angle))


@dataclass(frozen=True, slots=True)
class SolidObject:
    """A solid with a smaller one fixed to its side. A caption names the first four fields; the others vary freely."""

    noun: str
    colour: str
    second: str
    second_colour: str
    size: float = 1.0
    """Scale of the main solid."""

    turn: float = 0.0
    """Degrees that the whole object is turned about z."""

    side: float = 0.0
    """Degrees about z, before the turn, at which the second solid sits on the main one."""

    height: float = 0.0
    """Where it sits, in half heights of the main solid: -1 at its bottom, 1 at its top."""

    second_size: float = 0.5
    """Scale of the second solid, in world units."""

    @classmethod
    def draw(cls, noun: str, colour: str, second: str, second_colour: str, rng: np.random.Generator) -> Self:
        """An object of the given names, all that a caption does not name drawn at random."""
        return cls(
            noun=noun,
            colour=colour,
            second=second,
            second_colour=second_colour,
            size=rng.uniform(0.86, 1.0),
            turn=rng.uniform(0, 360),
            side=rng.uniform(0, 360),
            height=rng.uniform(-0.3, 0.5),
            second_size=rng.uniform(0.46, 0.56),
        )

    @property
    def front(self) -> float:
        """Azimuth in degrees from where both solids are seen, the second one at the side of the main one and nearer."""
        return self.turn + self.side + THREE_QUARTER

    def parts(self) -> tuple[Part, Part]:
        """Both solids in their places: the second standing upright on the side of the main one, the middle of the two
        on the z axis."""
        turn, side = math.radians(self.turn), math.radians(self.side)
        main, second = SHAPES[self.noun], SHAPES[self.second]
        height = self.height * main.half_height
        lean = main.lean(height)
        up = np.array([0.0, 0.0, 1.0])
        radial = np.array([math.cos(turn + side), math.sin(turn + side), 0.0])
        across = np.cross(up, radial)
        outward = math.cos(lean) * radial + math.sin(lean) * up
        half_length = self.second_size * second.half_height
        foot = self.size * (main.reach(side, height) * radial + height * up) - SINK * outward
        middle = (half_length - SINK / 2) * math.cos(lean) * radial  # half of what the second adds to the width

        main_axes = [[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0], [0.0, 0.0, 1.0]]
        second_axes = np.column_stack([across, np.cross(outward, across), outward])
        second_place = _place(self.second_size, second_axes, foot + half_length * outward - middle)
        return (
            Part(mesh=_mesh(self.noun), colour=COLOURS[self.colour], place=_place(self.size, main_axes, -middle)),
            Part(mesh=_mesh(self.second), colour=COLOURS[self.second_colour], place=second_place),
        )


def _place(scale: float, axes: ArrayLike, position: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4): scale, turn to the axes (columns), move."""
    place = np.eye(4)
    place[:3, :3] = scale * np.asarray(axes)
    place[:3, 3] = position
    return place


@cache
def _studio(size: int) -> Studio:
    """The studio for pictures of this size, kept to the end of the process: one is as costly as 30 views."""
    studio = Studio(size)
    atexit.register(studio.close)
    return studio


def render_views(obj: SolidObject, cameras: Sequence[Camera], size: int = 64) -> NDArray[np.uint8]:
    """The object before the world's neutral background, seen by each camera: (n, size, size, 3) RGB.

    Raises:
        RuntimeError: in a process forked from one that has rendered already; spawn it instead.
    """
    rgba = _studio(size).photograph(obj.parts(), cameras)  # (n, size, size, 4)
    top, bottom = np.asarray(BACKGROUND, dtype=np.float32)
    rows = top + (bottom - top) * np.linspace(0, 1, size, dtype=np.float32)[:, None, None]  # (size, 1, 3)
    alpha = rgba[..., 3:] / np.float32(255)
    return np.asarray(np.rint(rgba[..., :3] * alpha + rows * (1 - alpha)), dtype=np.uint8)
