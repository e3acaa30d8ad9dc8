"""All that is measured on one lot of pictures: the same sets, the same positions, whoever drew them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.multimodal import CLIPScore

from m2m.evaluation.diversity import feature_diversity, spreads
from m2m.evaluation.misses import nearest_earlier
from m2m.evaluation.networks import Networks
from m2m.evaluation.scores import clip_image_image, fid, inception_score, joint_logits, kid

PICTURES_AT_ONCE = 128


@dataclass(frozen=True)
class Batch:
    """Some sets."""

    captions: Sequence[str]
    given: NDArray[np.uint8]
    """(sets, n, H, W, 3); n is 0 if the pictures follow none"""
    images: NDArray[np.uint8]
    """(sets, positions, H, W, 3)"""


@dataclass(frozen=True)
class Readings:
    """What the class network makes of a lot."""

    features: Tensor
    """(sets, positions, F)"""
    logits: Mapping[str, Tensor]
    """head to (sets, positions, classes)"""
    geometry: Tensor
    """(sets, positions, 5), or 0 where the network measures none"""
    nearest: NDArray[np.float64]
    """(sets, positions), the distance to the nearest given or earlier picture; infinite if there is none"""

    def at(self, positions: Sequence[int]) -> Readings:
        """The readings of some positions, in this order, repeated if named twice."""
        chosen = list(positions)
        logits = {head: values[:, chosen] for head, values in self.logits.items()}
        return Readings(self.features[:, chosen], logits, self.geometry[:, chosen], self.nearest[:, chosen])


@dataclass(frozen=True)
class Measurements:
    """What both networks make of a lot."""

    readings: Readings
    embeddings: Tensor
    """(sets, positions, D), unit length"""
    text_image: Tensor
    """(positions,), CLIPScore against the captions"""

    def at(self, positions: Sequence[int]) -> Measurements:
        """The measurements of some positions, in this order, repeated if named twice."""
        chosen = list(positions)
        return Measurements(self.readings.at(chosen), self.embeddings[:, chosen], self.text_image[chosen])


@dataclass(frozen=True)
class Scores:
    """A lot's numbers, by position, and those that a position alone does not have."""

    by_position: Mapping[str, Sequence[float]]
    overall: Mapping[str, float]


@dataclass(frozen=True)
class Benchmark:
    """What every lot is compared with: the captions and pictures of held-out MIS sets, of which the first are given."""

    captions: Sequence[str]
    held_out: Measurements
    """of all pictures of the sets, the given ones included"""
    given: int

    def reference(self, position: int) -> Tensor:
        """Features (n, F) that FID compares a position with: all held-out pictures but the given ones and those at it.

        So neither the copy of a given picture nor a held-out picture is judged by itself, and n is the same everywhere.
        """
        features = self.held_out.readings.features
        others = [image for image in range(self.given, features.shape[1]) if image != self.given + position]
        return features[:, others].flatten(0, 1)

    def fid(self, readings: Readings) -> list[float]:
        """FID of each position after the given pictures."""
        return self._distances(readings, fid)

    def _distances(self, readings: Readings, distance: Callable[[Tensor, Tensor], float]) -> list[float]:
        features = readings.features
        return [distance(features[:, position], self.reference(position)) for position in range(features.shape[1])]

    def scores(self, lot: Measurements, networks: Networks) -> Scores:
        """All metrics of a lot whose first position follows the given pictures."""
        readings, attributes = lot.readings, networks.attributes
        heads = [readings.logits[head] for head in attributes or readings.logits]
        by_position = {
            "fid": self.fid(readings),
            "kid": self._distances(readings, kid),
            "inception_score": [
                inception_score(joint_logits([head[:, position] for head in heads]))
                for position in range(readings.features.shape[1])
            ],
            "clip_text_image": lot.text_image.tolist(),
            "clip_image_image": clip_image_image(lot.embeddings, self.held_out.embeddings[:, : self.given]).tolist(),
            "diversity": feature_diversity(readings.features).tolist(),
        }
        spread = spreads(readings.geometry) if readings.geometry.shape[2] else {}
        return Scores(by_position, {f"spread/{name}": value for name, value in spread.items()})


@torch.no_grad()
def read(batches: Iterable[Batch], networks: Networks) -> Readings:
    """Show a lot to the class network alone."""
    return _joined([_read(_on(networks.device, batch.images), batch, networks) for batch in batches])


@torch.no_grad()
def measure(batches: Iterable[Batch], networks: Networks) -> Measurements:
    """Show a lot to both networks, a batch at a time: only numbers stay in memory."""
    readings: list[Readings] = []
    embeddings: list[Tensor] = []
    text_image: list[CLIPScore] = []
    for batch in batches:
        pixels = _on(networks.device, batch.images)
        readings.append(_read(pixels, batch, networks))
        parts = [networks.clip.embed(part) for part in torch.split(pixels.flatten(0, 1), PICTURES_AT_ONCE)]
        embedded = torch.cat(parts).reshape(*pixels.shape[:2], -1)
        embeddings.append(embedded.cpu())
        text_image = text_image or [networks.clip.score().to(networks.device) for _ in range(pixels.shape[1])]
        for position, metric in enumerate(text_image):
            metric.update(embedded[:, position, None, None], list(batch.captions))
    scores = torch.stack([metric.compute().cpu() for metric in text_image])
    return Measurements(_joined(readings), torch.cat(embeddings), scores)


def _on(device: torch.device, images: NDArray[np.uint8]) -> Tensor:
    """(sets, positions, 3, H, W) on the device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 1, 4, 2, 3).contiguous()


def _read(pixels: Tensor, batch: Batch, networks: Networks) -> Readings:
    parts = [networks.inception(part) for part in torch.split(pixels.flatten(0, 1), PICTURES_AT_ONCE)]

    def whole(values: Iterator[Tensor]) -> Tensor:
        joined = torch.cat(list(values))
        return joined.reshape(*pixels.shape[:2], joined.shape[1]).cpu()

    return Readings(
        features=whole(part.features for part in parts),
        logits={head: whole(part.logits[head] for part in parts) for head in parts[0].logits},
        geometry=whole(part.geometry for part in parts),
        # Only who reads patterns asks which pictures are copies.
        nearest=_nearest(batch) if networks.attributes else np.full(pixels.shape[:2], np.inf),
    )


def _nearest(batch: Batch) -> NDArray[np.float64]:
    if batch.given.shape[1]:
        return nearest_earlier(batch.given, batch.images)
    first = np.full((len(batch.images), 1), np.inf)
    return np.concatenate([first, nearest_earlier(batch.images[:, :1], batch.images[:, 1:])], axis=1)


def _joined(parts: Sequence[Readings]) -> Readings:
    return Readings(
        features=torch.cat([part.features for part in parts]),
        logits={head: torch.cat([part.logits[head] for part in parts]) for head in parts[0].logits},
        geometry=torch.cat([part.geometry for part in parts]),
        nearest=np.concatenate([part.nearest for part in parts]),
    )
