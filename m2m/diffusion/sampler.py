"""How noise becomes latents: the solvers, classifier-free guidance, and the one loop that all samplers walk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast, get_args

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from m2m.devices import Replayed
from m2m.diffusion.gaussian import alphas_cumprod
from m2m.errors import UserError
from m2m.params import PredictionType, SolverName

Solver: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler

_NOISE_SCHEDULE = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)
_LAST_STEP = ("steps_offset", "set_alpha_to_one")
_MULTISTEP = {"dpmsolver++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


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
    if name == "ddim":
        last_step = {key: config[key] for key in _LAST_STEP if key in config}
        # Latents are no pictures: nothing bounds them to [-1, 1].
        scheduler = DDIMScheduler(**schedule, **last_step, clip_sample=False, timestep_spacing="leading")
    else:
        scheduler = _MULTISTEP[name](**schedule, solver_order=2, timestep_spacing="linspace")
    return scheduler


def check_scheduler(scheduler: Any) -> None:
    """Refuses a diffusers scheduler whose steps are not from the noise levels that a network of this project learns.

    Raises:
        UserError: it is of another family (flow matching, variance exploding, consistency …), it predicts something
            else, its step wants more than a prediction, or its betas end in pure noise and epsilon is predicted.
    """
    config, products = scheduler.config, getattr(scheduler, "alphas_cumprod", None)
    arguments = inspect.signature(scheduler.step).parameters.values() if hasattr(scheduler, "step") else ()
    wanted = [one.name for one in arguments if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    predicts, types = config.get("prediction_type"), get_args(PredictionType)
    if not isinstance(products, Tensor) or wanted != ["model_output", "timestep", "sample"]:
        fault = "does not step from betas, timestep by timestep"
    elif predicts not in types or config.get("use_flow_sigmas"):
        fault = f"takes a prediction of {'a flow' if config.get('use_flow_sigmas') else predicts}"
    elif not torch.allclose(products.cpu().float(), alphas_cumprod(config, predicts), atol=1e-6):
        fault = "has other noise levels than its betas give"
    else:
        return
    raise UserError(
        f"{type(scheduler).__name__} {fault}, and the network learned from betas to predict {' or '.join(types)}; "
        "take one of the family of DDIM, DPM-Solver and UniPC, by from_config(pipeline.scheduler.config)"
    )


def restarted(scheduler: Any, num_inference_steps: int) -> Tensor:
    """Resets a scheduler, which may remember predictions for another image; gives the timesteps of one image.

    Raises:
        UserError: it walks from a picture to noise.
    """
    scheduler.set_timesteps(num_inference_steps)
    timesteps = cast(Tensor, scheduler.timesteps)
    if len(timesteps) > 1 and timesteps[0] < timesteps[-1]:
        raise UserError(f"{type(scheduler).__name__} walks from a picture to noise; take one that walks from noise")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else each step searches for its index
    return timesteps


def guides(scale: float) -> bool:
    """Whether there is any guidance: above 1 only, as everywhere in diffusers. Else there is only the condition."""
    return scale > 1


def guided(predict: Callable[[Tensor], Tensor], sample: Tensor, scale: float) -> Tensor:
    """u + scale·(c - u) of the predictions without the condition u and with it c, both in one batch.

    The condition is made to count for more than the network gives it (Ho & Salimans, 2022).

    Args:
        predict: the network, (2·B, 4, h, w) -> (2·B, 4, h, w); the first half is without the condition. For a scale
            that guides nowhere, all of (B, 4, h, w) is with it.
        sample: (B, 4, h, w).

    Returns:
        (B, 4, h, w).
    """
    if not guides(scale):
        return predict(sample)
    without, with_condition = predict(torch.cat([sample, sample])).chunk(2)
    return without + scale * (with_condition - without)


def denoise(
    noise: Tensor,
    network: Callable[[Tensor, Tensor, bool], Tensor],
    scheduler: Any,
    num_inference_steps: int,
    *,
    scale: Callable[[], float],
    generators: Sequence[torch.Generator] = (),
    use_cuda_graphs: bool = True,
    stopped: Callable[[], bool] = lambda: False,
    after_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Scaled latents from unit noise: (B, 4, h, w) -> (B, 4, h, w).

    Args:
        network: predicts from (rows, a timestep, whether guided); guided, the first half of (2·B, 4, h, w) is without
            the condition. What else it reads stays in place: on a GPU a step is one CUDA graph from its second on.
        scheduler: it is reset, as it may remember predictions for another image.
        scale: of the guidance, asked before each step.
        generators: one a row, for schedulers that add noise.
        stopped: asked before each step; the latents are then given as they are.
        after_step: is told step, timestep and latents, and gives the latents to go on from.

    Raises:
        UserError: the scheduler walks from a picture to noise.
    """
    timesteps = restarted(scheduler, num_inference_steps)  # on the CPU: schedulers look steps up by them
    times = timesteps.to(noise.device)
    takes_generators = "generator" in inspect.signature(scheduler.step).parameters
    drawn_from = {"generator": list(generators)} if generators and takes_generators else {}
    predictors: dict[float, Callable[[Tensor, Tensor], Tensor]] = {}

    def predicted(scale: float, sample: Tensor, time: Tensor) -> Tensor:
        return guided(lambda rows: network(rows, time, guides(scale)), sample, scale)

    latents: Tensor = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(timesteps):
        if stopped():
            break
        if (now := scale()) not in predictors:
            predictors[now] = Replayed(partial(predicted, now)) if use_cuda_graphs else partial(predicted, now)
        sample = scheduler.scale_model_input(latents, timestep)  # (B, 4, h, w)
        prediction = predictors[now](sample, times[step])  # (B, 4, h, w)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **drawn_from)[0]
        if after_step is not None:
            latents = after_step(step, timestep, latents)
    return latents
