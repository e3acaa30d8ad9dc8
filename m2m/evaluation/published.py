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
from typing import ClassVar, Self

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
Layer = tuple[str, int, Kernel] | tuple[str, int, Kernel, int] | tuple[str, nn.Module]
"""A convolution: its name, channels, kernel and, if it makes pictures smaller, stride; or another layer."""


class Published(nn.Module):
    """A network whose weights somebody else trained."""

    architecture: ClassVar[str]

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """In eval mode, with the ``model.safetensors`` of a folder whose ``config.json`` names its architecture.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the folder holds another architecture.
            RuntimeError: the weights are of another network.
        """
        found = json.loads((folder / "config.json").read_text())["architecture"]
        if found != cls.architecture:
            raise ValueError(f"{folder}: architecture is {found!r}, expected {cls.architecture!r}")
        with torch.device("meta"):
            network = cls()  # random weights would take seconds, only to be overwritten
        network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
        align(network)
        return network.eval().requires_grad_(False)


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; ``same`` keeps height and width."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Kernel, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(hidden)))


class Mixed(nn.Module):
    """Paths side by side, concatenated: each a row of named layers; rows that begin alike share their beginning."""

    def __init__(self, width: int, *paths: Sequence[Layer]) -> None:
        super().__init__()
        for path in paths:
            channels = width
            for name, *layer in path:
                match layer:
                    case [nn.Module() as other]:
                        self.add_module(name, other)
                    case [int(wide), (int(high), int(broad)), *strides]:
                        stride = 2 if strides else 1
                        self.add_module(name, Convolution(channels, wide, (high, broad), stride, same=not strides))
                        channels = wide
        self.paths = [tuple(layer[0] for layer in path) for path in paths]

    def forward(self, hidden: Tensor) -> Tensor:
        done: dict[tuple[str, ...], Tensor] = {(): hidden}
        for path in self.paths:
            for end in range(1, len(path) + 1):
                if path[:end] not in done:
                    done[path[:end]] = self.get_submodule(path[end - 1])(done[path[: end - 1]])
        return torch.cat([done[path] for path in self.paths], dim=1)


def _pool(*, average: bool = False, stride: int = 2) -> tuple[str, nn.Module]:
    if average:
        return "pool", nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return "pool", nn.MaxPool2d(3, stride=stride, padding=2 - stride)


def _a(width: int, pooled: int) -> Mixed:
    """35 x 35: 1x1, 5x5, two 3x3."""
    return Mixed(
        width,
        [("branch1x1", 64, (1, 1))],
        [("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))],
        [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))],
        [_pool(average=True), ("branch_pool", pooled, (1, 1))],
    )


def _b(width: int) -> Mixed:
    """35 x 35 to 17 x 17."""
    return Mixed(
        width,
        [("branch3x3", 384, (3, 3), 2)],
        [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3), 2)],
        [_pool()],
    )


def _c(width: int, inner: int) -> Mixed:
    """17 x 17: 7x7 in two halves, once and twice."""
    double = [((1, 1), inner), ((7, 1), inner), ((1, 7), inner), ((7, 1), inner), ((1, 7), 192)]
    return Mixed(
        width,
        [("branch1x1", 192, (1, 1))],
        [("branch7x7_1", inner, (1, 1)), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        [(f"branch7x7dbl_{step}", wide, kernel) for step, (kernel, wide) in enumerate(double, start=1)],
        [_pool(average=True), ("branch_pool", 192, (1, 1))],
    )


def _d(width: int) -> Mixed:
    """17 x 17 to 8 x 8."""
    first: list[Layer] = [("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7))]
    return Mixed(
        width,
        [("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3), 2)],
        [*first, ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, (3, 3), 2)],
        [_pool()],
    )


def _e(width: int, pool: tuple[str, nn.Module]) -> Mixed:
    """8 x 8: 3x3 split into 1x3 beside 3x1."""
    single: list[Layer] = [("branch3x3_1", 384, (1, 1))]
    double: list[Layer] = [("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))]
    return Mixed(
        width,
        [("branch1x1", 320, (1, 1))],
        [*single, ("branch3x3_2a", 384, (1, 3))],
        [*single, ("branch3x3_2b", 384, (3, 1))],
        [*double, ("branch3x3dbl_3a", 384, (1, 3))],
        [*double, ("branch3x3dbl_3b", 384, (3, 1))],
        [pool, ("branch_pool", 192, (1, 1))],
    )


class InceptionV3(Published):
    """Pool features for FID, logits without bias for IS. It names no attribute of a caption: `classes` is empty."""

    architecture = INCEPTION_V3

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
        self.Mixed_7b = _e(1280, _pool(average=True))
        self.Mixed_7c = _e(2048, _pool(stride=1))
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


class Lpips(Published):
    """The distance, under torchvision's names for AlexNet's convolutions."""

    architecture = LPIPS

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
