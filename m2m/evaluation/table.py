"""The numbers file: flat, sorted, the same bytes for the same numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m2m.errors import UserError
from m2m.evaluation.measure import Scores


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation made."""

    numbers: Mapping[str, float | int | str]
    version: str | None
    """of the registered model; None if there is no tracking server, or none now"""


def flat(scores: Scores, prefix: str = "") -> dict[str, float]:
    """``name/mean``, ``name/std``, ``name/position/NN`` of every metric; 01 is the first after the given pictures."""
    numbers = {f"{prefix}{name}": value for name, value in scores.overall.items()}
    for name, values in scores.by_position.items():
        numbers |= by_position(f"{prefix}{name}", values)
    return numbers


def by_position(name: str, values: Sequence[float]) -> dict[str, float]:
    """One metric's mean and (population) standard deviation over positions, and each position's value."""
    positions = {f"{name}/position/{position:02}": value for position, value in enumerate(values, start=1)}
    return {f"{name}/mean": float(np.mean(values)), f"{name}/std": float(np.std(values)), **positions}


def require_gate(metric: str, measured: Mapping[str, float], *, key: str) -> None:
    """Raises unless the metric that decides on the champion is among the measured ones.

    Raises:
        UserError: it is not; names `key`, the parameter, and what could stand there.
    """
    if metric not in measured:
        means = ", ".join(sorted(name for name in measured if re.fullmatch(r"[^/]+(/given=\d+)?/mean", name)))
        raise UserError(f"{key} is {metric}, which is not measured; take one of {means}")


def to_json(numbers: Mapping[str, float | int | str]) -> bytes:
    """Sorted JSON; measured numbers to six digits, more than they are worth."""
    rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in numbers.items()}
    return (json.dumps(rounded, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def to_csv(scores: Scores) -> bytes:
    """A header, then a line a position with every metric, for DVC's plots."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["position", *scores.by_position])
    for position, row in enumerate(zip(*scores.by_position.values(), strict=True), start=1):
        writer.writerow([position, *(f"{value:.6g}" for value in row)])
    return text.getvalue().encode()
