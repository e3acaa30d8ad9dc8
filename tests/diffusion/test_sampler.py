"""Guidance and solvers."""

from __future__ import annotations

from typing import Any, get_args

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from m2m.diffusion.sampler import check_scheduler, guided, guides, make_scheduler, restarted
from m2m.errors import UserError
from m2m.params import SolverName

SAMPLE = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def predict(rows: Tensor) -> Tensor:
    """Without the condition the sample itself, with it three times that."""
    assert torch.equal(rows, torch.cat([SAMPLE, SAMPLE]))
    return torch.cat([rows[:3], 3 * rows[3:]])


@pytest.mark.parametrize(("scale", "factor"), [(1.5, 4), (2.5, 6)])
def test_it_goes_from_the_one_prediction_through_the_other(scale: float, factor: float) -> None:
    assert guides(scale)
    torch.testing.assert_close(guided(predict, SAMPLE, scale), factor * SAMPLE)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0])
def test_at_one_and_below_only_the_condition_counts(scale: float) -> None:
    assert not guides(scale)
    assert torch.equal(guided(lambda rows: 3 * rows, SAMPLE, scale), 3 * SAMPLE)


SD_2_1_BASE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
SOLVERS = get_args(SolverName)


NOISE = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def walk(name: SolverName, config: dict[str, Any], *, steps: int, mean: float, std: float) -> Tensor:
    """Samples by the exact prediction for data that is normal with this mean and standard deviation."""
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps)
    z = None
    for timestep in scheduler.timesteps:
        product = scheduler.alphas_cumprod[timestep].double()
        alpha, sigma = product.sqrt(), (1 - product).sqrt()
        variance = alpha**2 * std**2 + sigma**2
        z = alpha * mean + variance.sqrt() * NOISE if z is None else z
        epsilon = sigma * (z - alpha * mean) / variance
        x = (z - sigma * epsilon) / alpha
        prediction = epsilon if config["prediction_type"] == "epsilon" else alpha * epsilon - sigma * x
        z = scheduler.step(prediction, timestep, z, return_dict=False)[0]
    assert z is not None
    return z


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_becomes_data(name: SolverName, prediction_type: str) -> None:
    """Also beyond [-1, 1], which bounds pictures, not latents."""
    config = {**SD_2_1_BASE, "prediction_type": prediction_type}
    samples = walk(name, config, steps=100, mean=3.0, std=0.5)
    assert abs(samples.mean() - 3.0) < 0.05
    assert abs(samples.std() - 0.5) < 0.05


def test_multistep_solvers_need_fewer_steps() -> None:
    errors = {
        name: (walk(name, SD_2_1_BASE, steps=20, mean=1.0, std=1.0) - (1.0 + NOISE)).abs().mean() for name in SOLVERS
    }
    assert errors["dpmsolver++"] < 0.5 * errors["ddim"]
    assert errors["unipc"] < 0.5 * errors["ddim"]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_scheduler_keeps_the_models_noise_schedule(name: SolverName) -> None:
    config = {**SD_2_1_BASE, "beta_end": 0.02, "num_train_timesteps": 500, "prediction_type": "v_prediction"}
    schedule = {key: config[key] for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")}
    scheduler = make_scheduler(name, config)
    assert torch.equal(scheduler.alphas_cumprod, DDPMScheduler(**schedule).alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    assert make_scheduler(name, config) is not scheduler


def test_ddim_is_the_one_of_stable_diffusion() -> None:
    ours, theirs = make_scheduler("ddim", SD_2_1_BASE), DDIMScheduler.from_config(SD_2_1_BASE, clip_sample=False)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps[-1] == 1
    assert ours.final_alpha_cumprod == theirs.final_alpha_cumprod


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc"])
def test_multistep_solvers_start_at_the_noisiest_timestep(name: SolverName) -> None:
    scheduler = make_scheduler(name, {**SD_2_1_BASE, "timestep_spacing": "leading"})
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 999


@pytest.mark.parametrize("name", SOLVERS)
def test_epsilon_is_refused_where_the_betas_end_in_pure_noise(name: SolverName) -> None:
    config = {**SD_2_1_BASE, "rescale_betas_zero_snr": True}
    with pytest.raises(UserError, match="pure noise"):
        make_scheduler(name, config)
    make_scheduler(name, {**config, "prediction_type": "v_prediction"})


STRANGERS = {
    # They know no betas.
    "EDMEulerScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
    "IPNDMScheduler": {},
    "CMStochasticIterativeScheduler": {},
    "ScoreSdeVeScheduler": {},
    # Their steps want more than a prediction.
    "CogVideoXDPMScheduler": {},
    "RePaintScheduler": {},
    # They move the noise away from its timestep, or take another prediction for it.
    "CogVideoXDDIMScheduler": {},
    "DPMSolverMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "DDIMScheduler": {"prediction_type": "sample"},
    "UniPCMultistepScheduler": {"use_flow_sigmas": True},
    # They go the other way.
    "DDIMInverseScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
}


def started(scheduler: Any) -> Tensor:
    check_scheduler(scheduler)
    return restarted(scheduler, 4)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_scheduler_of_another_family_is_refused_in_one_line(name: str) -> None:
    scheduler = getattr(diffusers, name).from_config({**SD_2_1_BASE, **STRANGERS[name]})
    with pytest.raises(UserError, match=f"^{name} ") as error:
        started(scheduler)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name",
    [
        *("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler"),
        *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler"),
        *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler"),
        *("KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler"),
        "UniPCMultistepScheduler",
    ],
)
def test_all_others_may_draw(name: str, prediction_type: str) -> None:
    scheduler = getattr(diffusers, name).from_config({**SD_2_1_BASE, "prediction_type": prediction_type})
    assert started(scheduler)[0] > 500
    if prediction_type == "epsilon" and "rescale_betas_zero_snr" in scheduler.config:
        with pytest.raises(UserError, match="pure noise"):
            check_scheduler(type(scheduler).from_config({**SD_2_1_BASE, "rescale_betas_zero_snr": True}))
