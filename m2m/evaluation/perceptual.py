"""A perceptual distance, built like LPIPS (Zhang et al., 2018, eq. 1) on the layers of the foundation's class network.

It is not called LPIPS: that weights the layers of an AlexNet or VGG by human judgement. Here all weights are 1, and the
network's name is recorded beside the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2m.evaluation.inception_v3 import InceptionV3
from m2m.models.classifier import WorldClassifier


def perceptual_distance(network: WorldClassifier | InceptionV3, first: Tensor, second: Tensor) -> Tensor:
    """Of n pairs of pictures, uint8 (n, 3, H, W) each: (n,), 0 for equal ones.

    At every layer features are scaled to unit length at each place; the squared distances are averaged over places and
    summed over layers.
    """
    count = len(first)
    distance = torch.zeros(count, device=first.device)
    for features in _features(network, torch.cat([first, second])):
        unit = F.normalize(features, dim=1)  # (2n, C, h, w)
        distance += (unit[:count] - unit[count:]).square().sum(dim=1).mean(dim=(1, 2))
    return distance


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
