"""The paper's metrics, by torchmetrics where it has them, on what the networks made of the pictures.

And how much the pictures of a set differ: without it, copying the given picture would win every comparison.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from m2m.evaluation.figures import by_position, to_csv
from m2m.evaluation.networks import Observations
from m2m.params import EvaluateMis

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


SPREADS = {"place": slice(0, 2), "size": slice(2, 3), "angle": slice(3, 5)}
"""What a caption leaves free, and its columns in the class network's geometry: x, y, size, sine and cosine of angle."""


def feature_diversity(features: Tensor) -> Tensor:
    """Mean distance of each position's picture to the others of its set.

    Args:
        features: (sets, positions, F), at least two positions.

    Returns:
        (positions,), float64; its mean is the mean pairwise distance within a set.
    """
    positions = features.shape[1]
    distances = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=2).mean(dim=0) / (positions - 1)


def spreads(geometry: Tensor) -> dict[str, float]:
    """Standard deviation within a set, root mean square over sets, of place, size and angle.

    Places and sizes are fractions of the picture's side; angles are points on the unit circle, so that all directions
    alike give about 1. Variances are unbiased, so lots of more or fewer positions compare.

    Args:
        geometry: (sets, positions, 5), at least two positions; nothing is known of (sets, positions, 0).
    """
    if not geometry.shape[2]:
        return {}
    variance = geometry.double().var(dim=1, correction=1).mean(dim=0)
    return {name: float(variance[part].sum().sqrt()) for name, part in SPREADS.items()}


@dataclass(frozen=True)
class Metrics:
    """A lot's numbers, by position, and those that a position alone does not have."""

    by_position: Mapping[str, Sequence[float]]
    overall: Mapping[str, float]

    def flat(self, prefix: str = "") -> dict[str, float]:
        """``name/mean``, ``name/std``, ``name/position/NN`` of each; 01 is the first after the given pictures."""
        numbers = {f"{prefix}{name}": value for name, value in self.overall.items()}
        for name, values in self.by_position.items():
            numbers |= by_position(f"{prefix}{name}", values)
        return numbers

    def to_csv(self) -> bytes:
        """A header, then a line a position with every metric, for DVC's plots."""
        rows = zip(*self.by_position.values(), strict=True)
        return to_csv(["position", *self.by_position], ([place, *row] for place, row in enumerate(rows, start=1)))


@dataclass(frozen=True)
class Benchmark:
    """What every lot is compared with: the pictures of held-out MIS sets, of which the first are given."""

    held_out: Observations
    """of all pictures of the sets, the given ones included"""
    given: int

    def reference(self, position: int) -> Tensor:
        """Features (n, F) that FID compares a position with: all held-out pictures but the given ones and those at it.

        So neither the copy of a given picture nor a held-out picture is judged by itself, and n is the same everywhere.
        """
        features = self.held_out.features
        others = [image for image in range(self.given, features.shape[1]) if image != self.given + position]
        return features[:, others].flatten(0, 1)

    def distances(self, lot: Observations, distance: Callable[[Tensor, Tensor], float]) -> list[float]:
        """FID, or another distance, of each position after the given pictures."""
        features = lot.features
        return [distance(features[:, position], self.reference(position)) for position in range(features.shape[1])]

    def metrics(self, lot: Observations, attributes: Sequence[str]) -> Metrics:
        """All metrics of a lot whose first position follows the given pictures.

        Args:
            attributes: the heads of the class network whose classes make the inception score; all if there are none.
        """
        given = self.held_out.embeddings[:, : self.given]
        heads = [lot.logits[head] for head in attributes or lot.logits]
        joint = [joint_logits([head[:, position] for head in heads]) for position in range(lot.features.shape[1])]
        return Metrics(
            {
                "fid": self.distances(lot, fid),
                "kid": self.distances(lot, kid),
                "inception_score": [inception_score(logits) for logits in joint],
                "clip_text_image": lot.text_image.tolist(),
                "clip_image_image": clip_image_image(lot.embeddings, given).tolist(),
                "diversity": feature_diversity(lot.features).tolist(),
            },
            {f"spread/{name}": value for name, value in spreads(lot.geometry).items()},
        )


def compare(
    ours: Mapping[int, Observations],
    held_out: Observations,
    baselines: Mapping[str, Observations],
    shuffled: Observations,
    attributes: Sequence[str],
    params: EvaluateMis,
) -> tuple[dict[str, Metrics], dict[str, float]]:
    """The metrics of the model ("") and of all baselines, by the same code, and their flat numbers, compared.

    Args:
        ours: what the model drew, by number of given pictures.
        held_out: all pictures of the sets.
        baselines: by name, after as many given pictures as the main table has.
        shuffled: held-out pictures after the given ones, their colours exchanged.
    """
    benchmark = Benchmark(held_out, params.main)
    main = benchmark.metrics(ours[params.main], attributes)
    after = range(params.main, params.main + params.generated)
    copied = [position % params.main for position in range(params.generated)]
    lots = {"mis": held_out.at(after), "copy": held_out.at(copied), **baselines}
    beside = {name: benchmark.metrics(lot, attributes) for name, lot in lots.items()}
    shuffled_fid = benchmark.distances(shuffled, fid)
    numbers = main.flat() | relative(main, beside["mis"], shuffled_fid)
    numbers |= by_position("baseline/shuffled/fid", shuffled_fid)
    for name, metrics in beside.items():
        numbers |= metrics.flat(f"baseline/{name}/")
    for given, lot in ours.items():
        metrics = Benchmark(held_out, given).metrics(lot, attributes) if given != params.main else main
        for name, values in metrics.by_position.items():
            numbers[f"{name}/given={given}/mean"] = _mean(values)
    return {"": main, **beside}, numbers


def relative(ours: Metrics, ceiling: Metrics, shuffled_fid: Sequence[float]) -> dict[str, float]:
    """Shares of the variety that held-out sets have, and the drift of FID from the first to the last position.

    The unit of ``relative/fid_drift`` is what exchanging the colours of held-out pictures costs in FID. Left out is
    what has no ceiling or no unit.
    """
    varied, most = ({"diversity": _mean(one.by_position["diversity"]), **one.overall} for one in (ours, ceiling))
    numbers = {f"relative/{name}": value / most[name] for name, value in varied.items() if most[name] > 0}
    fid = ours.by_position["fid"]
    if (unit := _mean(shuffled_fid) - _mean(ceiling.by_position["fid"])) > 0:
        numbers["relative/fid_drift"] = (fid[-1] - fid[0]) / unit
    return numbers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
