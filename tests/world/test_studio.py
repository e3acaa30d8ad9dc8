"""The 3D objects: where things land in the picture, what changes it, and that nothing else does."""

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache

import numpy as np
import pytest
import pyvista as pv

from m2m.errors import UserError
from m2m.manifest import FIELD_OF_VIEW
from m2m.world.cameras import CORPUS_DISTANCES, Camera
from m2m.world.grammar import COLOURS, SOLIDS
from m2m.world.studio import BACKGROUND, SHAPES, Part, SolidObject, Studio, render_views
from tests.projection import intrinsics, project

OBJECT = SolidObject("cylinder", "red", "cone", "cyan", turn=20, side=75, height=0.2)
CAMERAS = (Camera(azimuth=0, elevation=20), Camera(azimuth=100, elevation=-10), Camera(azimuth=250, elevation=50))


@cache
def studio() -> Studio:
    """One for all, which takes the time of thirty pictures."""
    return Studio(64)


@pytest.fixture(scope="module", autouse=True)
def _closed_studio() -> Iterator[None]:
    yield
    studio().close()
    studio.cache_clear()


def render_rgba(obj: SolidObject, cameras: Sequence[Camera]) -> np.ndarray:
    """The object cut out: (n, 64, 64, 4)"""
    return studio().photograph(obj.parts(), cameras)


def test_the_vocabulary_and_the_meshes_name_the_same_solids() -> None:
    assert set(SHAPES) == set(SOLIDS)


# Cameras


@pytest.mark.parametrize("elevation", [-90.0, -35.0, 0.0, 50.0, 90.0])
@pytest.mark.parametrize("azimuth", [0.0, 90.0, 217.0, -400.0])
def test_a_camera_matrix_is_a_rotation_and_looks_at_the_origin(azimuth: float, elevation: float) -> None:
    camera = Camera(azimuth=azimuth, elevation=elevation, distance=3)
    rotation, translation = camera.matrix()[:, :3], camera.matrix()[:, 3]

    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation @ camera.position + translation, 0, atol=1e-12)
    np.testing.assert_allclose(project([(0, 0, 0)], camera, 64), [(32, 32)], atol=1e-9)


def test_the_convention_by_hand() -> None:
    camera = Camera(azimuth=0, elevation=0, distance=2)

    np.testing.assert_allclose(camera.position, (2, 0, 0), atol=1e-12)
    np.testing.assert_allclose(Camera(azimuth=90, elevation=0, distance=2).position, (0, 2, 0), atol=1e-12)
    # From +x with z up, +y is to the right and +z is above: row numbers grow downwards.
    np.testing.assert_allclose(camera.matrix(), [[0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 2]], atol=1e-12)
    # What lies at half the field of view is at the picture's edge.
    edge = 2 * np.tan(np.radians(FIELD_OF_VIEW / 2))
    np.testing.assert_allclose(project([(0, edge, 0), (0, 0, edge)], camera, 64), [(64, 32), (32, 0)], atol=1e-9)
    assert intrinsics(128)[0, 0] == pytest.approx(2 * intrinsics(64)[0, 0])


@pytest.mark.parametrize("wrong", [(np.nan, 0, 2), (0, 91, 2), (0, np.nan, 2), (0, 0, 0), (0, 0, np.inf)])
def test_an_impossible_camera_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="expected a finite azimuth"):
        Camera(*wrong)


@pytest.mark.parametrize("point", [(0.0, 0.0, 0.0), (0.5, -0.2, 0.3), (-0.4, 0.6, -0.35), (0.1, 0.7, 0.6)])
def test_a_small_ball_lands_on_the_pixel_that_the_matrix_says(point: tuple[float, float, float]) -> None:
    place = np.eye(4)
    place[:3, 3] = point
    ball = Part(mesh=pv.Sphere(radius=0.06), colour=(255, 255, 255), place=place)
    cameras = [*CAMERAS, Camera(azimuth=33, elevation=90), Camera(azimuth=300, elevation=5, distance=3.5)]
    with closing(Studio(64)) as studio:
        alphas = studio.photograph([ball], cameras)[..., 3].astype(float)  # (n, 64, 64)

    middles = np.arange(64) + 0.5
    for camera, alpha in zip(cameras, alphas, strict=True):
        seen = np.array([(alpha.sum(0) * middles).sum(), (alpha.sum(1) * middles).sum()]) / alpha.sum()
        np.testing.assert_allclose(seen, project([point], camera, 64)[0], atol=0.15)  # pixels


