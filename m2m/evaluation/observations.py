"""What the networks make of a lot of pictures, and which of these do not count.

A lot is some sets' pictures at the same positions, whoever drew them. Misses are those that the class network cannot
read, and copies of earlier ones: what is rarer among held-out pictures than one in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.multimodal import CLIPScore

from m2m.evaluation.networks import Networks

PICTURES_AT_ONCE = 128
RARE = 0.01


@dataclass(frozen=True)
class Batch:
    """Some sets."""

    captions: Sequence[str]
    given: NDArray[np.uint8]
    """(sets, n, H, W, 3); n is 0 if the pictures follow none"""
    images: NDArray[np.uint8]
    """(sets, positions, H, W, 3)"""


@dataclass(frozen=True)
class Observations:
    """What both networks see in a lot."""

    features: Tensor
    """(sets, positions, F), of the class network"""
    logits: Mapping[str, Tensor]
    """its heads to (sets, positions, classes)"""
    geometry: Tensor
    """(sets, positions, 5), or 0 where the network measures none"""
    nearest: NDArray[np.float64]
    """(sets, positions), the distance to the nearest given or earlier picture; infinite if there is none"""
    embeddings: Tensor
    """(sets, positions, D), CLIP's, of unit length; D is 0 where it was not asked"""
    text_image: Tensor
    """(positions,), CLIPScore against the captions; NaN where it was not asked"""

    def at(self, positions: Sequence[int]) -> Observations:
        """Those of some positions, in this order, repeated if named twice."""
        chosen = list(positions)
        return Observations(
            features=self.features[:, chosen],
            logits={head: values[:, chosen] for head, values in self.logits.items()},
            geometry=self.geometry[:, chosen],
            nearest=self.nearest[:, chosen],
            embeddings=self.embeddings[:, chosen],
            text_image=self.text_image[chosen],
        )


