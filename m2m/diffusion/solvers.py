"""The solvers that turn noise into latents: how to walk along the noise schedule that a model was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, assert_never

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from m2m.diffusion.objective import alphas_cumprod
from m2m.params import SolverName

Solver: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler

_NOISE_SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)
_LAST_STEP = ("steps_offset", "set_alpha_to_one")


def make_scheduler(name: SolverName, config: Mapping[str, Any]) -> Solver:
    """A fresh scheduler: multistep ones remember their last batch, so each batch of images takes its own.

    Of a model's scheduler configuration only the noise schedule counts, and for DDIM how it ends, as in SD's own
    samplers. How steps are spaced belongs to the solver: from the noisiest timestep on, save DDIM's usual ``leading``.

    Args:
        name: DDIM (Song et al., 2021), second-order DPM-Solver++ (Lu et al., 2022) or UniPC (Zhao et al., 2023).
        config: of any diffusers scheduler.

    Raises:
        UserError: the betas end in pure noise and epsilon is predicted.
    """
    schedule = {key: config[key] for key in _NOISE_SCHEDULE if config.get(key) is not None}
    alphas_cumprod(schedule, schedule.get("prediction_type", "epsilon"))  # refuses what cannot be sampled
    scheduler: Solver
    match name:
        case "ddim":
            last_step = {key: config[key] for key in _LAST_STEP if key in config}
            # Latents are no pictures: nothing bounds them to [-1, 1].
            scheduler = DDIMScheduler(**schedule, **last_step, clip_sample=False, timestep_spacing="leading")
        case "dpmsolver++":
            scheduler = DPMSolverMultistepScheduler(**schedule, solver_order=2, timestep_spacing="linspace")
        case "unipc":
            scheduler = UniPCMultistepScheduler(**schedule, solver_order=2, timestep_spacing="linspace")
        case _:
            assert_never(name)
    return scheduler
