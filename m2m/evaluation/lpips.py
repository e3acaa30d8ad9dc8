"""LPIPS (Zhang et al., 2018), version 0.1: how different people find two pictures, by AlexNet's five convolutions.

Its weights are two files: AlexNet's as torchvision publishes them, and a weight for each channel, learned from people's
judgements, which comes with torchmetrics. The folder of a foundation holds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torchmetrics
from torch import Tensor, nn

from m2m.errors import UserError
from m2m.evaluation.perceptual import distance
from m2m.evaluation.published import load_published
from m2m.files import file_digest
from m2m.photos import as_signal

ARCHITECTURE = "lpips-alexnet-v0.1"
CHANNELS = (64, 192, 384, 256, 256)
HEADS = "functional/image/lpips_models/alex.pth"
"""In the package torchmetrics."""
HEADS_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"


class Lpips(nn.Module):
    """The distance, under torchvision's names for AlexNet's convolutions."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth, fifth = CHANNELS
        self.features = nn.Sequential(
            *(nn.Conv2d(3, first, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(second, third, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU()),
        )
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in CHANNELS)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Of n pairs of pictures, uint8 (n, 3, H, W) each, of 32 pixels a side or more: (n,), 0 for equal ones."""
        pixels = as_signal(torch.cat([first, second]))  # (2n, 3, H, W)
        shift = pixels.new_tensor((-0.030, -0.088, -0.188))[:, None, None]
        scale = pixels.new_tensor((0.458, 0.448, 0.450))[:, None, None]
        hidden, layers = (pixels - shift) / scale, []
        for layer in self.features:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                layers.append(hidden)  # (2n, C, h, w)
        return distance(layers, self.heads)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Load a folder; raises as :func:`load_published`."""
        return load_published(cls, ARCHITECTURE, folder)


def with_heads(alexnet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of :class:`Lpips`: the convolutions of AlexNet's file without its classes, and the channels' weights.

    Raises:
        UserError: the installed torchmetrics has other weights.
    """
    convolutions = {name: value for name, value in alexnet.items() if name.startswith("features.")}
    source = Path(torchmetrics.__file__).parent / HEADS
    found = file_digest(source) if source.is_file() else "missing"
    if found != HEADS_SHA256:
        raise UserError(f"{source}: its SHA-256 is {found}, expected {HEADS_SHA256}; run make setup")
    heads = torch.load(source, map_location="cpu", weights_only=True)
    layers = range(len(CHANNELS))
    return convolutions | {f"heads.{layer}.weight": heads[f"lin{layer}.model.1.weight"] for layer in layers}
