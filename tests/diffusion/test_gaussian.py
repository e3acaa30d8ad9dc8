"""Noise, targets and weights against diffusers' schedulers and the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler
from diffusers.training_utils import compute_snr

from m2m.diffusion.gaussian import (
    PredictionType,
    add_context_noise,
    add_noise,
    alphas_cumprod,
    denoising_loss,
    draw_context_timesteps,
    min_snr_weight,
    shift_timesteps,
    target,
)
from m2m.errors import UserError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
SCHEDULER = DDPMScheduler(**SD)
PRODUCTS = alphas_cumprod(SCHEDULER.config, "epsilon")
TYPES = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])


@pytest.fixture
def sets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, N, 4, h, w), noise of that shape and timesteps (B, N), first and last among them."""
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 2, 3, 4, 8, 8, generator=generator)
    return images, noise, torch.tensor([[0, 1, 999], [400, 20, 700]])


def test_the_noise_is_diffusers(sets: tuple[torch.Tensor, ...]) -> None:
    images, noise, timesteps = sets
    flat = SCHEDULER.add_noise(images.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten())
    torch.testing.assert_close(add_noise(images, noise, timesteps, PRODUCTS).flatten(0, 1), flat)


def test_any_schedulers_configuration_will_do() -> None:
    pndm = PNDMScheduler(**SD, steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True)
    assert torch.equal(alphas_cumprod(pndm.config, "epsilon"), pndm.alphas_cumprod)


@TYPES
def test_the_target_is_diffusers(sets: tuple[torch.Tensor, ...], prediction_type: PredictionType) -> None:
    images, noise, timesteps = sets
    flat = [images.flatten(0, 1), noise.flatten(0, 1), timesteps.flatten()]
    expected = flat[1] if prediction_type == "epsilon" else SCHEDULER.get_velocity(*flat)
    torch.testing.assert_close(target(images, noise, timesteps, PRODUCTS, prediction_type).flatten(0, 1), expected)


@TYPES
def test_min_snr_weighs_the_error_of_the_image_by_at_most_gamma(prediction_type: PredictionType) -> None:
    """The losses weigh the error of x by SNR for ε and by SNR + 1 for v; min-SNR makes both min(SNR, γ)."""
    timesteps = torch.arange(1000)
    snr = compute_snr(SCHEDULER, timesteps)
    weight = min_snr_weight(timesteps, PRODUCTS, gamma=5.0, prediction_type=prediction_type)
    per_image_error = weight * (snr if prediction_type == "epsilon" else snr + 1)
    torch.testing.assert_close(per_image_error, snr.clamp(max=5.0), rtol=1e-3, atol=1e-6)


@TYPES
def test_a_gamma_of_zero_weighs_all_alike(prediction_type: PredictionType) -> None:
    timesteps = torch.tensor([[0, 500, 999]])
    weight = min_snr_weight(timesteps, PRODUCTS, gamma=0.0, prediction_type=prediction_type)
    assert torch.equal(weight, torch.ones(1, 3))


def test_shifted_timesteps_keep_their_order_and_move_to_more_noise() -> None:
    uniform = torch.arange(1000)
    assert torch.equal(shift_timesteps(uniform, 1, count=1000), uniform)
    shifted = shift_timesteps(uniform, 3, count=1000)
    assert (shifted.diff() >= 0).all()
    assert (shifted >= uniform).all()
    assert (shifted[0], shifted[-1]) == (1, 999)
    assert abs(int(shifted[500]) - 750) <= 1


def test_epsilon_from_pure_noise_is_refused_and_velocity_is_not() -> None:
    config = DDPMScheduler(**SD, rescale_betas_zero_snr=True).config
    with pytest.raises(UserError, match="set prediction_type to v_prediction"):
        alphas_cumprod(config, "epsilon")
    products = alphas_cumprod(config, "v_prediction")
    assert products[-1] == 0
    assert min_snr_weight(torch.tensor([999]), products, gamma=5.0, prediction_type="v_prediction").isfinite()


def test_clean_context_images_stay_what_they_are_to_the_bit(sets: tuple[torch.Tensor, ...]) -> None:
    images, noise, timesteps = sets
    noised = add_context_noise(images, noise, timesteps, PRODUCTS)
    assert torch.equal(noised[0, 0], images[0, 0])
    assert torch.equal(noised[1], add_noise(images, noise, timesteps, PRODUCTS)[1])


def test_context_timesteps_are_clean_or_within_bounds_and_reproducible() -> None:
    def draw(probability: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return draw_context_timesteps((100, 50), probability=probability, max_timestep=300, generator=generator)

    drawn = draw(0.5)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, draw(0.5))
    assert (drawn == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[drawn > 0].unique().tolist() == list(range(1, 301))
    assert drawn[drawn > 0].float().mean() == pytest.approx(150.5, abs=6)
    assert not draw(0.0).any()
    assert draw(1.0).all()


def test_the_loss_is_each_images_own() -> None:
    prediction, wanted = torch.zeros(2, 3, 4, 8, 8), torch.zeros(2, 3, 4, 8, 8)
    wanted[1, 2] = 2.0
    weight = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.5]])
    loss = denoising_loss(prediction.bfloat16(), wanted, weight)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
