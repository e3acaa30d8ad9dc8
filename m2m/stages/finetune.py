"""Stage ``finetune``: a many-to-many pipeline and a task's dataset in, a pipeline for the task out (paper, sec. 4)."""

from __future__ import annotations

from pathlib import Path

from m2m.manifest import Manifest
from m2m.params import FinetuneTask, LearningParams, Task, TrainCommon, Variant
from m2m.pipeline import load_pipeline
from m2m.runtime import Runtime
from m2m.training.run import train_model
from m2m.training.start import freeze, from_stable_diffusion, take_poses, weights_of
from m2m.training.state import Point


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
    runtime: Runtime,
) -> Point:
    """Writes the pipeline folder `out` and the curve (CSV), see `train_model`.

    At step 0 the network predicts what the model does that it comes from. For views it then learns to heed poses.

    Args:
        manifest: of the task's dataset.
        model: the pipeline folder to start from.
        scratch: for comparison, `model` is the foundation's folder and Stable Diffusion's weights are the start; what a
            network is before training, its window and what it predicts, is taken from these parameters.

    Raises:
        UserError: as `m2m.stages.train.run`.
    """
    data, own = Manifest.read(manifest), params.of(variant)
    pipeline = load_pipeline(model) if scratch is None else from_stable_diffusion(model, variant, scratch)
    common = TrainCommon(
        **learning.model_dump(),
        set_size=params.set_size,
        max_context=pipeline.unet.max_context,
        context_pool=pipeline.unet.config["context_pool"],
        prediction_type=pipeline.scheduler.config.prediction_type,
    )
    if task == "nvs":
        pipeline = take_poses(pipeline, seed=common.seed)
    freeze(pipeline.unet, own.frozen)
    return train_model(
        pipeline,
        data,
        common,
        own,
        stage="finetune",
        task=task,
        starts_as="parent",
        parents=[model] if scratch is None else weights_of(model, variant),
        out=out,
        curve=curve,
        runtime=runtime,
    )
