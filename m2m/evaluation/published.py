"""Networks with published weights, under the names that these have in their files.

**Inception-v3** as FID knows it comes from the TensorFlow graph of 2015 behind the first FID figures
("inception-v3-compat"). Three things differ from the Inception-v3 of textbooks, and figures compare only if all three
are kept: bilinear resizing without half-pixel centres, average pooling that leaves the padding out, and a last block
that pools by maximum.

**LPIPS** (Zhang et al., 2018), version 0.1, tells how different people find two pictures, by AlexNet's five
convolutions. Its weights are two files: AlexNet's as torchvision publishes them, and a weight for each channel, learned
from people's judgements, which comes with torchmetrics. The folder of a foundation holds both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
import torchmetrics
from safetensors.torch import load_file
from torch import Tensor, nn

from m2m.devices import align
from m2m.errors import UserError
from m2m.files import file_digest
from m2m.models.classifier import Readings

INCEPTION_V3 = "inception-v3-compat"
SIDE = 299
FEATURES = 2048
CLASSES = 1008

Kernel = tuple[int, int]


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; ``same`` keeps height and width."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Kernel, *, stride: int = 1, same: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(hidden)))


class Mixed(nn.Module):
    """Paths side by side, concatenated: each a row of named layers; rows that begin alike share their beginning."""

    def __init__(self, layers: Mapping[str, nn.Module], paths: Sequence[tuple[str, ...]]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.paths = tuple(paths)

    def forward(self, hidden: Tensor) -> Tensor:
        done: dict[tuple[str, ...], Tensor] = {(): hidden}
        for path in self.paths:
            for end in range(1, len(path) + 1):
                if path[:end] not in done:
                    done[path[:end]] = self.get_submodule(path[end - 1])(done[path[: end - 1]])
        return torch.cat([done[path] for path in self.paths], dim=1)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _a(width: int, pooled: int) -> Mixed:
    """35 x 35: 1x1, 5x5, two 3x3."""
    layers = {
        "branch1x1": Convolution(width, 64, (1, 1)),
        "branch5x5_1": Convolution(width, 48, (1, 1)),
        "branch5x5_2": Convolution(48, 64, (5, 5)),
        "branch3x3dbl_1": Convolution(width, 64, (1, 1)),
        "branch3x3dbl_2": Convolution(64, 96, (3, 3)),
        "branch3x3dbl_3": Convolution(96, 96, (3, 3)),
        "pool": _average(),
        "branch_pool": Convolution(width, pooled, (1, 1)),
    }
    doubled = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    return Mixed(layers, [("branch1x1",), ("branch5x5_1", "branch5x5_2"), doubled, ("pool", "branch_pool")])


def _b(width: int) -> Mixed:
    """35 x 35 to 17 x 17."""
    layers = {
        "branch3x3": Convolution(width, 384, (3, 3), stride=2, same=False),
        "branch3x3dbl_1": Convolution(width, 64, (1, 1)),
        "branch3x3dbl_2": Convolution(64, 96, (3, 3)),
        "branch3x3dbl_3": Convolution(96, 96, (3, 3), stride=2, same=False),
        "pool": nn.MaxPool2d(3, stride=2),
    }
    return Mixed(layers, [("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("pool",)])


def _c(width: int, inner: int) -> Mixed:
    """17 x 17: 7x7 in two halves, once and twice."""
    layers = {
        "branch1x1": Convolution(width, 192, (1, 1)),
        "branch7x7_1": Convolution(width, inner, (1, 1)),
        "branch7x7_2": Convolution(inner, inner, (1, 7)),
        "branch7x7_3": Convolution(inner, 192, (7, 1)),
        "branch7x7dbl_1": Convolution(width, inner, (1, 1)),
        "branch7x7dbl_2": Convolution(inner, inner, (7, 1)),
        "branch7x7dbl_3": Convolution(inner, inner, (1, 7)),
        "branch7x7dbl_4": Convolution(inner, inner, (7, 1)),
        "branch7x7dbl_5": Convolution(inner, 192, (1, 7)),
        "pool": _average(),
        "branch_pool": Convolution(width, 192, (1, 1)),
    }
    single = ("branch7x7_1", "branch7x7_2", "branch7x7_3")
    doubled = tuple(f"branch7x7dbl_{step}" for step in range(1, 6))
    return Mixed(layers, [("branch1x1",), single, doubled, ("pool", "branch_pool")])


def _d(width: int) -> Mixed:
    """17 x 17 to 8 x 8."""
    layers = {
        "branch3x3_1": Convolution(width, 192, (1, 1)),
        "branch3x3_2": Convolution(192, 320, (3, 3), stride=2, same=False),
        "branch7x7x3_1": Convolution(width, 192, (1, 1)),
        "branch7x7x3_2": Convolution(192, 192, (1, 7)),
        "branch7x7x3_3": Convolution(192, 192, (7, 1)),
        "branch7x7x3_4": Convolution(192, 192, (3, 3), stride=2, same=False),
        "pool": nn.MaxPool2d(3, stride=2),
    }
    seven = tuple(f"branch7x7x3_{step}" for step in range(1, 5))
    return Mixed(layers, [("branch3x3_1", "branch3x3_2"), seven, ("pool",)])


def _e(width: int, pool: nn.Module) -> Mixed:
    """8 x 8: 3x3 split into 1x3 beside 3x1."""
    layers = {
        "branch1x1": Convolution(width, 320, (1, 1)),
        "branch3x3_1": Convolution(width, 384, (1, 1)),
        "branch3x3_2a": Convolution(384, 384, (1, 3)),
        "branch3x3_2b": Convolution(384, 384, (3, 1)),
        "branch3x3dbl_1": Convolution(width, 448, (1, 1)),
        "branch3x3dbl_2": Convolution(448, 384, (3, 3)),
        "branch3x3dbl_3a": Convolution(384, 384, (1, 3)),
        "branch3x3dbl_3b": Convolution(384, 384, (3, 1)),
        "pool": pool,
        "branch_pool": Convolution(width, 192, (1, 1)),
    }
    doubled = ("branch3x3dbl_1", "branch3x3dbl_2")
    single = [("branch3x3_1", "branch3x3_2a"), ("branch3x3_1", "branch3x3_2b")]
    paths = [
        ("branch1x1",),
        *single,
        (*doubled, "branch3x3dbl_3a"),
        (*doubled, "branch3x3dbl_3b"),
        ("pool", "branch_pool"),
    ]
    return Mixed(layers, paths)


class InceptionV3(nn.Module):
    """Pool features for FID, logits without bias for IS. It names no attribute of a caption: `classes` is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: Mapping[str, Sequence[str]] = {}
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), same=False)
        self.Mixed_5b = _a(192, 32)
        self.Mixed_5c = _a(256, 64)
        self.Mixed_5d = _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b = _c(768, 128)
        self.Mixed_6c = _c(768, 160)
        self.Mixed_6d = _c(768, 160)
        self.Mixed_6e = _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b = _e(1280, _average())
        self.Mixed_7c = _e(2048, nn.MaxPool2d(3, stride=1, padding=1))
        self.fc = nn.Linear(FEATURES, CLASSES)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """One for each resolution, from fine to coarse: what pictures are compared by."""
        return self.Conv2d_2b_3x3, self.Conv2d_4a_3x3, self.Mixed_5d, self.Mixed_6e, self.Mixed_7c

    def forward(self, images: Tensor) -> Readings:
        """Read uint8 pictures of any size.

        Args:
            images: (n, 3, H, W) uint8.
        """
        hidden = (resize_like_tensorflow(images.float(), SIDE) - 128) / 128  # (n, 3, 299, 299)
        hidden = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(hidden)))  # (n, 64, 147, 147)
        hidden = F.max_pool2d(hidden, 3, stride=2)  # (n, 64, 73, 73)
        hidden = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(hidden))  # (n, 192, 71, 71)
        hidden = F.max_pool2d(hidden, 3, stride=2)  # (n, 192, 35, 35)
        hidden = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(hidden)))  # (n, 288, 35, 35)
        hidden = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(hidden)))  # (n, 768, 17, 17)
        hidden = self.Mixed_6e(self.Mixed_6d(hidden))  # (n, 768, 17, 17)
        hidden = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(hidden)))  # (n, 2048, 8, 8)
        features = hidden.mean(dim=(2, 3))  # (n, 2048)
        logits = features @ self.fc.weight.T  # (n, 1008)
        return Readings(features=features, logits={"class": logits}, geometry=features.new_empty(len(features), 0))

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Load a folder; raises as :func:`load_published`."""
        return load_published(cls, INCEPTION_V3, folder)


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1 does it: output pixel i reads at i · (size / side), without half-pixel centres.

    Args:
        images: (n, C, H, W) floating point.
    """
    for dim in (3, 2):
        size = images.shape[dim]
        where = torch.arange(side, dtype=images.dtype, device=images.device) * (size / side)
        low = where.long()
        high = (low + 1).clamp_max(size - 1)
        weight = (where - low).unsqueeze(1) if dim == 2 else where - low
        first, second = images.index_select(dim, low), images.index_select(dim, high)
        images = first + (second - first) * weight
    return images


LPIPS = "lpips-alexnet-v0.1"
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
        pixels = torch.cat([first, second]).float() / 127.5 - 1  # (2n, 3, H, W)
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
        return load_published(cls, LPIPS, folder)


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


Network = TypeVar("Network", bound=nn.Module)


def load_published(make: Callable[[], Network], architecture: str, folder: Path) -> Network:
    """A network in eval mode with the ``model.safetensors`` of a folder whose ``config.json`` names its architecture.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another architecture.
        RuntimeError: the weights are of another network.
    """
    found = json.loads((folder / "config.json").read_text())["architecture"]
    if found != architecture:
        raise ValueError(f"{folder}: architecture is {found!r}, expected {architecture!r}")
    with torch.device("meta"):
        network = make()  # random weights would take seconds, only to be overwritten
    network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    align(network)
    return network.eval().requires_grad_(False)


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
