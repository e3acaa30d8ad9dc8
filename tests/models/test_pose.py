"""Poses say where a camera stands relative to the first one, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2m.models.pose import (
    CLOSENESS,
    FIELD_OF_VIEW,
    POSE_DIM,
    RAY_DIM,
    RAY_SCALE,
    WAVELENGTHS,
    Viewpoints,
    rays,
    relative_poses,
)
from m2m.world import studio as world
from m2m.world.cameras import Camera
from tests.projection import project

angles = st.floats(-170, 170)
cameras = st.builds(Camera, azimuth=angles, elevation=st.floats(-80, 80), distance=st.floats(1.5, 3))


def matrices(*given_cameras: Camera) -> Tensor:
    return torch.from_numpy(np.stack([camera.matrix() for camera in given_cameras]))


def test_the_first_camera_is_where_it_is() -> None:
    pose = relative_poses(matrices(Camera(30, 20, 2.0), Camera(100, -5, 2.5)))
    assert pose.shape == (2, POSE_DIM)
    torch.testing.assert_close(pose[0], torch.cat([torch.eye(3).flatten(), torch.zeros(3)]))


@settings(max_examples=50, deadline=None)
@given(first=cameras, other=cameras, turn=angles, scale=st.floats(0.1, 50))
def test_neither_the_worlds_axes_nor_its_unit_matter(first: Camera, other: Camera, turn: float, scale: float) -> None:
    there = matrices(first, other)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    turned = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    elsewhere = torch.cat([there[..., :3] @ turned, scale * there[..., 3:]], dim=-1)
    torch.testing.assert_close(relative_poses(elsewhere), relative_poses(there), rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(first=cameras, other=cameras, point=st.tuples(*[st.floats(-1, 1)] * 3))
def test_they_take_a_point_from_the_first_cameras_axes_to_the_others(
    first: Camera, other: Camera, point: tuple[float, float, float]
) -> None:
    there = matrices(first, other)
    x = torch.tensor(point, dtype=torch.float64)
    seen = there[..., :3] @ x + there[..., 3]  # (2, 3)
    pose = relative_poses(there)[1].double()
    moved = pose[:9].view(3, 3) @ seen[0] + first.distance * pose[9:]
    torch.testing.assert_close(moved, seen[1], rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(first=cameras, other=cameras, point=st.tuples(*[st.floats(-0.4, 0.4)] * 3))
def test_the_rays_of_the_tokens_that_show_a_point_meet_there(
    first: Camera, other: Camera, point: tuple[float, float, float]
) -> None:
    side = 64
    both = [first, other]
    seen = rays(relative_poses(matrices(*both)), side) / RAY_SCALE  # (2, 64 * 64, RAY_DIM)
    assert seen.shape == (2, side * side, RAY_DIM)
    there = matrices(first)[0]
    x = (there[:, :3] @ torch.tensor(point, dtype=torch.float64) + there[:, 3]) / first.distance
    x = x.float() - torch.tensor([0.0, 0.0, 1.0])  # from the object's middle, in the first camera's axes
    for number, camera in enumerate(both):
        column, row = project([point], camera, side)[0].astype(int)
        direction, moment, nearest, waves = seen[number, row * side + column].split([3, 3, 3, 6 * len(WAVELENGTHS)])
        torch.testing.assert_close(direction.norm(), torch.tensor(1.0))
        distance = (torch.linalg.cross(x, direction) - moment / CLOSENESS).norm()
        assert distance < 0.03 * camera.distance / first.distance  # a token is wide
        assert abs(float(nearest @ direction)) < 1e-4
        torch.testing.assert_close(torch.linalg.cross(nearest, direction), moment, rtol=1e-3, atol=1e-4)
        phases = 2 * torch.pi * nearest[:, None] / CLOSENESS / torch.tensor(WAVELENGTHS)  # (3, wavelengths)
        torch.testing.assert_close(waves, torch.cat([phases.sin(), phases.cos()], dim=1).flatten(), rtol=0, atol=1e-4)


def test_rays_are_worked_out_once_and_only_for_square_pictures() -> None:
    seen_from = Viewpoints(relative_poses(matrices(Camera(30, 20, 2.0), Camera(100, -5, 2.5))))
    assert torch.equal(seen_from.rays(16), rays(seen_from.poses, 4))
    assert seen_from.rays(16) is seen_from.rays(16)
    halves = Viewpoints(seen_from.poses, torch.float16).rays(16)
    assert torch.equal(halves, seen_from.rays(16).half()), "rounded once, at the end"
    with pytest.raises(ValueError, match="12 tokens"):
        seen_from.rays(12)


def test_rays_are_drawn_for_the_worlds_cameras() -> None:
    assert FIELD_OF_VIEW == world.FIELD_OF_VIEW


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.eye(4).expand(2, 4, 4), "world-to-camera"),
        (torch.full((2, 3, 4), torch.nan), "not finite"),
        (torch.eye(3, 4).expand(2, 3, 4), "origin"),
    ],
)
def test_what_is_no_camera_is_refused(wrong: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        relative_poses(wrong)
