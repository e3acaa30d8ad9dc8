"""Networks with published weights, from the folders that fetching them made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from m2m.devices import align

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
