"""LPIPS, held against torchmetrics' own code over the same AlexNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from torch import Tensor, nn

from m2m.errors import UserError
from m2m.evaluation import lpips
from m2m.evaluation.lpips import Lpips, with_heads


def pairs(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Noise beside noise, noise beside something like it, and one grey beside another."""
    noise = torch.randint(256, (3, 3, height, width), generator=torch.Generator().manual_seed(height))
    first, second = noise.clone(), noise.flip(2)
    second[1] = (first[1] + 9).clamp(max=255)
    first[2], second[2] = 40, 200
    return first.to(torch.uint8), second.to(torch.uint8)


@pytest.mark.parametrize("size", [(64, 64), (77, 93)])
def test_it_is_what_torchmetrics_computes(
    size: tuple[int, int], alexnet: nn.Sequential, lpips_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: alexnet)  # torchvision is not installed
    first, second = pairs(*size)
    expected = reference.learned_perceptual_image_patch_similarity(
        first / 127.5 - 1, second / 127.5 - 1, net_type="alex", reduction="none"
    )
    found = Lpips.from_pretrained(lpips_folder)(first, second)
    assert (expected > 1e-3).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_equal_pictures_are_not_apart_and_the_order_is_no_matter(lpips_folder: Path) -> None:
    network, (first, second) = Lpips.from_pretrained(lpips_folder), pairs(64, 64)
    assert network(first, first).tolist() == [0, 0, 0]
    torch.testing.assert_close(network(first, second), network(second, first), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("content", [None, b"rotten"])
def test_other_weights_of_channels_are_refused(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lpips, "HEADS", str(tmp_path / "alex.pth"))
    if content:
        (tmp_path / "alex.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"alex\.pth: its SHA-256 is .*, expected {lpips.HEADS_SHA256}") as caught:
        with_heads({})
    assert "\n" not in str(caught.value)
