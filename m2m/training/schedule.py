"""Learning rate and intervals as functions of images seen, the clock of training."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    images_seen: float, *, peak: float, warmup_images: int, images: int, schedule: Literal["constant", "cosine"]
) -> float:
    """Linear warm-up to the peak, then constant or half a cosine down to zero at ``images``.

    A step is given the rate at its middle: neither the first step nor the last one then runs at zero.
    """
    if images_seen < warmup_images:
        return peak * images_seen / warmup_images
    if schedule == "constant":
        return peak
    progress = min(1.0, (images_seen - warmup_images) / max(1, images - warmup_images))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def is_due(every: int, *, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` images lies in (before, after]: due once an interval, whatever the step size."""
    return after // every > before // every
