"""From what a stage knows to a model folder: the same way for training and for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2m.code import code_digest
from m2m.data.sets import ImageSets
from m2m.files import folder_digest, write_atomically
from m2m.manifest import Manifest
from m2m.params import TrainCommon, TrainVariant
from m2m.pipeline import M2MPipeline
from m2m.store import Store
from m2m.tracking import NullTracker, Tracker
from m2m.training.checkpoints import Checkpoints
from m2m.training.held_out import HeldOut
from m2m.training.loop import Course
from m2m.training.model_folder import write_model
from m2m.training.objective import Objective
from m2m.training.ranks import joined_ranks
from m2m.training.session import start_or_resume, train
from m2m.training.start import freeze_slots
from m2m.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of it."""

    images_seen: int
    held_out_loss: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model to be made."""

    name: str
    """of its checkpoints and of the tracked run"""
    stage: str
    tags: Mapping[str, str]
    common: TrainCommon
    variant: TrainVariant
    start: Callable[[], M2MPipeline]
    """gives the pipeline before the first step, a pure function"""
    before_first_step: Callable[[M2MPipeline, ImageSets], None] | None = None
    """changes it, given the training sets, where no checkpoint has it changed already"""
    made_from: Mapping[str, Any]
    """digests of the folders that went in; a checkpoint of others, or of other code, is none of this job"""
    card: Callable[[int], str]
    """the model card, from the images seen"""

    @property
    def parameters(self) -> dict[str, Any]:
        """All of them, as recorded."""
        return {**self.common.model_dump(mode="json"), **self.variant.model_dump(mode="json")}


def make_model(
    job: Job,
    data: Manifest,
    *,
    out: Path,
    curve: Path,
    work: Path,
    store: Store,
    tracker: Tracker,
    device: str,
    workers: Workers = ALONE,
) -> Trained:
    """Writes the pipeline folder `out` and the curve (CSV). Killed and called again, it goes on where it was.

    Started by `torchrun`, the processes train together: the first one writes and tracks.

    Args:
        work: where checkpoints lie until the model is there.

    Raises:
        UserError: the parameters ask for more than the dataset has, the loss is not finite, the store or the disk
            refuses.
    """
    key = {
        **{"job": job.name, "parameters": job.parameters, "manifest": data.digest, "made from": dict(job.made_from)},
        **{"device": device.partition(":")[0], "code": code_digest(f"m2m.stages.{job.stage}")},
    }
    checkpoints = Checkpoints.of(work / job.name, key)
    with joined_ranks(device) as ranks:
        pipeline = job.start().to(ranks.device)
        if not data.ordered:
            freeze_slots(pipeline.unet)
        objective = Objective(pipeline, job.common, device=ranks.device)
        course = Course(
            sets=ImageSets(store, data, "train"),
            images_per_set=data.images_per_set,
            objective=objective,
            variant=job.variant,
            ordered=data.ordered,
        )
        held_out = None
        if ranks.is_first:
            held_out = HeldOut(pipeline, objective, ImageSets(store, data, "validation"), device=ranks.device)
        if job.before_first_step and checkpoints.latest() is None:
            job.before_first_step(pipeline, course.sets)
        state = start_or_resume(pipeline.unet, job.common, job.variant, checkpoints, one_length=not course.ordered)
        with (tracker if ranks.is_first else NullTracker()).run(
            job.name,
            stage=job.stage,
            tags={**job.tags, "manifest": data.digest},
            resume_key=checkpoints.tracking_key,
        ) as record:
            if ranks.is_first:
                checkpoints.keep_tracking_key(record.id)
            record.params({**job.parameters, **job.made_from})
            record.dataset(data.kind, source=store.uri, digest=data.digest, context="training", sets=data.sets)
            train(
                job.name,
                state,
                course,
                ranks=ranks,
                held_out=held_out,
                checkpoints=checkpoints,
                record=record,
                workers=workers,
            )
            if ranks.is_first:
                write_model(pipeline, state.ema, out, card=job.card(state.images_seen))
                write_atomically(curve, state.curve.to_csv().encode())
                record.tags({"model": folder_digest(out)})
                record.artifact(curve)
        if ranks.is_first:
            checkpoints.clear()
    return Trained(images_seen=state.images_seen, held_out_loss=state.curve.points[-1].held_out_loss)
