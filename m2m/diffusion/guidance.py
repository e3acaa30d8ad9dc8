"""Classifier-free guidance: a condition is made to count for more than the network gives it (Ho & Salimans, 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def guides(scale: float) -> bool:
    """Whether there is any guidance: above 1 only, as everywhere in diffusers. Else there is only the condition."""
    return scale > 1


def guided(predict: Callable[[Tensor], Tensor], sample: Tensor, scale: float) -> Tensor:
    """u + scale·(c - u) of the predictions without the condition u and with it c, both in one batch.

    Args:
        predict: the network, (2·B, 4, h, w) -> (2·B, 4, h, w); the first half is without the condition. For a scale
            that guides nowhere, all of (B, 4, h, w) is with it.
        sample: (B, 4, h, w).

    Returns:
        (B, 4, h, w).
    """
    if not guides(scale):
        return predict(sample)
    without, with_condition = predict(torch.cat([sample, sample])).chunk(2)
    return without + scale * (with_condition - without)
