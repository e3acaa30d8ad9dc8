"""The autoencoder: f = 8, four latent channels, as Stable Diffusion's, small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from m2m.foundation.fit import Loss
from m2m.params import VaeFit

KL_WEIGHT = 1e-5
ABSOLUTE_WEIGHT = 0.1


def build(params: VaeFit) -> AutoencoderKL:
    """The untrained autoencoder for 64-pixel pictures; four levels, so that a latent pixel covers 8 x 8 pixels."""
    levels = len(params.block_out_channels)
    network: AutoencoderKL = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=params.block_out_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    return network


def as_signal(images: Tensor) -> Tensor:
    """uint8 pictures (n, 3, H, W) as float32 in -1 .. 1."""
    return images.float() / 127.5 - 1


def reconstruction_loss(vae: AutoencoderKL, images: Tensor) -> Loss:
    """Squared and absolute error of the reconstruction, and a small pull of the posterior towards a standard normal."""

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        signal = as_signal(images[batch])
        # bfloat16 products double the speed of these wide, shallow convolutions; weights and averages stay float32.
        with torch.autocast(signal.device.type, torch.bfloat16):
            posterior = vae.encode(signal).latent_dist
            restored = vae.decode(posterior.sample(generator=draws)).sample.float()
        error = F.mse_loss(restored, signal) + ABSOLUTE_WEIGHT * F.l1_loss(restored, signal)
        total: Tensor = error + KL_WEIGHT * posterior.kl().mean()
        return total

    return loss


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """Posterior means and standard deviations, not yet scaled: uint8 (n, 3, 64, 64) -> two of float32 (n, 4, 8, 8)."""
    posteriors = [vae.encode(as_signal(part)).latent_dist for part in torch.split(images, batch_size)]
    return torch.cat([posterior.mean for posterior in posteriors]), torch.cat(
        [posterior.std for posterior in posteriors]
    )


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch_size: int = 64) -> Iterator[Tensor]:
    """Latents, not scaled, (n, 4, 8, 8) -> batches of uint8 pictures (b, 3, 64, 64)."""
    for part in torch.split(latents, batch_size):
        signal = vae.decode(part).sample
        yield ((signal + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def psnr(restored: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB: the mean over pictures, both uint8 (n, 3, H, W)."""
    error = (restored.float() - images.float()).square().mean(dim=(1, 2, 3)).clamp_min(1e-6)
    return float((10 * torch.log10(255**2 / error)).mean())
