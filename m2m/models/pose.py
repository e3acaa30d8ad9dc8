"""How the network is told from where a picture is seen: by its camera, relative to that of the set's first picture.

The whole picture is told its pose through the U-Net's class embedding; each token is told the ray that goes through it,
so that attention finds the tokens of other pictures that show the same place. From the pose alone a small network
learns that only after far more pictures.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from m2m.devices import sent
from m2m.manifest import FIELD_OF_VIEW

POSE_DIM = 12
"""Nine numbers of a rotation, three of a translation."""
WAVELENGTHS = (1.6, 0.8, 0.4)
"""In units of the first camera's distance; a picture is 0.9 wide there."""
RAY_DIM = 9 + 6 * len(WAVELENGTHS)
"""Three numbers each: direction, moment, and the point nearest to the object's middle. And that point's waves."""
CLOSENESS = 4.0
"""Scale of moments and points, which differ by little from token to token."""
RAY_SCALE = 8.0
"""Scale of all of them. Adam moves every weight by the learning rate: what is told louder is learnt sooner."""


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


class Viewpoints:
    """Where some pictures are seen from: their poses, and the rays of their tokens.

    Args:
        poses: (rows, 12), see `relative_poses`.
        dtype: of rays, that of the network. They are worked out in float32: from float16 their waves would be coarse.
    """

    def __init__(self, poses: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.poses = poses
        self.dtype = dtype
        self._rays: dict[int, Tensor] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def rays(self, tokens: int) -> Tensor:
        """What `rays` says of square pictures with so many tokens, (rows, tokens, RAY_DIM): worked out once."""
        if tokens not in self._rays:
            side = math.isqrt(tokens)
            if side * side != tokens:
                raise ValueError(f"{tokens} tokens make no square picture, for which alone rays are known")
            self._rays[tokens] = rays(self.poses, side).to(self.dtype)
        return self._rays[tokens]


def rays(poses: Tensor, side: int) -> Tensor:
    """The rays through the side x side tokens of square pictures: poses (rows, 12) -> (rows, side², RAY_DIM), float32.

    In the coordinates of the set's first camera, which looks at the object's middle from a distance of one; that middle
    is the origin here. Direction d and moment m = o x d, for a camera at o, are Plücker's coordinates: two rays meet if
    d·m' + d'·m = 0. The nearest point is p = d x m; of it there are sine and cosine at each of the wavelengths, too, so
    that products of two rays' numbers tell whether they pass the middle at the same place.
    """
    rotation, translation = poses.float()[:, :9].reshape(-1, 3, 3), poses.float()[:, 9:]  # (rows, 3, 3), (rows, 3)
    edge = math.tan(math.radians(FIELD_OF_VIEW / 2))
    centres = torch.arange(side, dtype=torch.float32, device=poses.device) + 0.5  # of the tokens
    steps = (centres / side * 2 - 1) * edge
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).flatten(0, 1)  # (side², 3)
    directions = F.normalize(pixels @ rotation, dim=-1)  # (rows, side², 3): the transposed rotation turns them back
    cameras = -(rotation.mT @ translation[:, :, None]).mT  # (rows, 1, 3)
    middle = cameras.new_zeros(3)
    middle[2] = 1
    moments = torch.linalg.cross((cameras - middle).expand_as(directions), directions)  # (rows, side², 3)
    points = torch.linalg.cross(directions, moments)  # (rows, side², 3)
    angles = points[..., None] * (2 * math.pi / sent(WAVELENGTHS, poses.device, torch.float32))  # (rows, side², 3, w)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (rows, side², 6·w)
    return RAY_SCALE * torch.cat([directions, CLOSENESS * moments, CLOSENESS * points, waves], dim=-1)
