"""Inception-v3 and LPIPS, against independent computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from safetensors.torch import save_file
from torch import Tensor, nn

from m2m.errors import UserError
from m2m.evaluation import published
from m2m.evaluation.published import HEADS_SHA256, INCEPTION_V3, InceptionV3, Lpips, resize_like_tensorflow, with_heads


def test_resizing_reads_without_half_pixel_centres() -> None:
    image = np.random.default_rng(0).random((7, 5))
    found = resize_like_tensorflow(torch.from_numpy(image)[None, None], 9)[0, 0].numpy()
    rows, columns = np.arange(9) * 7 / 9, np.arange(9) * 5 / 9
    for i, j in np.ndindex(9, 9):
        top, left = int(rows[i]), int(columns[j])
        below, right = min(top + 1, 6), min(left + 1, 4)
        y, x = rows[i] - top, columns[j] - left
        upper = (1 - x) * image[top, left] + x * image[top, right]
        lower = (1 - x) * image[below, left] + x * image[below, right]
        assert found[i, j] == pytest.approx((1 - y) * upper + y * lower)


def test_it_has_the_published_names_and_sizes() -> None:
    with torch.device("meta"):
        model = InceptionV3()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    usual = 23_834_568  # parameters of Inception-v3 with 1000 classes, without the auxiliary head
    assert sum(value.numel() for value in model.parameters()) == usual + 8 * 2049
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6c.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


def test_it_loads_from_a_folder_and_reads_pictures_of_any_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = InceptionV3().state_dict()
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(value.shape, generator=random) / 1000 for name, value in names.items() if value.shape}
    save_file(weights, tmp_path / "model.safetensors")  # as published: without the counters of batch normalisation
    (tmp_path / "config.json").write_text(json.dumps({"architecture": INCEPTION_V3}))
    model = InceptionV3.from_pretrained(tmp_path)
    with torch.no_grad():
        found = model(torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8))
    assert found.features.shape == (1, 2048)
    assert found.features.isfinite().all()
    torch.testing.assert_close(found.logits["class"], found.features @ weights["fc.weight"].T)
    assert found.geometry.shape == (1, 0)
    assert not model.training


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "world-classifier"}))
    with pytest.raises(ValueError, match="expected 'inception-v3-compat'"):
        InceptionV3.from_pretrained(tmp_path)


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
    monkeypatch.setattr(published, "HEADS", str(tmp_path / "alex.pth"))
    if content:
        (tmp_path / "alex.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"alex\.pth: its SHA-256 is .*, expected {HEADS_SHA256}") as caught:
        with_heads({})
    assert "\n" not in str(caught.value)
