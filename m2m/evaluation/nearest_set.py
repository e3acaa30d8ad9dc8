"""The training set that is most like some given pictures: what a model would show that only remembers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2m.data.sets import ImageSets
from m2m.evaluation.measure import PICTURES_AT_ONCE
from m2m.evaluation.networks import Clip


@torch.no_grad()
def mean_embeddings(sets: ImageSets, clip: Clip, device: torch.device) -> Tensor:
    """Of each set the direction of its pictures' mean embedding, (sets, D); a set at a time is in memory."""
    return torch.stack([_mean(clip, torch.from_numpy(sets[index].images).to(device)) for index in range(len(sets))])


def nearest(given: Tensor, training: Tensor) -> list[int]:
    """Of embedded given pictures (sets, n, D) and training sets (M, D): the number of the nearest one of each set."""
    return (F.normalize(given.mean(dim=1), dim=1) @ training.T).argmax(dim=1).tolist()


def pictures_of(training: ImageSets, numbers: list[int], positions: int, *, batch: int) -> Iterator[NDArray[np.uint8]]:
    """The first pictures of these sets, (sets, positions, H, W, 3), batch by batch; from the first again if few."""
    for start in range(0, len(numbers), batch):
        chosen = numbers[start : start + batch]
        # In the order of the shards, so that each is decoded once a batch.
        found = {number: training[number].images for number in sorted(set(chosen))}
        yield np.stack([found[number][np.arange(positions) % len(found[number])] for number in chosen])


def _mean(clip: Clip, images: Tensor) -> Tensor:
    pixels = images.permute(0, 3, 1, 2).contiguous()
    embedded = torch.cat([clip.embed(part) for part in pixels.split(PICTURES_AT_ONCE)])  # type: ignore[no-untyped-call]
    return F.normalize(embedded.mean(dim=0), dim=0).cpu()
