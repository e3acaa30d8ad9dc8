"""Training of the class network: names what the world's pictures show, also through the autoencoder's eyes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from m2m.foundation.fit import Loss
from m2m.models.classifier import WorldClassifier
from m2m.world.vocabulary import MAX_STEPS, WORDS

GEOMETRY_WEIGHT = 20.0
NOISE = 6.0  # standard deviation in grey levels
CLASSES: Mapping[str, tuple[str, ...]] = {
    **WORDS,
    "step": tuple(str(step) for step in range(MAX_STEPS + 1)),
}


def naming_loss(
    network: WorldClassifier, images: Tensor, labels: Mapping[str, Tensor], geometry: Tensor, placed: Tensor
) -> Loss:
    """Cross-entropy of every head, and the squared error of place, size and angle where a picture has them.

    Args:
        images: uint8 (n, 3, 64, 64).
        labels: head name -> (n,) class indices.
        geometry: (n, 5); placed: (n,) whether a picture has one.
    """

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        shown = images[batch].float()
        noise = NOISE * torch.rand(len(batch), 1, 1, 1, generator=draws) * torch.randn(shown.shape, generator=draws)
        shown = shown + noise.to(shown.device)
        readings = network(shown.clamp(0, 255))
        named = sum(
            F.cross_entropy(readings.logits[head], labels[head][batch], label_smoothing=0.02) for head in labels
        )
        errors = (readings.geometry - geometry[batch]).square().mean(dim=1)
        measured = (errors * placed[batch]).sum() / placed[batch].sum().clamp_min(1)
        total: Tensor = named + GEOMETRY_WEIGHT * measured
        return total

    return loss


@torch.no_grad()
def right(
    network: WorldClassifier, images: Tensor, labels: Mapping[str, Tensor], batch_size: int = 256
) -> dict[str, Tensor]:
    """Whether each picture, uint8 (n, 3, 64, 64), is read as labelled: head name -> bool (n,)."""
    read = [network(part).logits for part in torch.split(images, batch_size)]
    return {head: torch.cat([logits[head] for logits in read]).argmax(dim=1) == truth for head, truth in labels.items()}
