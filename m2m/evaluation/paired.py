"""What changes between two measurements of the same sets, with a confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def paired_interval(first: Tensor, second: Tensor, *, resamples: int, seed: int) -> Interval:
    """Mean of second − first over the same sets, with a percentile bootstrap over sets (Efron, 1979).

    Args:
        first, second: (sets, positions) at the same positions.
        resamples: bootstrap samples.
        seed: of their drawing.
    """
    differences = (second.double().mean(dim=1) - first.double().mean(dim=1)).cpu().numpy()
    chosen = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.quantile(differences[chosen].mean(axis=1), (0.025, 0.975))
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high))
