"""A model is trained, from a start to its folder: the same way from Stable Diffusion and from a model, for a task."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from m2m.code import code_digest
from m2m.contact_sheet import contact_sheet
from m2m.data.dataset import SHARDS_OPEN, ImageSets
from m2m.diffusion.sampler import make_scheduler
from m2m.errors import MADE_AGAIN, UserError
from m2m.files import folder_digest, new_folder, write_atomically, write_digests
from m2m.manifest import Manifest
from m2m.models.unet import ImageSetUNet
from m2m.params import Task, TrainCommon, TrainDino, VariantLearning
from m2m.pipeline import M2MPipeline
from m2m.progress import progress
from m2m.runtime import Runtime
from m2m.seeds import derive
from m2m.tracking import NullTracker, Run
from m2m.training.card import model_card
from m2m.training.checkpoints import Checkpoints
from m2m.training.loop import Batches, train_steps
from m2m.training.loss import Examples, SetLoss
from m2m.training.ranks import Ranks, joined_ranks
from m2m.training.start import freeze_slots, start_from_captions
from m2m.training.state import Ema, NotFiniteError, Point, TrainState, is_due
from m2m.workers import ALONE, Workers

PREVIEW_STEPS = 10
"""Steps of the solver: enough to see what is drawn."""
SETS_NAMED = 8
"""Ids in a message."""

_log = logging.getLogger(__name__)


def train_model(
    pipeline: M2MPipeline,
    data: Manifest,
    common: TrainCommon,
    params: VariantLearning,
    *,
    stage: Literal["train", "finetune"],
    starts_as: Literal["foundation", "parent"],
    parents: Sequence[Path],
    task: Task | None = None,
    out: Path,
    curve: Path,
    runtime: Runtime,
) -> Point:
    """Writes the pipeline folder `out` and the curve (CSV). Killed and called again, it goes on where it was.

    Started by `torchrun`, the processes train together: the first one writes and tracks. The folder's bytes are a
    function of the weights and of what they were made from; which code made them, and when, the tracked run tells.

    Args:
        pipeline: before the first step, on the CPU: a pure function of the parameters and of the parents.
        params: of the variant. Where they say so, M2M-DINO starts to read at what captions said to the first parent.
        starts_as: what the folders are that it starts from: the foundation's, or a trained model's.
        parents: the folders of weights that went in.

    Returns:
        the last point of the curve.

    Raises:
        UserError: the parameters ask for more than the dataset has, the loss is not finite, the store or the disk
            refuses.
    """
    variant, digests = pipeline.unet.variant, {folder: folder_digest(folder) for folder in parents}
    tags = {"variant": variant, **({"task": task} if task else {})}
    name = "-".join([stage, *tags.values()])
    # Where a model lay that it starts from is no content; that it was this one, the digest says.
    parameters = {**common.model_dump(mode="json"), **params.model_dump(mode="json", exclude={"start"})}
    made_from: dict[str, object] = {starts_as: {folder.name: digest for folder, digest in digests.items()}}
    key = {"run": name, "parameters": parameters, "manifest": data.digest, "made from": made_from}
    key |= {"device": runtime.device_type, "code": code_digest(f"m2m.stages.{stage}")}
    checkpoints = Checkpoints.of(runtime.store, name, key, work=runtime.work)
    with joined_ranks(runtime.device) as ranks:
        pipeline.to(ranks.device)
        if not data.ordered:
            freeze_slots(pipeline.unet)
        batches = Batches(
            # Of each lane the shard that is read, the one before and the one that is fetched ahead.
            sets=ImageSets(
                runtime.store, data, "train", shards_open=3 * -(-params.sets_per_step // ranks.count) + SHARDS_OPEN
            ),
            images_per_set=data.images_per_set,
            loss=SetLoss(pipeline, common, device=ranks.device),
            variant=params,
            ordered=data.ordered,
        )
        held_out = None
        if ranks.is_first:
            held_out = HeldOut(pipeline, batches.loss, ImageSets(runtime.store, data, "validation"))
        if isinstance(params, TrainDino) and params.caption_start and checkpoints.latest() is None:
            start_from_captions(pipeline, parents[0], batches.sets, count=params.caption_start, seed=common.seed)
        state = start_or_resume(pipeline.unet, batches, checkpoints)
        with (runtime.tracker if ranks.is_first else NullTracker()).run(
            name, stage=stage, tags={**tags, "manifest": data.digest}, resume_key=checkpoints.tracking_key
        ) as record:
            if ranks.is_first:
                checkpoints.keep_tracking_key(record.id)
            record.params({**parameters, **made_from})
            record.dataset(data.kind, source=runtime.store.uri, digest=data.digest, context="training", sets=data.sets)
            train(name, state, batches, ranks, held_out, checkpoints, record, runtime.workers, runtime.leaving)
            if ranks.is_first:
                seen = state.images_seen
                card = model_card(
                    variant, task, images_seen=seen, parameters=parameters, manifest=data, parents=digests
                )
                # Where it was loaded from on this machine is nobody's business, and would differ between machines.
                for part in (pipeline, pipeline.vae, pipeline.unet):
                    if "_name_or_path" in part.config:
                        part.register_to_config(_name_or_path="")
                with state.ema.applied(), new_folder(out) as draft:
                    pipeline.save_pretrained(draft, safe_serialization=True)
                    (draft / "README.md").write_text(card, encoding="utf-8")
                    write_digests(draft)
                write_atomically(curve, state.curve.to_csv().encode())
                record.tags({"model": folder_digest(out)})
                record.artifact(curve)
        if ranks.is_first:
            runtime.when_handed_over(checkpoints.clear)
    return state.curve.points[-1]


def start_or_resume(network: ImageSetUNet, batches: Batches, checkpoints: Checkpoints) -> TrainState:
    """The state of the newest checkpoint of this very run, or the state before the first step.

    The network will be trained as the parameters say: with its activations computed again, its blocks compiled, for
    their very shapes where all sets have as many images.

    Raises:
        UserError: the checkpoint is damaged.
    """
    common, params = batches.loss.common, batches.variant
    if common.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if common.compile_blocks:
        network.compile_repeated_blocks(dynamic=None if batches.ordered else False)
    context = network.context_parameters()
    new = set(context)
    carried = [parameter for parameter in network.parameters() if parameter not in new]
    groups = [{"params": carried, "peak": params.learning_rate}]
    groups += [{"params": context, "peak": params.context_learning_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=common.weight_decay, fused=True)
    state = TrainState(network=network, optimizers=(optimizer,), ema=Ema(network, decay=common.ema.decay))
    if (checkpoint := checkpoints.latest()) is not None:
        state.load(checkpoint)
        _log.info("goes on from %s", checkpoint)
    elif checkpoints.of_other_runs():
        name = checkpoints.name
        _log.warning("%s starts afresh: its checkpoints in the store are of other parameters, data or code", name)
    return state


def train(
    name: str,
    state: TrainState,
    batches: Batches,
    ranks: Ranks,
    held_out: HeldOut | None,
    checkpoints: Checkpoints,
    record: Run,
    workers: Workers = ALONE,
    leaving: Callable[[], bool] = lambda: False,
) -> None:
    """Trains to the last batch; at that moment, too, a point is on the curve and a checkpoint in the store.

    Args:
        held_out: what to show on the first rank; None on the others.
        leaving: asked after each step; where it says so, a checkpoint is saved at once.

    Raises:
        UserError: the loss or its gradient is not finite; names the step and the sets, and keeps the last checkpoint.
            Or what `train_steps` raises.
    """
    common, total = batches.loss.common, batches.steps(0).stop * batches.images_per_step
    with progress(total, name, unit="images") if ranks.is_first else nullcontext(_silent) as advance:
        advance(state.images_seen, skipped=True)
        for _ in train_steps(state, batches, ranks, workers):
            now, before = state.images_seen, state.images_seen - batches.images_per_step
            log, show, save = (
                now == total or is_due(every, before=before, after=now)
                for every in (common.log_every, common.preview_every, common.checkpoint_every)
            )
            save = leaving() or save
            if log or save:
                try:
                    state.curve.settle(ranks)
                except NotFiniteError as error:
                    raise _not_finite(error, batches) from error
            if log:
                point = state.curve.close(
                    images_seen=now,
                    learning_rate=state.optimizers[0].param_groups[0]["lr"],
                    held_out_loss=ranks.from_first(held_out.loss(state.ema) if held_out else math.nan),
                )
                record.metrics(point.metrics(), step=now)
            if held_out and show:
                for key, picture in held_out.previews(state.ema).items():
                    record.image(picture, key=key, step=now)
            if save and ranks.is_first:
                checkpoints.save(state)
            advance(batches.images_per_step)


def _silent(count: int = 1, *, skipped: bool = False) -> None:
    """The progress of ranks that show none."""


def _not_finite(error: NotFiniteError, batches: Batches) -> UserError:
    step = error.images_seen // batches.images_per_step - 1
    order = batches.order.step(step)
    ids = [batches.sets[order[place][0]].id for place in error.positions]
    named = ", ".join(ids[:SETS_NAMED]) + (f" and {len(ids) - SETS_NAMED} more" if len(ids) > SETS_NAMED else "")
    return UserError(
        f"the loss or its gradient is not finite after {error.images_seen} images (step {step + 1}), in the sets "
        f"{named}; look at them, or lower the learning rate. The last checkpoint is kept"
    )


class HeldOut:
    """What a run shows of itself on the way: loss and pictures on the first validation sets, from the same draws.

    Who tunes by these keeps the test unseen. Networks are the pipeline's, with averaged weights: nothing is loaded
    twice.

    Raises:
        UserError: there are no validation sets.
    """

    def __init__(self, pipeline: M2MPipeline, loss: SetLoss, sets: ImageSets) -> None:
        common = loss.common
        if not len(sets):
            text = "the manifest has no validation sets, which previews and the held-out loss need"
            raise UserError(f"{text}; {MADE_AGAIN}")
        shown = [sets[index] for index in range(min(common.preview_sets, len(sets)))]
        examples = [
            loss.draws.example(one, range(min(common.set_size, len(one.images))), key=("held out", place))
            for place, one in enumerate(shown)
        ]
        # A pipeline of its own around the same networks: it takes a solver for few steps, and keeps its bar to itself.
        scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
        self._pipeline = M2MPipeline(**{**pipeline.components, "scheduler": scheduler})
        self._pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
        self._loss = loss
        self._examples = Examples.stack(examples).to(loss.products.device)
        self._given = [Image.fromarray(image_set.images[0]) for image_set in shown]
        with_poses = loss.draws.with_poses
        self._poses = [image_set.cameras()[: common.set_size] for image_set in shown] if with_poses else None

    @torch.no_grad()
    def loss(self, ema: Ema) -> float:
        """The training loss with averaged weights; comparable between runs with the same seed and validation sets."""
        with torch.compiler.set_stance("force_eager"), ema.applied():  # no graphs of its own for its few shapes
            return float(self._loss(self._pipeline.unet, self._examples).double().mean())

    def previews(self, ema: Ema) -> dict[str, Image.Image]:
        """For each set the given picture, framed, and those drawn after it; and all sets as one picture."""
        common = self._loss.common
        with torch.compiler.set_stance("force_eager"), ema.applied():
            (drawn,) = self._pipeline(
                [[picture] for picture in self._given],
                common.set_size - 1,
                num_inference_steps=PREVIEW_STEPS,
                generator=[derive(common.seed, "preview", place) for place in range(len(self._given))],
                poses=self._poses,
                return_dict=False,
            )
        rows = [([given], pictures) for given, pictures in zip(self._given, drawn, strict=True)]
        previews = {f"preview/{place:02}": contact_sheet([row]) for place, row in enumerate(rows)}
        return previews | {"preview/all": contact_sheet(rows)}
