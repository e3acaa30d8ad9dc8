"""Perceptual distances (Zhang et al., 2018, eq. 1), and one on the layers of the foundation's class network.

That one is not called LPIPS: LPIPS weights the layers of an AlexNet or VGG by human judgement. Here all weights are 1,
and the network's name is recorded beside the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2m.evaluation.inception_v3 import InceptionV3
from m2m.models.classifier import WorldClassifier


def perceptual_distance(network: WorldClassifier | InceptionV3, first: Tensor, second: Tensor) -> Tensor:
    """Of n pairs of pictures, uint8 (n, 3, H, W) each: (n,), 0 for equal ones."""
    unweighted: Callable[[Tensor], Tensor] = lambda squares: squares.sum(dim=1, keepdim=True)  # noqa: E731
    return distance(_features(network, torch.cat([first, second])), repeat(unweighted))


def distance(layers: Iterable[Tensor], heads: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Of n pairs of pictures, the first ones before the second ones: (n,).

    At every layer features are scaled to unit length at each place; the squared distances are weighed, averaged over
    places and summed over layers.

    Args:
        layers: what each layer makes of the pictures, (2n, C, h, w).
        heads: a layer's sum over channels, each with its weight: (n, C, h, w) to (n, 1, h, w).
    """
    found = []
    for features, head in zip(layers, heads, strict=False):
        first, second = F.normalize(features, dim=1).chunk(2)  # (n, C, h, w) each
        found.append(head((first - second).square()).mean(dim=(1, 2, 3)))
    return reduce(torch.add, found)


def _features(network: WorldClassifier | InceptionV3, images: Tensor) -> list[Tensor]:
    """What each of the network's layers gives, (n, C, h, w) each."""
    found: list[Tensor] = []
    keep: Callable[[nn.Module, object, Tensor], None] = lambda _module, _inputs, output: found.append(output)  # noqa: E731
    hooks = [layer.register_forward_hook(keep) for layer in network.layers]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
