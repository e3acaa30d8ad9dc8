"""The Inception-like network of the embedded world: features for FID and IS, and readings of what a picture shows.

It stands where Inception-v3 stands in the paper. Besides a short feature vector it names what it sees (noun, colour,
style, step of a procedure) and measures where: place, size and angle, which a caption leaves free.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2m.files import check_digests, reading_foundation
from m2m.photos import as_signal

ARCHITECTURE = "world-classifier"
FEATURES = 64
GEOMETRY = ("x", "y", "size", "sin_angle", "cos_angle")
Network = TypeVar("Network")


@dataclass(frozen=True)
class Readings:
    """What the network reads from n pictures."""

    features: Tensor  # (n, 64) float32
    logits: Mapping[str, Tensor]  # head name -> (n, classes)
    geometry: Tensor  # (n, 5): x, y, size as fractions of the picture; sine and cosine of the angle

    def names(self, classes: Mapping[str, Sequence[str]], head: str) -> list[str]:
        """The most likely class name for each picture."""
        return [classes[head][index] for index in self.logits[head].argmax(dim=1).tolist()]


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip, halving the resolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, width_out),
            nn.SiLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1, bias=False),
            nn.GroupNorm(8, width_out),
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width_in, width_out, 1, bias=False))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.silu(self.body(hidden) + self.skip(hidden))


class WorldClassifier(nn.Module):
    """A small residual network with one linear head for each thing a caption names.

    Args:
        classes: class names of each head, in the order of its logits.
        widths: channels of its stages, each at half the resolution of the one before.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]], widths: Sequence[int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.classes = {head: tuple(names) for head, names in classes.items()}
        self.widths = tuple(widths)
        stem, *rest = self.widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, stem), nn.SiLU()
        )
        self.stages = nn.Sequential(*(Residual(a, b) for a, b in zip(self.widths, rest, strict=False)))
        # Average and maximum together: the average carries style, the maximum carries shape.
        self.neck = nn.Linear(2 * self.widths[-1], FEATURES)
        self.heads = nn.ModuleDict({head: nn.Linear(FEATURES, len(names)) for head, names in self.classes.items()})
        self.places = nn.Linear(self.widths[-1] * 16, len(GEOMETRY))

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """One for each resolution, from fine to coarse: what pictures are compared by."""
        return self.stem, *self.stages

    def forward(self, images: Tensor) -> Readings:
        """Read uint8 pictures.

        Args:
            images: (n, 3, 64, 64) uint8.
        """
        hidden = self.stem(as_signal(images))  # (n, 32, 32, 32)
        hidden = self.stages(hidden)  # (n, 128, 4, 4)
        pooled = torch.cat([hidden.mean(dim=(2, 3)), hidden.amax(dim=(2, 3))], dim=1)  # (n, 256)
        features = self.neck(pooled)  # (n, 64)
        active = F.silu(features)
        logits = {head: linear(active) for head, linear in self.heads.items()}
        return Readings(features=features, logits=logits, geometry=self.places(hidden.flatten(1)))

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"architecture": ARCHITECTURE, "classes": self.classes, "geometry": GEOMETRY, "widths": self.widths}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Load a folder written by :meth:`save_pretrained`, in eval mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the folder holds another architecture.
        """
        config = json.loads((folder / "config.json").read_text())
        if config.get("architecture") != ARCHITECTURE:
            raise ValueError(f"{folder}: architecture is {config.get('architecture')!r}, expected {ARCHITECTURE!r}")
        model = cls(config["classes"], config["widths"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval().requires_grad_(False)


def load_class_network(folder: Path, loaders: Mapping[str, Callable[[Path], Network]]) -> tuple[Network | None, str]:
    """The class network of a foundation, and what its folder calls it; no network where no loader is for that.

    Args:
        loaders: by architecture.

    Raises:
        UserError: the folder is missing or damaged.
    """
    check_digests(folder)
    with reading_foundation(folder):
        architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"]
        return loaders[architecture](folder) if architecture in loaders else None, architecture
