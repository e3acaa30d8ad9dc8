"""DINOv2's own preprocessing against ours on the device, and real and tiny encoders."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from m2m.models.context import dino_pixels, dino_tokens
from m2m.models.pose import FIELD_OF_VIEW, rays

PUBLISHED = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DINOV2 = BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, **PUBLISHED)
SMALL = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **PUBLISHED)
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518, "patch_size": 14}
LARGE = {**BASE, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (48, 48), (100, 64), (90, 301), (256, 256), (224, 224)])
@pytest.mark.parametrize("processor", [DINOV2, SMALL], ids=["published", "small"])
def test_pixels_are_the_processors_of_the_whole_picture(processor: BitImageProcessorPil, size: tuple[int, int]) -> None:
    coarse = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    images = (torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 255).to(torch.uint8)
    whole = {"size": dict(processor.crop_size), "do_center_crop": False}
    expected = processor(list(images), return_tensors="pt", **whole).pixel_values
    off = (dino_pixels(images, processor) - expected).abs() * torch.tensor(processor.image_std)[:, None, None] * 255
    assert off.max() < 1.01  # a pixel value rounded the other way
    assert off.mean() < 0.25  # Pillow rounds between its two passes, too


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 63), (63, 31), (2, 60), (33, 17)])
def test_a_token_sees_what_its_ray_points_at(tiny_dino: Path, row: int, column: int) -> None:
    """A processor that resizes to 64 and crops 56, as the published one does 256 and 224, would cut corners off."""
    encoder = Dinov2Model.from_pretrained(tiny_dino)
    cropping = BitImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, do_center_crop=True, **PUBLISHED
    )
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[1, :, row, column] = 255
    black, spotted = dino_tokens(encoder, dino_pixels(images, cropping))
    changed = (black - spotted).norm(dim=-1)  # (16)
    directions = rays(torch.cat([torch.eye(3).flatten(), torch.zeros(3)])[None], side=4)[0, :, :3]  # (16, 3)
    edge = math.tan(math.radians(FIELD_OF_VIEW / 2))
    spot = [((place + 0.5) / 32 - 1) * edge for place in (column, row)]  # of a picture of 64 pixels
    pointing = (directions / directions.norm(dim=1, keepdim=True)) @ torch.tensor([*spot, 1.0])
    assert changed.argmax() == pointing.argmax()
    assert changed.max() > 0


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
