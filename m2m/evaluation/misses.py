"""Which drawn pictures do not count: those that the class network cannot read, and copies of earlier ones.

Both are judged by held-out pictures: what is rarer among them than one in a hundred is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RARE = 0.01


def read_values(logits: Sequence[Tensor]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest class of each attribute and its probability, (sets, positions, attributes) each.

    Args:
        logits: one (sets, positions, classes) an attribute.
    """
    best = [head.double().softmax(dim=2).max(dim=2) for head in logits]
    values = torch.stack([one.indices for one in best], dim=2)  # (sets, positions, attributes)
    confidences = torch.stack([one.values for one in best], dim=2)
    return values.cpu().numpy(), confidences.cpu().numpy()


def nearest_earlier(given: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of each drawn picture to the nearest given or earlier drawn one of its set.

    Args:
        given: (sets, n, H, W, 3), at least one.
        drawn: (sets, positions, H, W, 3).

    Returns:
        (sets, positions), in steps of the 8-bit scale.
    """
    count, positions = given.shape[1], drawn.shape[1]
    earlier = np.tri(count + positions, k=-1, dtype=bool)[count:]  # (positions, n + positions)
    nearest = np.empty(drawn.shape[:2])
    for index in range(len(drawn)):
        distances = _distances(np.concatenate([given[index], drawn[index]]))[count:]
        nearest[index] = np.where(earlier, distances, np.inf).min(axis=1)
    return nearest


def nearest_other(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The same to the nearest of all others of the set, earlier or later: (sets, N, H, W, 3) to (sets, N)."""
    nearest = np.empty(pictures.shape[:2])
    for index, of_set in enumerate(pictures):
        distances = _distances(of_set)
        np.fill_diagonal(distances, np.inf)
        nearest[index] = distances.min(axis=1)
    return nearest


@dataclass(frozen=True)
class Thresholds:
    """What all but the rarest held-out pictures reach."""

    confidence: NDArray[np.float64]
    """(attributes,), of the likeliest class"""
    distance: float
    """to the nearest other picture of the set"""

    @classmethod
    def of_held_out(cls, confidences: NDArray[np.float64], nearest: NDArray[np.float64]) -> Self:
        """Of confidences (sets, N, attributes) and distances by `nearest_other` (sets, N).

        The more others there are, the nearer is the nearest: sets should have at least as many pictures as those that
        are judged, the given ones included. Then no more than the rarest held-out pictures pass for copies.
        """
        return cls(np.quantile(confidences, RARE, axis=(0, 1)), float(np.quantile(nearest, RARE)))

    def misses(self, confidences: NDArray[np.float64], nearest: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where a picture misses: in an attribute that cannot be read, in all if it is a copy.

        Args:
            confidences: (sets, positions, attributes).
            nearest: (sets, positions), by `nearest_earlier`.

        Returns:
            (sets, positions, attributes).
        """
        # An exact copy is one even where held-out sets have some themselves and the threshold is 0.
        copies = (nearest < self.distance) | (nearest == 0)
        missed: NDArray[np.bool_] = (confidences < self.confidence) | copies[:, :, None]
        return missed


def _distances(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square differences (N, N) of pictures (N, H, W, 3).

    By scalar products: they are whole numbers far below 2^53, so that float64 holds them exactly and equal pictures are
    at distance 0.
    """
    rows = pictures.reshape(len(pictures), -1).astype(np.float64)  # (N, H·W·3)
    products = rows @ rows.T  # (N, N)
    squares = np.diag(products)
    distances: NDArray[np.float64] = np.sqrt((squares[:, None] + squares - 2 * products) / rows.shape[1])
    return distances
