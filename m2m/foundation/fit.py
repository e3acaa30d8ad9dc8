"""One small training loop for all networks of the foundation: seeded by the step, resumable, averaged at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2m.files import is_intact, sealed_file
from m2m.params import Fit
from m2m.seeds import generator

SECONDS_BETWEEN_CHECKPOINTS = 60
SECONDS_BETWEEN_LINES = 15
EMA_DECAY = 0.999
WARMUP = 0.05
MUON_FACTOR = 5

Loss = Callable[[Tensor, torch.Generator], Tensor]


def learning_rate(done: float, peak: float) -> float:
    """Linear warm-up over a twentieth of the run, then a cosine to a fiftieth of the peak; ``done``: the share done."""
    if done < WARMUP:
        return peak * done / WARMUP
    cosine = (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))) / 2
    return peak * (0.02 + 0.98 * cosine)


def fit(
    name: str,
    module: nn.Module,
    loss: Loss,
    *,
    fit: Fit,
    pictures: int,
    seed: int,
    work: Path,
    matrices: Collection[str] = (),
) -> None:
    """Train ``module`` in place, where it is, and leave the average of its weights in it, in eval mode and frozen.

    Every batch and every draw is a function of (seed, name, step): a run that was killed goes on to the same weights.

    Args:
        name: names the network in seeds, files and lines of progress.
        loss: takes (indices of the batch's pictures, a generator for its draws), gives a scalar.
        pictures: how many pictures there are to draw batches from.
        matrices: names of weights that Muon trains (Jordan et al., 2024), at five times the rate; AdamW does the rest.
        work: where the checkpoint lies; the finished weights stay there, so that a second call returns at once. What is
            damaged there is made again.
    """
    steps = math.ceil(fit.images / fit.batch_size)
    finished, checkpoint = work / f"{name}.safetensors", work / f"{name}.checkpoint.safetensors"
    if is_intact(finished):
        module.load_state_dict(load_file(finished))
        module.eval().requires_grad_(False)
        return
    parameters = {key: value for key, value in module.named_parameters() if value.requires_grad}
    average = {key: value.detach().clone() for key, value in parameters.items()}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [value for key, value in parameters.items() if key not in matrices],
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )
    ]
    if matrices:
        muon = torch.optim.Muon([parameters[key] for key in matrices], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    trained_by = {weight: each for each in optimizers for group in each.param_groups for weight in group["params"]}
    start = 0
    if is_intact(checkpoint):
        saved = load_file(checkpoint)
        start = int(saved["step"])
        module.load_state_dict({key: saved[f"weight/{key}"] for key in module.state_dict()})
        for key in parameters:
            average[key].copy_(saved[f"average/{key}"])
        for key, tensor in saved.items():
            if key.startswith("optimizer/"):
                _, slot, of = key.split("/", 2)
                moved = tensor.to(parameters[of].device, copy=True)  # off the mapped file
                trained_by[parameters[of]].state[parameters[of]][slot] = moved

    module.train()
    total, counted, began, line, saved_at = torch.zeros(()), 0, time.monotonic(), time.monotonic(), time.monotonic()
    for step in range(start, steps):
        draws = generator(seed, name, step)
        batch = torch.randint(pictures, (fit.batch_size,), generator=draws)
        for optimizer, factor in zip(optimizers, (1, MUON_FACTOR), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate((step + 1) / steps, fit.learning_rate)
        value = loss(batch, draws)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        total, counted = total + value.detach(), counted + 1
        now = time.monotonic()
        if now - line > SECONDS_BETWEEN_LINES or step + 1 == steps:
            rate = (step + 1 - start) / (now - began)
            left = (steps - step - 1) / rate / 60
            mean = float(total) / counted
            print(
                f"{name}: step {step + 1}/{steps}, loss {mean:.4f}, {rate * fit.batch_size:.0f} images/s, "
                f"{left:.1f} min left",
                flush=True,
            )
            if not math.isfinite(mean):
                raise FloatingPointError(f"{name}: the loss is {mean} near step {step + 1}")
            total, counted, line = torch.zeros(()), 0, now
        if now - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            state = {"step": torch.tensor(step + 1)} | {
                f"weight/{key}": tensor for key, tensor in module.state_dict().items()
            }
            for key, weight in parameters.items():
                state[f"average/{key}"] = average[key]
                for slot, tensor in trained_by[weight].state[weight].items():
                    state[f"optimizer/{slot}/{key}"] = tensor
            write(state, checkpoint)
            saved_at = now
    for key, weight in parameters.items():
        weight.data.copy_(average[key])
    module.eval().requires_grad_(False)
    write(module.state_dict(), finished)
    for unneeded in (*work.glob(f"{name}.checkpoint.*"), *work.glob(f".{name}.*")):  # and what a kill left
        unneeded.unlink()


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors so that a kill leaves either the old file or the new one, each with its digest."""
    with sealed_file(path) as draft:
        save_file({key: value.contiguous() for key, value in tensors.items()}, draft)
