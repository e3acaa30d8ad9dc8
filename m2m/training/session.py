"""A run of training from its checkpoint to its end: the loop, and what is shown, tracked and saved on the way."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext

import torch

from m2m.errors import UserError
from m2m.models.unet import ImageSetUNet
from m2m.params import TrainCommon, TrainVariant
from m2m.progress import progress
from m2m.tracking import Run
from m2m.training.checkpoints import Checkpoints
from m2m.training.curve import NotFiniteError
from m2m.training.ema import Ema
from m2m.training.held_out import HeldOut
from m2m.training.loop import Course, train_steps
from m2m.training.ranks import Ranks
from m2m.training.schedule import is_due
from m2m.training.state import TrainState
from m2m.workers import ALONE, Workers

SETS_NAMED = 8
"""Ids in a message."""

_log = logging.getLogger(__name__)


def start_or_resume(
    network: ImageSetUNet,
    common: TrainCommon,
    variant: TrainVariant,
    checkpoints: Checkpoints,
    *,
    one_length: bool = True,
) -> TrainState:
    """The state of the newest checkpoint of this very run, or the state before the first step.

    The network will be trained as `common` says: with its activations computed again, its blocks compiled.

    Args:
        one_length: all sets have as many images, so that graphs are made for their very shapes.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if common.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if common.compile_blocks:
        network.compile_repeated_blocks(dynamic=False if one_length else None)
    context = network.context_parameters()
    new = set(context)
    carried = [parameter for parameter in network.parameters() if parameter not in new]
    optimizer = torch.optim.AdamW(
        [
            {"params": carried, "peak": variant.learning_rate},
            {"params": context, "peak": variant.context_learning_rate},
        ],
        weight_decay=common.weight_decay,
        fused=True,
    )
    state = TrainState(network=network, optimizer=optimizer, ema=Ema(network, decay=common.ema.decay))
    if (checkpoint := checkpoints.latest()) is not None:
        state.load(checkpoint)
        _log.info("goes on from %s", checkpoint)
    elif others := checkpoints.of_other_runs():
        _log.warning("starts afresh: the checkpoints in %s are of other parameters, data or code", others[0].parent)
    return state


def train(
    name: str,
    state: TrainState,
    course: Course,
    *,
    ranks: Ranks,
    held_out: HeldOut | None,
    checkpoints: Checkpoints,
    record: Run,
    workers: Workers = ALONE,
) -> None:
    """Trains to the end of the course; at that moment, too, a point is on the curve and a checkpoint on the disk.

    Args:
        held_out: what to show on the first rank; None on the others.

    Raises:
        UserError: the loss or its gradient is not finite; names the step and the sets, and keeps the last checkpoint.
            Or what `train_steps` raises.
    """
    common, total = course.objective.common, course.steps(0).stop * course.images_per_step
    with progress(total, name, unit="images") if ranks.is_first else nullcontext(_silent) as advance:
        advance(state.images_seen, skipped=True)
        for step in train_steps(state, course, ranks, workers):
            now, before = state.images_seen, state.images_seen - course.images_per_step
            is_last = now == total
            log = is_last or is_due(common.log_every, before=before, after=now)
            save = is_last or is_due(common.checkpoint_every, before=before, after=now)
            if log or save:
                _settle(state, course, ranks)
            if log:
                point = state.curve.close(
                    images_seen=now,
                    learning_rate=course.learning_rate(step),
                    held_out_loss=ranks.from_first(held_out.loss(state.ema) if held_out else math.nan),
                )
                record.metrics(point.metrics(), step=now)
            if held_out and (is_last or is_due(common.preview_every, before=before, after=now)):
                for key, picture in held_out.previews(state.ema).items():
                    record.image(picture, key=key, step=now)
            if save and ranks.is_first:
                checkpoints.save(state)
            advance(course.images_per_step)


def _settle(state: TrainState, course: Course, ranks: Ranks) -> None:
    try:
        state.curve.settle(ranks)
    except NotFiniteError as error:
        step = error.images_seen // course.images_per_step - 1
        order = course.order(step)
        ids = [course.sets[order[place][0]].id for place in error.positions]
        named = ", ".join(ids[:SETS_NAMED]) + (f" and {len(ids) - SETS_NAMED} more" if len(ids) > SETS_NAMED else "")
        raise UserError(
            f"the loss or its gradient is not finite after {error.images_seen} images (step {step + 1}), in the sets "
            f"{named}; look at them, or lower the learning rate. The last checkpoint is kept"
        ) from error


def _silent(count: int = 1, *, skipped: bool = False) -> None:
    """The progress of ranks that show none."""
