"""Stage ``train``: weights and a MIS dataset in, a many-to-many pipeline out."""

from __future__ import annotations

from pathlib import Path

import torch

from m2m.errors import UserError
from m2m.manifest import Manifest
from m2m.params import Encoder, TrainCommon, TrainDino, TrainVariant, Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.runtime import Runtime
from m2m.training.run import train_model
from m2m.training.start import from_stable_diffusion, weights_of
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
        model: a trained model's folder, which is the start in their place; default: `params.start`.

    Raises:
        UserError: a folder is incomplete, the model is not what the parameters train, they ask for more than the
            dataset has, the loss is not finite, the store or the disk refuses.
    """
    data = Manifest.read(manifest)
    encoder: Encoder = params.encoder if isinstance(params, TrainDino) else "dino"
    model = model or (Path(params.start) if params.start else None)
    pipeline = from_stable_diffusion(foundation, variant, common, encoder=encoder)
    parents = weights_of(foundation, variant, encoder=encoder)
    if model:
        trained, parents = load_pipeline(model), [model]
        _check_start(model, trained, pipeline)
        pipeline = trained
        if isinstance(params, TrainDino):  # it reads already
            params = params.model_copy(update={"caption_start": 0})
    return train_model(
        pipeline,
        data,
        common,
        params,
        stage="train",
        starts_as="parent" if model else "foundation",
        parents=parents,
        out=out,
        curve=curve,
        runtime=runtime,
    )


def _check_start(model: Path, trained: M2MPipeline, untrained: M2MPipeline) -> None:
    """Raises UserError for a model of another make than training from the foundation would give."""

    def facts(pipeline: M2MPipeline) -> dict[str, object]:
        unet = pipeline.unet
        return {
            "variant": unet.variant,
            "train.common.max_context": unet.max_context,
            "train.common.context_pool": unet.config["context_pool"],
            "train.common.prediction_type": pipeline.scheduler.config.prediction_type,
            "train.variant.dino.encoder": type(pipeline.image_encoder).__name__,
            "poses": unet.pose_dim > 0,
            "order of images": any(bool(block.slot_embedding.any()) for block in unet.attentions().values()),
        }

    has, wanted = facts(trained), facts(untrained)
    words = [f"{key} is {has[key]}, and {wanted[key]} is asked for" for key in has if has[key] != wanted[key]]
    encodes, other = (pipeline.vae.state_dict() for pipeline in (trained, untrained))
    if encodes.keys() != other.keys() or not all(torch.equal(value, other[key]) for key, value in encodes.items()):
        words.append("VAE is not that of the foundation, which the sets' latents are of")
    if words:
        raise UserError(f"{model} cannot be trained on (train.variant.*.start): its {words[0]}")
