"""Stage ``finetune``: a many-to-many pipeline and a task's dataset in, a pipeline for the task out (paper, sec. 4)."""

from __future__ import annotations

from pathlib import Path

from m2m.manifest import Manifest
from m2m.params import FinetuneTask, LearningParams, Task, TrainCommon, Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.settings import revision
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.training.card import Parent, model_card
from m2m.training.job import Job, Trained, make_model
from m2m.training.start import freeze, from_stable_diffusion, take_poses
from m2m.workers import ALONE, Workers


def run(
    learning: LearningParams,
    task: Task,
    variant: Variant,
    params: FinetuneTask,
    *,
    manifest: Path,
    model: Path,
    scratch: TrainCommon | None = None,
    out: Path,
    curve: Path,
    work: Path,
    store: Store,
    tracker: Tracker,
    device: str,
    workers: Workers = ALONE,
) -> Trained:
    """Writes the pipeline folder `out` and the curve (CSV). Killed and called again, it goes on where it was.

    At step 0 the network predicts what the model does that it comes from. For views it then learns to heed poses.

    Args:
        manifest: of the task's dataset.
        model: the pipeline folder to start from.
        scratch: for comparison, `model` is the foundation's folder and Stable Diffusion's weights are the start; what a
            network is before training, its window and what it predicts, is taken from these parameters.
        work: where checkpoints lie until the model is there.

    Raises:
        UserError: as `m2m.stages.train.run`.
    """
    data = Manifest.read(manifest)
    parent = load_pipeline(model) if scratch is None else from_stable_diffusion(model, variant, scratch)
    own = params.of(variant)
    common = TrainCommon(
        **learning.model_dump(),
        set_size=params.set_size,
        max_context=parent.unet.max_context,
        context_pool=parent.unet.config["context_pool"],
        prediction_type=parent.scheduler.config.prediction_type,
    )
    folders = [model]
    if scratch is not None:
        folders = [model / name for name in ("stable-diffusion", *(["dino"] if variant == "dino" else []))]
    parents = [Parent.of(folder) for folder in folders]

    def start() -> M2MPipeline:
        pipeline = take_poses(parent, seed=common.seed) if task == "nvs" else parent
        freeze(pipeline.unet, own.frozen)
        return pipeline

    job = Job(
        name=f"finetune-{variant}-{task}",
        stage="finetune",
        tags={"variant": variant, "task": task},
        common=common,
        variant=own,
        start=start,
        made_from={"parent": {one.name: one.digest for one in parents}},
        card=lambda images_seen: model_card(
            variant,
            task=task,
            images_seen=images_seen,
            parameters=job.parameters,
            manifest=data,
            parents=parents,
            commit=str(revision()),
        ),
    )
    return make_model(
        job,
        data,
        out=out,
        curve=curve,
        work=work,
        store=store,
        tracker=tracker,
        device=device,
        workers=workers,
    )
