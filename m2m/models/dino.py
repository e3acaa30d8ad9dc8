"""The DINOv2 encoder of M2M-DINO: pictures to patch tokens, on whatever device the pictures are."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BaseImageProcessor, Dinov2Model


def dino_pixels(images: Tensor, processor: BaseImageProcessor) -> Tensor:
    """What `processor`, DINOv2's `BitImageProcessor`, does to pictures, on their device: resize, crop to the centre, normalise.

    Resizing is bicubic with anti-aliasing, as Pillow's.

    Args:
        images: uint8 RGB (n, 3, H, W).

    Returns:
        float32 (n, 3, h, w), where h and w are the processor's crop size.
    """
    pixels = images.float()  # (n, 3, H, W), 0 to 255
    shortest, crop = processor.size["shortest_edge"], processor.crop_size
    height, width = images.shape[-2:]
    if min(height, width) != shortest:
        size = [int(side * shortest / min(height, width)) for side in (height, width)]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = ((side - part) // 2 for side, part in zip(pixels.shape[-2:], (crop["height"], crop["width"]), strict=True))
    pixels = pixels[..., top : top + crop["height"], left : left + crop["width"]]  # (n, 3, h, w)
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (pixels * processor.rescale_factor - mean) / std  # type: ignore[no-any-return]


def dino_tokens(encoder: Dinov2Model, pixels: Tensor) -> Tensor:
    """Patch tokens without the class token: (n, 3, h, w) -> (n, L, D). The encoder is frozen: no gradient is kept."""
    with torch.no_grad():
        return cast(Tensor, encoder(pixels).last_hidden_state[:, 1:])
