"""The judges that come with the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m2m.evaluation.networks import Networks
from m2m.evaluation.published import LPIPS, with_heads


@pytest.fixture(scope="session")
def committed() -> Networks:
    """Of the embedded world."""
    return Networks.load(Path(__file__).parents[2] / "models" / "foundation", device="cpu")


@pytest.fixture(scope="session")
def alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet, of random weights that keep the signal's size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            *(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), nn.ReLU(inplace=True)),
            *(nn.MaxPool2d(kernel_size=3, stride=2), nn.Conv2d(64, 192, kernel_size=5, padding=2)),
            *(nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=3, stride=2)),
            *(nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU(inplace=True)),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers.requires_grad_(False)


@pytest.fixture(scope="session")
def lpips_folder(alexnet: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the foundation stage makes it of AlexNet's file."""
    folder = tmp_path_factory.mktemp("perceptual")
    file: dict[str, Tensor] = {f"features.{name}": value for name, value in alexnet.state_dict().items()}
    save_file(with_heads(file | {"classifier.6.weight": torch.zeros(3)}), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": LPIPS}))
    return folder