# Pictures


def test_views_are_rgb_pictures_one_a_camera() -> None:
    assert render_views(OBJECT, CAMERAS).shape == (3, 64, 64, 3)
    assert render_views(OBJECT, CAMERAS[:1], size=32).shape == (1, 32, 32, 3)
    assert render_views(OBJECT, []).shape == (0, 64, 64, 3)
    assert render_views(OBJECT, CAMERAS).dtype == np.uint8


def test_going_round_the_object_changes_the_picture_and_a_full_turn_does_not() -> None:
    first, *others, last = render_views(OBJECT, [Camera(azimuth=a, elevation=20) for a in (0, 60, 120, 180, 240, 360)])

    np.testing.assert_array_equal(first, last)
    for other in others:
        assert np.abs(first.astype(int) - other).mean() > 3


def test_turning_the_object_and_the_camera_together_keeps_the_outline() -> None:
    turned = SolidObject("cylinder", "red", "cone", "cyan", turn=20 + 70, side=75, height=0.2)
    before = render_rgba(OBJECT, [Camera(azimuth=10, elevation=20)])[..., 3].astype(int)
    after = render_rgba(turned, [Camera(azimuth=10 + 70, elevation=20)])[..., 3].astype(int)

    assert np.abs(before - after).mean() < 0.5  # of 255: the same silhouette; only the light comes from elsewhere


def test_the_background_is_the_same_around_every_object() -> None:
    rng = np.random.default_rng(3)
    objects = [SolidObject.draw(noun, "blue", "sphere", "pink", rng) for noun in SOLIDS]
    pictures = np.concatenate([render_views(obj, CAMERAS) for obj in objects])
    empty = np.concatenate([render_rgba(obj, CAMERAS)[..., 3] for obj in objects]) == 0

    background = np.repeat(pictures[0, :, :1], 64, axis=1)
    assert tuple(background[0, 0]) == BACKGROUND[0]
    assert tuple(background[-1, 0]) == BACKGROUND[1]
    for picture, outside in zip(pictures, empty, strict=True):
        np.testing.assert_array_equal(picture[outside], background[outside])


@pytest.mark.parametrize("noun", SOLIDS)
def test_drawn_objects_lie_within_the_picture_and_fill_it_well(noun: str) -> None:
    rng = np.random.default_rng(5)
    extents = []
    for _ in range(40):
        obj = SolidObject.draw(noun, "red", str(rng.choice(SOLIDS)), "blue", rng)
        nearest = Camera(azimuth=rng.uniform(0, 360), elevation=rng.uniform(-10, 50), distance=CORPUS_DISTANCES[0])
        corners = np.concatenate([part.mesh.points @ part.place[:3, :3].T + part.place[:3, 3] for part in obj.parts()])
        pixels = project(corners, nearest, 64)
        assert pixels.min() > 0
        assert pixels.max() < 64
        extents.append(np.ptp(pixels, axis=0).max() / 64)
    assert 0.5 < np.mean(extents) < 0.75


@pytest.mark.parametrize("noun", SOLIDS)
@pytest.mark.parametrize("second", SOLIDS)
def test_the_second_solid_touches_the_side_of_the_main_one(noun: str, second: str) -> None:
    """Its foot is inside the main solid, its far end outside."""
    obj = SolidObject(noun, "red", second, "blue", turn=30, side=100, height=0.1)
    main, other = obj.parts()
    place = np.linalg.inv(main.place) @ other.place  # into the main solid's coordinates
    foot, top = (place @ (0, 0, end * SHAPES[second].half_height, 1) for end in (-1, 1))

    def outside(point: np.ndarray) -> bool:
        angle, height = np.arctan2(point[1], point[0]), point[2]
        shape = SHAPES[noun]
        return abs(height) > shape.half_height or np.hypot(point[0], point[1]) > shape.reach(angle, height)

    assert not outside(foot)
    assert outside(top)