@torch.no_grad()
def observe(batches: Iterable[Batch], networks: Networks, *, by_clip: bool = True) -> Observations:
    """Shows a lot to the networks, a batch at a time: only numbers stay in memory.

    Args:
        by_clip: else the class network alone looks.
    """
    parts: list[dict[str, Tensor]] = []
    logits: list[dict[str, Tensor]] = []
    nearest: list[NDArray[np.float64]] = []
    text_image: list[CLIPScore] = []
    for batch in batches:
        shape = batch.images.shape[:2]
        images = torch.from_numpy(np.ascontiguousarray(batch.images)).to(networks.device)
        pixels = images.permute(0, 1, 4, 2, 3).contiguous().flatten(0, 1)  # (sets · positions, 3, H, W)
        some = pixels.split(PICTURES_AT_ONCE)  # type: ignore[no-untyped-call]
        read = [networks.inception(part) for part in some]
        features = _whole([one.features for one in read], shape)
        embeddings = features[..., :0]
        if by_clip:
            embeddings = _whole([networks.clip.embed(one) for one in some], shape)
            text_image = text_image or [networks.clip.score().to(networks.device) for _ in range(shape[1])]
            for position, metric in enumerate(text_image):
                metric.update(embeddings[:, position, None, None], list(batch.captions))
        geometry = _whole([one.geometry for one in read], shape)
        parts.append({"features": features.cpu(), "geometry": geometry.cpu(), "embeddings": embeddings.cpu()})
        logits.append({head: _whole([one.logits[head] for one in read], shape).cpu() for head in read[0].logits})
        # Only who reads patterns asks which pictures are copies.
        nearest.append(_nearest(batch) if networks.attributes else np.full(shape, np.inf))
    scores = [metric.compute().cpu() for metric in text_image]
    return Observations(
        **{name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        logits={head: torch.cat([part[head] for part in logits]) for head in logits[0]},
        nearest=np.concatenate(nearest),
        text_image=torch.stack(scores) if scores else torch.full((nearest[0].shape[1],), torch.nan),
    )


def some_at_once(sets: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """The pictures (n, H, W, 3) of sets, as many at once as the networks look at; the last ones are fewer."""
    pictures = (picture for of_set in sets for picture in of_set)
    while some := list(islice(pictures, PICTURES_AT_ONCE)):
        yield np.stack(some)


def read_values(logits: Sequence[Tensor]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest class of each attribute and its probability, (sets, positions, attributes) each.

    Args:
        logits: one (sets, positions, classes) an attribute.
    """
    best = [head.double().softmax(dim=2).max(dim=2) for head in logits]
    values = torch.stack([one.indices for one in best], dim=2)  # (sets, positions, attributes)
    confidences = torch.stack([one.values for one in best], dim=2)
    return values.cpu().numpy(), confidences.cpu().numpy()


def nearest_earlier(given: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of each drawn picture to the nearest given or earlier drawn one of its set.

    Args:
        given: (sets, n, H, W, 3), at least one.
        drawn: (sets, positions, H, W, 3).

    Returns:
        (sets, positions), in steps of the 8-bit scale.
    """
    count, positions = given.shape[1], drawn.shape[1]
    earlier = np.tri(count + positions, k=-1, dtype=bool)[count:]  # (positions, n + positions)
    nearest = np.empty(drawn.shape[:2])
    for index in range(len(drawn)):
        distances = _distances(np.concatenate([given[index], drawn[index]]))[count:]
        nearest[index] = np.where(earlier, distances, np.inf).min(axis=1)
    return nearest


def nearest_other(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The same to the nearest of all others of the set, earlier or later: (sets, N, H, W, 3) to (sets, N)."""
    nearest = np.empty(pictures.shape[:2])
    for index, of_set in enumerate(pictures):
        distances = _distances(of_set)
        np.fill_diagonal(distances, np.inf)
        nearest[index] = distances.min(axis=1)
    return nearest


@dataclass(frozen=True)
class Thresholds:
    """What all but the rarest held-out pictures reach."""

    confidence: NDArray[np.float64]
    """(attributes,), of the likeliest class"""
    distance: float
    """to the nearest other picture of the set"""

    @classmethod
    def of_held_out(cls, confidences: NDArray[np.float64], nearest: NDArray[np.float64]) -> Self:
        """Of confidences (sets, N, attributes) and distances by `nearest_other` (sets, N).

        The more others there are, the nearer is the nearest: sets should have at least as many pictures as those that
        are judged, the given ones included. Then no more than the rarest held-out pictures pass for copies.
        """
        return cls(np.quantile(confidences, RARE, axis=(0, 1)), float(np.quantile(nearest, RARE)))

    def misses(self, confidences: NDArray[np.float64], nearest: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where a picture misses: in an attribute that cannot be read, in all if it is a copy.

        Args:
            confidences: (sets, positions, attributes).
            nearest: (sets, positions), by `nearest_earlier`.

        Returns:
            (sets, positions, attributes).
        """
        # An exact copy is one even where held-out sets have some themselves and the threshold is 0.
        copies = (nearest < self.distance) | (nearest == 0)
        missed: NDArray[np.bool_] = (confidences < self.confidence) | copies[:, :, None]
        return missed


def _whole(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Parts (n, F) of a batch of shape (sets, positions) as one: (sets, positions, F)."""
    joined = torch.cat(list(parts))
    return joined.reshape(*shape, joined.shape[1])


def _nearest(batch: Batch) -> NDArray[np.float64]:
    if batch.given.shape[1]:
        return nearest_earlier(batch.given, batch.images)
    first = np.full((len(batch.images), 1), np.inf)
    return np.concatenate([first, nearest_earlier(batch.images[:, :1], batch.images[:, 1:])], axis=1)


def _distances(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square differences (N, N) of pictures (N, H, W, 3).

    By scalar products: they are whole numbers far below 2^53, so that float64 holds them exactly and equal pictures are
    at distance 0.
    """
    rows = pictures.reshape(len(pictures), -1).astype(np.float64)  # (N, H·W·3)
    products = rows @ rows.T  # (N, N)
    squares = np.diag(products)
    distances: NDArray[np.float64] = np.sqrt((squares[:, None] + squares - 2 * products) / rows.shape[1])
    return distances
