"""How much the pictures of a set differ: without it, copying the given picture would win every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

SPREADS = {"place": slice(0, 2), "size": slice(2, 3), "angle": slice(3, 5)}
"""What a caption leaves free, and its columns in the class network's geometry: x, y, size, sine and cosine of angle."""


def feature_diversity(features: Tensor) -> Tensor:
    """Mean distance of each position's picture to the others of its set.

    Args:
        features: (sets, positions, F), at least two positions.

    Returns:
        (positions,), float64; its mean is the mean pairwise distance within a set.
    """
    positions = features.shape[1]
    distances = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=2).mean(dim=0) / (positions - 1)


def spreads(geometry: Tensor) -> dict[str, float]:
    """Standard deviation within a set, root mean square over sets, of place, size and angle.

    Places and sizes are fractions of the picture's side; angles are points on the unit circle, so that all directions
    alike give about 1. Variances are unbiased, so lots of more or fewer positions compare.

    Args:
        geometry: (sets, positions, 5), at least two positions.
    """
    variance = geometry.double().var(dim=1, correction=1).mean(dim=0)
    return {name: float(variance[part].sum().sqrt()) for name, part in SPREADS.items()}
