"""One small training loop for all networks of the foundation: seeded by the step, resumable, averaged at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from m2m.errors import UserError
from m2m.files import is_intact, sealed_file
from m2m.params import Fit
from m2m.progress import progress
from m2m.seeds import generator
from m2m.store import LocalStore
from m2m.training.checkpoints import Checkpoints
from m2m.training.ranks import Ranks
from m2m.training.state import Ema, NotFiniteError, TrainState, learning_rate

SECONDS_BETWEEN_CHECKPOINTS = 60
EMA_DECAY = 0.999
WARMUP, FLOOR = 0.05, 0.02
"""Shares of the run that the learning rate rises in, and of its peak that it falls to."""
MUON_FACTOR = 5

Loss: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""Takes the indices of a batch's pictures and a generator for its draws, gives a scalar."""


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
        pictures: how many pictures there are to draw batches from.
        matrices: names of weights that Muon trains (Jordan et al., 2024), at five times the rate; AdamW does the rest.
        work: where the checkpoints lie; the finished weights stay there, so that a second call returns at once. What is
            damaged there is made again.

    Raises:
        UserError: the loss is not finite, or the disk refuses.
    """
    finished, checkpoints = work / f"{name}.safetensors", Checkpoints(LocalStore(work), "fit", name, work)
    if not is_intact(finished):
        state = _start_or_resume(module, matrices, checkpoints)
        _train(name, state, loss, fit=fit, pictures=pictures, seed=seed, checkpoints=checkpoints)
        with state.ema.applied(), sealed_file(finished) as draft:
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, draft)
        checkpoints.clear()
    module.load_state_dict(load_file(finished))
    module.eval().requires_grad_(False)


def _start_or_resume(module: nn.Module, matrices: Collection[str], checkpoints: Checkpoints) -> TrainState:
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    rest = [{"params": [value for key, value in trained.items() if key not in matrices], "factor": 1}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ]
    if matrices:
        of_muon = [{"params": [trained[key] for key in matrices], "factor": MUON_FACTOR}]
        optimizers.append(torch.optim.Muon(of_muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    state = TrainState(network=module, optimizers=tuple(optimizers), ema=Ema(module, decay=EMA_DECAY))
    try:
        if (checkpoint := checkpoints.latest()) is not None:
            state.load(checkpoint)
    except UserError:  # it is damaged
        checkpoints.clear()
    return state


def _train(
    name: str, state: TrainState, loss: Loss, *, fit: Fit, pictures: int, seed: int, checkpoints: Checkpoints
) -> None:
    steps, trained = math.ceil(fit.images / fit.batch_size), [*state.network.parameters()]
    state.network.train()
    saved_at = time.monotonic()
    with progress(steps * fit.batch_size, name, unit="images") as advance:
        advance(state.images_seen, skipped=True)
        for step in range(state.images_seen // fit.batch_size, steps):
            draws = generator(seed, name, step)
            batch = torch.randint(pictures, (fit.batch_size,), generator=draws)
            done = {"images_seen": (step + 1) / steps, "warmup_images": WARMUP, "images": 1}
            rate = learning_rate(**done, peak=fit.learning_rate, schedule="cosine", floor=FLOOR)
            for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                group["lr"] = group["factor"] * rate
            value = loss(batch, draws)
            value.backward()  # type: ignore[no-untyped-call]
            grad_norm = clip_grad_norm_([weight for weight in trained if weight.requires_grad], 1.0)
            state.step()
            state.images_seen += fit.batch_size
            state.curve.record(images_seen=state.images_seen, losses=value.detach()[None], grad_norm=grad_norm)
            is_last = step + 1 == steps
            if is_last or time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                try:
                    state.curve.settle(Ranks())
                except NotFiniteError as error:
                    text = f"{name}: the loss or its gradient is not finite after {error.images_seen} images"
                    raise UserError(f"{text}; lower its learning rate") from error
                point = state.curve.close(images_seen=state.images_seen, learning_rate=rate, held_out_loss=math.nan)
                print(f"{name}: step {step + 1}/{steps}, loss {point.loss:.4f}", flush=True)
                if not is_last:
                    checkpoints.save(state)
                saved_at = time.monotonic()
            advance(fit.batch_size)