@pytest.mark.parametrize("noun", SOLIDS)
def test_the_reach_of_a_solid_is_where_its_mesh_ends(noun: str) -> None:
    shape = SHAPES[noun]
    mesh = SolidObject(noun, "red", "cube", "blue").parts()[0].mesh
    for angle in (0.1, 0.4, 2.0, 4.5):
        for height in (-0.3 * shape.half_height, 0.5 * shape.half_height):
            far = (2 * np.cos(angle), 2 * np.sin(angle), height)
            hits, _ = mesh.ray_trace(far, (0, 0, height))
            assert np.hypot(hits[:, 0], hits[:, 1]).max() == pytest.approx(shape.reach(angle, height), abs=0.01)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_stays_recognisable_from_every_side(colour: str) -> None:
    """The object's pixels are nearest in direction of colour to the one that is named."""
    named = np.array(list(COLOURS.values()), dtype=float)
    named /= np.linalg.norm(named, axis=1, keepdims=True)
    for noun in ("cube", "sphere"):
        rgba = render_rgba(
            SolidObject(noun, colour, noun, colour), [Camera(a, e) for a in range(0, 360, 60) for e in (-10, 50)]
        )
        pixels = rgba[rgba[..., 3] == 255][:, :3].astype(float)
        pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
        assert (np.argmax(pixels @ named.T, axis=1) == list(COLOURS).index(colour)).mean() > 0.97


def test_edges_are_anti_aliased() -> None:
    alpha = render_rgba(OBJECT, CAMERAS)[..., 3]
    assert len(np.unique(alpha)) > 8


def test_the_same_generator_draws_the_same_object() -> None:
    drawn = [SolidObject.draw("cube", "red", "cone", "blue", np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


# Determinism


def test_what_was_drawn_before_does_not_change_a_picture() -> None:
    first = render_views(OBJECT, CAMERAS)
    for noun in SOLIDS:
        render_views(SolidObject(noun, "green", "cone", "yellow"), CAMERAS[1:])
    np.testing.assert_array_equal(render_views(OBJECT, CAMERAS), first)
    np.testing.assert_array_equal(render_views(OBJECT, CAMERAS[1:2])[0], first[1])


def test_which_of_two_equally_near_surfaces_is_seen_does_not_follow_from_what_was_drawn_before() -> None:
    camera = Camera(azimuth=0, elevation=0)
    meshes = [pv.Cube().compute_normals() for _ in range(3)]
    red, blue = COLOURS["red"], COLOURS["blue"]

    def pictures(*pairs: tuple[pv.PolyData, pv.PolyData]) -> list[np.ndarray]:
        with closing(Studio(16)) as studio:
            return [
                studio.photograph([Part(one, red, 0.5 * np.eye(4)), Part(other, blue, 0.5 * np.eye(4))], [camera])[0]
                for one, other in pairs
            ]

    first, second, third = meshes
    (alone,) = pictures((first, second))
    after_another = pictures((third, second), (first, second))[-1]  # the blue one is known to the studio already
    np.testing.assert_array_equal(after_another, alone)
    assert alone[8, 8, 2] > alone[8, 8, 0], "the last one is seen"


def test_another_process_draws_the_same_bytes_and_says_nothing() -> None:
    program = f"""
        import hashlib
        from m2m.world.cameras import Camera
        from m2m.world.studio import SolidObject, render_views
        print(hashlib.sha256(render_views({OBJECT!r}, {CAMERAS!r}).tobytes()).hexdigest())
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    assert other.stdout.strip() == hashlib.sha256(render_views(OBJECT, CAMERAS).tobytes()).hexdigest()
    assert other.stderr == ""


def test_a_forked_child_is_told_instead_of_hanging() -> None:
    render_views(OBJECT, CAMERAS)
    child = os.fork()
    if child == 0:
        try:
            render_views(OBJECT, CAMERAS)
        except RuntimeError as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
