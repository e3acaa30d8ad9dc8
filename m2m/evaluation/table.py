"""The numbers file: flat, sorted, the same bytes for the same numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from m2m.errors import UserError
from m2m.evaluation.measure import Scores
from m2m.params import GateParams

Number = float | int | str
N = TypeVar("N", float, Number)
DETAILS = "details.json"
"""All numbers, beside the plots; the numbers file holds the headlines alone."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation made."""

    numbers: Mapping[str, Number]
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


def require_gate(gate: GateParams, measured: Mapping[str, float], *, key: str) -> None:
    """Raises unless the figures that decide on the champion are among the measured ones, and not of the test.

    Raises:
        UserError: it is not; names `key`, the parameter, and what could stand there.
    """
    known = sorted(name for name in measured if name.startswith("validation/"))
    for part, metric in (("metric", gate.metric), *(("require", name) for name in gate.require)):
        if metric in known:
            continue
        raise UserError(
            f"{key}.{part} is {metric}, which is not measured on validation sets; take one of {', '.join(known)}"
        )


def headline(numbers: Mapping[str, N], keys: Sequence[str]) -> dict[str, N]:
    """The scores by which a run is known, as many as there are, in place of all."""
    return {key: numbers[key] for key in keys if key in numbers}


def to_json(numbers: Mapping[str, Number]) -> bytes:
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
