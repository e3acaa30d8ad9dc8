"""Whether pictures show what their caption says, as the class network reads them: "capturing patterns" as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2m.world.grammar import parse


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def agreement(
    logits: Mapping[str, Tensor], classes: Mapping[str, Sequence[str]], captions: Sequence[str]
) -> dict[str, Tensor]:
    """1 where the likeliest class is the caption's, by attribute; ``content`` is noun and colour at once.

    Args:
        logits: attribute to (sets, positions, classes).
        classes: attribute to the names of its classes.
        captions: one a set, in the grammar of the embedded world.

    Returns:
        attribute to (sets, positions), float64.

    Raises:
        UserError: a caption does not parse.
    """
    parsed = [parse(caption) for caption in captions]
    found = {}
    for attribute, values in logits.items():
        names = classes[attribute]
        wanted = torch.tensor([names.index(getattr(caption, attribute)) for caption in parsed], device=values.device)
        found[attribute] = (values.argmax(dim=2) == wanted.unsqueeze(1)).double()
    return {**found, "content": found["noun"] * found["colour"]}


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
