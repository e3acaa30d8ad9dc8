"""The world's 3D objects, and pictures of them.

An object is one solid with a smaller one of another colour fixed to its side, so that a picture tells from where it was
taken. `studio` draws it, `cameras` says how cameras are meant.
"""

import atexit
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Self

import numpy as np
import pyvista as pv
from numpy.typing import ArrayLike, NDArray

from m2m.errors import UserError
from m2m.world.cameras import Camera
from m2m.world.studio import Part, Studio, before_background
from m2m.world.vocabulary import COLOURS

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
    """A solid with a smaller one fixed to its side. A caption names the first four fields; the others vary freely.

    Raises:
        UserError: a solid or a colour that the world does not have.
    """

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

    def __post_init__(self) -> None:
        for noun in (self.noun, self.second):
            if noun not in SHAPES:
                raise UserError(f"unknown solid {noun!r}: expected one of {', '.join(SHAPES)}")
        for colour in (self.colour, self.second_colour):
            if colour not in COLOURS:
                raise UserError(f"unknown colour {colour!r}: expected one of {', '.join(COLOURS)}")

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


def render_rgba(obj: SolidObject, cameras: Sequence[Camera], size: int = 64) -> NDArray[np.uint8]:
    """The object cut out, seen by each camera: (n, size, size, 4) RGBA, colours not multiplied by alpha.

    Raises:
        RuntimeError: in a process forked from one that has rendered already; spawn it instead.
    """
    return _studio(size).photograph(obj.parts(), cameras)


def render_views(obj: SolidObject, cameras: Sequence[Camera], size: int = 64) -> NDArray[np.uint8]:
    """The object before the world's neutral background, seen by each camera: (n, size, size, 3) RGB.

    Raises:
        RuntimeError: as `render_rgba`.
    """
    return before_background(render_rgba(obj, cameras, size))
