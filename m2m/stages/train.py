"""Stage ``train``: weights and a MIS dataset in, a many-to-many pipeline out."""

from __future__ import annotations

from pathlib import Path

from m2m.errors import UserError
from m2m.manifest import Manifest
from m2m.params import Encoder, TrainCommon, TrainDino, TrainVariant, Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.runtime import Runtime
from m2m.training.run import train_model
from m2m.training.start import ENCODERS, from_stable_diffusion, weights_of
from m2m.training.state import Point


def run(
    common: TrainCommon,
    variant: Variant,
    params: TrainVariant,
    *,
    manifest: Path,
    foundation: Path,
    model: Path | None = None,
    out: Path,
    curve: Path,
    runtime: Runtime,
) -> Point:
    """Writes the pipeline folder `out` and the curve (CSV), see `train_model`.

    Args:
        foundation: the folder with ``stable-diffusion/`` and, for M2M-DINO, its encoder's: the start.
        model: a trained model's folder (`params.start`), which is the start in their place: of a dataset that grew.

    Raises:
        UserError: a folder is incomplete, the model is not what the parameters train, they ask for more than the
            dataset has, the loss is not finite, the store or the disk refuses.
    """
    data = Manifest.read(manifest)
    encoder: Encoder = params.encoder if isinstance(params, TrainDino) else "dino"
    if model is None:
        pipeline, parents = (
            from_stable_diffusion(foundation, variant, common, encoder=encoder),
            weights_of(foundation, variant, encoder=encoder),
        )
    else:
        pipeline, parents = load_pipeline(model), [model]
        _check_start(model, pipeline, common, variant, encoder)
    return train_model(
        pipeline,
        data,
        common,
        params,
        stage="train",
        starts_as="parent" if model else "foundation",
        parents=parents,
        captions_read=params.caption_start if isinstance(params, TrainDino) and model is None else 0,
        out=out,
        curve=curve,
        runtime=runtime,
    )


def _check_start(model: Path, pipeline: M2MPipeline, common: TrainCommon, variant: Variant, encoder: Encoder) -> None:
    """Raises UserError for a model of another make than the parameters ask for."""
    config, network = pipeline.unet.config, pipeline.image_encoder
    of_class = [name for name, (network_class, _) in ENCODERS.items() if isinstance(network, network_class)]
    facts = {
        "variant": (pipeline.unet.variant, variant),
        "train.common.max_context": (pipeline.unet.max_context, common.max_context),
        "train.common.context_pool": (config["context_pool"], common.context_pool if variant == "self" else 1),
        "train.common.prediction_type": (pipeline.scheduler.config.prediction_type, common.prediction_type),
        "train.variant.dino.encoder": (of_class, [encoder] if variant == "dino" else []),
        "input of poses": (pipeline.unet.pose_dim > 0, False),
    }
    for name, (has, wanted) in facts.items():
        if has != wanted:
            raise UserError(
                f"train.variant.{variant}.start: {model} cannot be trained on: its {name} is {has}, and {wanted} is "
                "asked for"
            )
