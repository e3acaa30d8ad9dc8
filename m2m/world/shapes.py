"""The outlines of the eight shapes: polygons of about unit diameter around (0, 0), y pointing down."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]

_ROUND = 48
"""Corners of a polygon that shall look round."""


def _circle() -> Outline:
    return 0.47 * _ring(np.linspace(0, 2 * np.pi, _ROUND, endpoint=False))


def _square() -> Outline:
    return 0.41 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


def _triangle() -> Outline:
    tips = np.radians([-90.0, 30.0, 150.0])
    return 0.58 * _ring(tips) + (0.0, 0.1)


def _star() -> Outline:
    angles = np.radians(np.arange(10) * 36.0 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.56, 0.25)
    return radii[:, None] * _ring(angles) + (0.0, 0.03)


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, _ROUND, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 32


def _cross() -> Outline:
    arm, half = 0.5, 0.17
    corners = [(half, -arm), (half, -half), (arm, -half)]
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    turns = [np.linalg.matrix_power(quarter, k) for k in range(4)]
    return np.concatenate([np.array(corners) @ turn.T for turn in turns])


def _moon() -> Outline:
    # The disc of radius 0.5 without the disc of radius 0.42 around (bite, 0): two arcs that meet in the horns.
    outer, inner, bite = 0.5, 0.42, 0.26
    x = (bite**2 + outer**2 - inner**2) / (2 * bite)
    horn, inner_horn = np.arccos(x / outer), np.arccos((x - bite) / inner)
    back = outer * _ring(np.linspace(horn, 2 * np.pi - horn, _ROUND))
    front = inner * _ring(np.linspace(2 * np.pi - inner_horn, inner_horn, _ROUND // 2)) + (bite, 0.0)
    crescent: Outline = np.concatenate([back, front[1:-1]]) + np.array([0.1, 0.0])
    return crescent


def _arrow() -> Outline:
    shaft, head, neck = 0.15, 0.42, 0.02
    upper = [(-0.52, -shaft), (neck, -shaft), (neck, -head), (0.52, 0.0)]
    lower = [(x, -y) for x, y in reversed(upper[:-1])]
    return np.array(upper + lower)


def _ring(angles: NDArray[np.float64]) -> Outline:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


OUTLINES: Mapping[str, Outline] = MappingProxyType(
    {
        "circle": _circle(),
        "square": _square(),
        "triangle": _triangle(),
        "star": _star(),
        "heart": _heart(),
        "cross": _cross(),
        "moon": _moon(),
        "arrow": _arrow(),
    }
)
"""Shape to its outline, (corners, 2)."""
