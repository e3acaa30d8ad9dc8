"""DINOv2's own preprocessing against ours on the device, and real and tiny encoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from m2m.models.dino import dino_pixels, dino_tokens

PUBLISHED = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DINOV2 = BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, **PUBLISHED)
SMALL = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **PUBLISHED)
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518, "patch_size": 14}
LARGE = {**BASE, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (48, 48), (100, 64), (90, 301), (256, 256)])
@pytest.mark.parametrize("processor", [DINOV2, SMALL], ids=["published", "small"])
def test_pixels_are_the_processors(processor: BitImageProcessorPil, size: tuple[int, int]) -> None:
    coarse = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    images = (torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 255).to(torch.uint8)
    expected = processor(list(images), return_tensors="pt").pixel_values
    off = (dino_pixels(images, processor) - expected).abs() * torch.tensor(processor.image_std)[:, None, None] * 255
    assert off.max() < 1.01  # a pixel value rounded the other way
    assert off.mean() < 0.25  # Pillow rounds between its two passes, too


@pytest.mark.parametrize("architecture", [BASE, LARGE], ids=["base", "large"])
def test_a_published_encoder_gives_256_tokens_a_picture(architecture: dict[str, int]) -> None:
    with torch.device("meta"):
        encoder = Dinov2Model(Dinov2Config(**architecture))
        tokens = dino_tokens(encoder, torch.zeros(3, 3, 224, 224))
    assert tokens.shape == (3, 256, architecture["hidden_size"])


def test_a_published_architecture_runs_scaled_down() -> None:
    torch.manual_seed(0)
    encoder = Dinov2Model(Dinov2Config(**{**BASE, "hidden_size": 24, "num_hidden_layers": 2})).eval()
    pixels = dino_pixels(torch.randint(256, (2, 3, 512, 512), dtype=torch.uint8), DINOV2)
    tokens = dino_tokens(encoder, pixels)
    assert tokens.shape == (2, 256, 24)
    assert torch.equal(tokens, encoder(pixels).last_hidden_state[:, 1:])
    assert not tokens.requires_grad


def test_tokens_are_where_their_patches_are(tiny_dino: Path) -> None:
    encoder, processor = Dinov2Model.from_pretrained(tiny_dino), BitImageProcessorPil.from_pretrained(tiny_dino)
    images = torch.zeros(2, 3, 56, 56, dtype=torch.uint8)
    images[1, :, 14:28, 28:42] = 255  # the patch in row 1, column 2 of 4 × 4
    black, spotted = dino_tokens(encoder, dino_pixels(images, processor))
    assert (black - spotted).norm(dim=-1).argmax() == 1 * 4 + 2
