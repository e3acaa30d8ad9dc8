"""The DINOv2 encoder of M2M-DINO: pictures to patch tokens, on whatever device the pictures are."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Dinov2Model

from m2m.devices import sent


class Preprocessing(Protocol):
    """What DINOv2's `BitImageProcessor` holds: resize, crop to the centre, scale, normalise."""

    size: dict[str, int]
    crop_size: dict[str, int]
    rescale_factor: float
    image_mean: list[float]
    image_std: list[float]


def dino_pixels(images: Tensor, processor: Preprocessing) -> Tensor:
    """What `processor` makes of pictures, but on their device. Resizing is bicubic with anti-aliasing, as Pillow's.

    Args:
        images: uint8 RGB (n, 3, H, W).

    Returns:
        float32 (n, 3, h, w), where h and w are the processor's crop size.
    """
    pixels = images.float()  # (n, 3, H, W), 0 to 255
    height, width = images.shape[-2:]
    shortest = processor.size["shortest_edge"]
    if min(height, width) != shortest:
        size = [side * shortest // min(height, width) for side in (height, width)]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    pixels = pixels[..., top : top + height, left : left + width]  # (n, 3, h, w)
    channels = sent([processor.image_mean, processor.image_std], pixels.device)  # (2, 3)
    mean, std = channels[:, :, None, None]
    normalised: Tensor = (pixels * processor.rescale_factor - mean) / std
    return normalised


def dino_tokens(encoder: Dinov2Model, pixels: Tensor) -> Tensor:
    """Patch tokens without the class token: (n, 3, h, w) -> (n, L, D). The encoder is frozen: no gradient is kept."""
    with torch.no_grad():
        return encoder(pixels).last_hidden_state[:, 1:]  # type: ignore[no-any-return]
