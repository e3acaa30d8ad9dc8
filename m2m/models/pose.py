"""How the network is told from where a picture is seen: by its camera, relative to that of the set's first picture."""

from __future__ import annotations

import torch
from torch import Tensor

POSE_DIM = 12
"""Nine numbers of a rotation, three of a translation."""


def relative_poses(cameras: Tensor) -> Tensor:
    """Poses of N cameras relative to the first: (…, N, 3, 4) world-to-camera -> (…, N, 12), float32.

    With x_camera = R x_world + t, the n-th camera sees what the first one has at x at R_n R_1ᵀ x + t_n - R_n R_1ᵀ t_1.
    Lengths are in units of the first camera's distance from the world's origin, where the object is: the pose of an
    orbit is the same in metres and in inches, and wherever the world's axes point.

    Raises:
        ValueError: the shape is another, a number is not finite, or the first camera stands in the origin.
    """
    if cameras.shape[-2:] != (3, 4) or cameras.ndim < 3:
        raise ValueError(f"cameras are world-to-camera matrices (…, N, 3, 4), not {tuple(cameras.shape)}")
    if not torch.isfinite(cameras).all():
        raise ValueError("a camera's matrix has a number that is not finite")
    cameras = cameras.double()
    rotations, translations = cameras[..., :3], cameras[..., 3]  # (…, N, 3, 3), (…, N, 3)
    distance = translations[..., :1, :].norm(dim=-1, keepdim=True)  # (…, 1, 1)
    if (distance == 0).any():
        raise ValueError("the first camera of a set stands in the world's origin, where the object should be")
    rotation = rotations @ rotations[..., :1, :, :].mT  # (…, N, 3, 3)
    moved = (rotation @ translations[..., :1, :, None]).squeeze(-1)  # (…, N, 3)
    translation = (translations - moved) / distance  # (…, N, 3)
    return torch.cat([rotation.flatten(-2), translation], dim=-1).float()
