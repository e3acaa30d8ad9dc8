"""What the network learns: noise, targets and weights (Ho et al. 2020, Salimans & Ho 2022, Hang et al. 2023).

With a scheduler's cumulative products ᾱ_t ("products"), α_t = √ᾱ_t and σ_t = √(1 - ᾱ_t). Timesteps have the leading
dimensions of what they belong to: (B, N) for a batch of sets. Nothing here draws from a global generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from m2m.errors import UserError
from m2m.params import PredictionType


def alphas_cumprod(scheduler_config: Mapping[str, Any], prediction_type: PredictionType) -> Tensor:
    """ᾱ_t of every training timestep, (T,) float32, for the betas of any diffusers scheduler's configuration.

    Raises:
        UserError: the last timestep is pure noise and ε is predicted: α_T = 0, so x = (z - σε) / α is infinite.
    """
    with torch.device("cpu"):  # whatever torch's default is
        products: Tensor = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
    if prediction_type == "epsilon" and products[-1] <= torch.finfo(products.dtype).eps:
        raise UserError(
            "the scheduler's betas end in pure noise (rescale_betas_zero_snr), from which epsilon cannot be told; "
            "set prediction_type to v_prediction"
        )
    return products


def add_noise(images: Tensor, noise: Tensor, timesteps: Tensor, products: Tensor) -> Tensor:
    """z_t = α_t x + σ_t ε (Ho et al., eq. 4)."""
    alpha, sigma = _alpha_sigma(timesteps, products, images)
    return alpha * images + sigma * noise


def add_context_noise(images: Tensor, noise: Tensor, timesteps: Tensor, products: Tensor) -> Tensor:
    """z_τ of context images; at τ = 0 they stay exactly what they are."""
    clean = _spread(timesteps == 0, images)
    return torch.where(clean, images, add_noise(images, noise, timesteps, products))


def target(
    images: Tensor, noise: Tensor, timesteps: Tensor, products: Tensor, prediction_type: PredictionType
) -> Tensor:
    """What is predicted: ε, or v = α_t ε - σ_t x (Salimans & Ho, appendix D)."""
    if prediction_type == "epsilon":
        return noise
    alpha, sigma = _alpha_sigma(timesteps, products, images)
    return alpha * noise - sigma * images


def min_snr_weight(timesteps: Tensor, products: Tensor, *, gamma: float, prediction_type: PredictionType) -> Tensor:
    """min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v, where SNR = α² / σ² (Hang et al., section 3.4).

    A γ of 0 turns it off: all weights are 1.
    """
    if gamma == 0:
        return torch.ones(timesteps.shape, dtype=torch.float32, device=timesteps.device)
    product = products.to(timesteps.device)[timesteps]
    snr = product / (1 - product)
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def shift_timesteps(timesteps: Tensor, shift: float, *, count: int) -> Tensor:
    """Uniform timesteps of `count` moved towards more noise: u -> s·u / (1 + (s - 1)·u) (Esser et al. 2024, eq. 23)."""
    if shift == 1:
        return timesteps
    uniform = (timesteps + 0.5) / count
    return (shift * uniform / (1 + (shift - 1) * uniform) * count).long()


def draw_context_timesteps(
    shape: tuple[int, ...], *, probability: float, max_timestep: int, generator: torch.Generator
) -> Tensor:
    """The noise on each context image: with `probability` a timestep from 1 to `max_timestep`, else 0.

    Returns int64 of `shape` on the generator's device.
    """
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device)
    timesteps = torch.randint(1, max_timestep + 1, shape, generator=generator, device=generator.device)
    return timesteps * (uniform < probability)


def denoising_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """w · mean (prediction - target)² of each image, in float32: twice (B, N, 4, h, w) and (B, N) -> (B, N)."""
    return weight * F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(weight.ndim).mean(dim=-1)


def _alpha_sigma(timesteps: Tensor, products: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    product = _spread(products.to(images.device)[timesteps.to(images.device)], images)
    return product.sqrt(), (1 - product).sqrt()


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """Values for the leading dimensions of `images`, shaped to be multiplied with them."""
    return values.to(images.device)[(...,) + (None,) * (images.ndim - values.ndim)]
