"""The paper's metrics, by torchmetrics where it has them, on what the networks made of the pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

SPLITS, LEAST_IN_SPLIT = 10, 50
KID_SUBSET, KID_SUBSETS = 1000, 50


class AsGiven(nn.Module):
    """Stands where torchmetrics expects a network, and hands on what a network made of the pictures already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(sample: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two lots of features (n, F) and (m, F), as Gaussians, in float64 (Heusel et al., 2017).

    It is biased upwards, the more the fewer pictures there are: compare it only at equal n and with one reference.
    """
    metric = FrechetInceptionDistance(feature=AsGiven(sample.shape[1]))
    metric.set_dtype(torch.float64)
    metric.to(sample.device)
    metric.update(reference.double(), real=True)
    metric.update(sample.double(), real=False)
    return float(metric.compute())


def kid(sample: Tensor, reference: Tensor) -> float:
    """Kernel distance of two lots of features (n, F) and (m, F), unbiased at any n (Bińkowski et al., 2018).

    The mean over 50 random subsets of min(n, m, 1000) of each. Below 0 is as good as 0.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all extracted features")
        torch.manual_seed(0)  # its subsets are drawn from the global generator
        size = min(len(sample), len(reference), KID_SUBSET)
        metric = KernelInceptionDistance(feature=AsGiven(sample.shape[1]), subsets=KID_SUBSETS, subset_size=size).to(
            sample.device
        )
        metric.update(reference.double(), real=True)
        metric.update(sample.double(), real=False)
        return float(metric.compute()[0])


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of each picture's classes (n, C) from their mean (Salimans et al., 2016).

    The mean of ten splits, as published, where each has fifty pictures or more; else in one: splits of a few dozen
    would only measure their own size. The spread is that over positions.
    """
    splits = SPLITS if len(logits) >= SPLITS * LEAST_IN_SPLIT else 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all extracted features")
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom is <= 0")  # of one split
        torch.manual_seed(0)  # its permutation is drawn from the global generator
        metric = InceptionScore(feature=AsGiven(logits.shape[1]), splits=splits).to(logits.device)
        # Float64, because a class that is nowhere likely underflows in float32 and makes the score NaN.
        metric.update(logits.double())
        return float(metric.compute()[0])


def joint_logits(heads: Sequence[Tensor]) -> Tensor:
    """Log-probabilities (n, C1·C2·…) of the combinations of several heads' classes, taken as independent."""
    first, *rest = (head.double().log_softmax(dim=1) for head in heads)
    for head in rest:
        first = (first.unsqueeze(2) + head.unsqueeze(1)).flatten(1)
    return first


def clip_image_image(embeddings: Tensor, given: Tensor) -> Tensor:
    """100 · mean cosine of each position's pictures to the given ones of their set.

    Args:
        embeddings: (sets, positions, D), unit length.
        given: (sets, given, D), unit length.

    Returns:
        (positions,), float64.
    """
    return 100 * torch.einsum("spd,sgd->spg", embeddings.double(), given.double()).mean(dim=(0, 2))
