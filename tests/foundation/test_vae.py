from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from m2m.foundation import vae
from m2m.foundation.world import Lessons
from m2m.params import VaeFit


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return vae.build(VaeFit(images=1, batch_size=1, learning_rate=1e-3, block_out_channels=(8, 8, 16, 16)))


def test_it_is_configured_as_stable_diffusions(network: Any) -> None:
    assert network.config.latent_channels == 4
    assert 2 ** (len(network.config.block_out_channels) - 1) == 8
    assert network.config.sample_size == 64


def test_encoding_and_decoding_do_not_depend_on_the_batches(network: Any, lessons: Lessons) -> None:
    network.eval()
    means, spread = vae.encode(network, lessons.images, batch_size=5)
    assert means.shape == spread.shape == (16, 4, 8, 8)
    assert (spread > 0).all()
    torch.testing.assert_close(means, vae.encode(network, lessons.images)[0])
    parts = list(vae.decode(network, means, batch_size=5))
    assert [len(part) for part in parts] == [5, 5, 5, 1]
    restored = torch.cat(parts)
    assert restored.dtype == torch.uint8
    assert restored.shape == lessons.images.shape
    whole = torch.cat(list(vae.decode(network, means)))
    assert (whole.int() - restored.int()).abs().max() <= 1


def test_it_learns_to_restore(network: Any, lessons: Lessons, descend: Callable[..., tuple[float, float]]) -> None:
    images = lessons.images[-4:]  # half-built things, whose large even parts are soon learnt
    before = vae.psnr(torch.cat(list(vae.decode(network, vae.encode(network, images)[0]))), images)
    first, last = descend(network, vae.reconstruction_loss(network, images), pictures=4, steps=20, rate=5e-3)
    after = vae.psnr(torch.cat(list(vae.decode(network, vae.encode(network, images)[0]))), images)
    assert last < 0.6 * first
    assert after > before + 2


def test_psnr_is_the_mean_over_pictures() -> None:
    rng = np.random.default_rng(0)
    images, restored = rng.integers(0, 256, (2, 3, 3, 4, 4), dtype=np.uint8)
    errors = [np.mean((a.astype(float) - b.astype(float)) ** 2) for a, b in zip(images, restored, strict=True)]
    expected = np.mean([20 * np.log10(255) - 10 * np.log10(error) for error in errors])
    assert vae.psnr(torch.from_numpy(restored), torch.from_numpy(images)) == pytest.approx(expected, rel=1e-5)
    assert vae.psnr(torch.from_numpy(images), torch.from_numpy(images)) > 100


def test_a_signal_spans_minus_one_to_one() -> None:
    signal = vae.as_signal(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8))
    torch.testing.assert_close(signal.flatten(), torch.tensor([-1.0, 1.0, -0.6]))
