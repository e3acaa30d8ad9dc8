"""The encoder of M2M-DINO, DINOv2 or another vision transformer: pictures to patch tokens, on their device."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModel, Dinov2Model

from m2m.devices import sent


class Preprocessing(Protocol):
    """What is used of an image processor: the size of the input, scale, normalise."""

    crop_size: dict[str, int]
    rescale_factor: float
    image_mean: list[float]
    image_std: list[float]


def dino_pixels(images: Tensor, processor: Preprocessing) -> Tensor:
    """The network's input from whole pictures, on their device. Resizing is bicubic with anti-aliasing, as Pillow's.

    The published processor resizes to more and crops: of 256 pixels it shows the middle 224, 77 % of the area. A token
    is told the ray of its place in the whole picture, which has to be what it sees, and what stands at the edge of a
    given picture should be seen as well.

    Args:
        images: uint8 RGB (n, 3, H, W).

    Returns:
        float32 (n, 3, h, w), where h and w are the processor's crop size.
    """
    pixels = images.float()  # (n, 3, H, W), 0 to 255
    size = processor.crop_size["height"], processor.crop_size["width"]
    if images.shape[-2:] != size:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)  # (n, 3, h, w)
    channels = sent([processor.image_mean, processor.image_std], pixels.device, torch.float32)  # (2, 3)
    mean, std = channels[:, :, None, None]
    normalised: Tensor = (pixels * processor.rescale_factor - mean) / std
    return normalised


def dino_tokens(encoder: Dinov2Model | CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Patch tokens without the class token: (n, 3, h, w) -> (n, L, D). The encoder is frozen: no gradient is kept."""
    with torch.no_grad():
        return encoder(pixels).last_hidden_state[:, 1:]  # type: ignore[no-any-return]
