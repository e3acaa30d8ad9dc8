"""Stage ``train``: Stable Diffusion's weights and a MIS dataset in, a many-to-many pipeline out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler
from safetensors import SafetensorError
from transformers import BitImageProcessorPil, Dinov2Model

from m2m.data.sets import ImageSets
from m2m.diffusion.solvers import make_scheduler
from m2m.errors import UserError
from m2m.files import folder_digest, write_atomically
from m2m.manifest import Manifest
from m2m.models.unet import ImageSetUNet
from m2m.params import TrainCommon, TrainDino, TrainVariant, Variant
from m2m.pipeline import M2MPipeline
from m2m.settings import revision
from m2m.store import Store
from m2m.tracking import NullTracker, Tracker
from m2m.training.caption_start import start_from_captions
from m2m.training.card import Parent, model_card
from m2m.training.checkpoints import Checkpoints
from m2m.training.held_out import HeldOut
from m2m.training.loop import Course
from m2m.training.model_folder import write_model
from m2m.training.objective import Objective
from m2m.training.ranks import joined_ranks
from m2m.training.session import start_or_resume, train
from m2m.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the stage made."""

    images_seen: int
    held_out_loss: float


def run(
    common: TrainCommon,
    variant: Variant,
    params: TrainVariant,
    *,
    manifest: Path,
    foundation: Path,
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
        foundation: the folder with ``stable-diffusion/`` and, for M2M-DINO, ``dino/``.
        work: where checkpoints lie until the model is there.

    Raises:
        UserError: a folder is incomplete, the parameters ask for more than the dataset has, the loss is not finite, the
            store or the disk refuses.
    """
    data = Manifest.read(manifest)
    folders = ("stable-diffusion", "dino") if variant == "dino" else ("stable-diffusion",)
    parents = [Parent.of(foundation / name) for name in folders]
    digests = {parent.name: parent.digest for parent in parents}
    parameters = {**common.model_dump(mode="json"), **params.model_dump(mode="json")}
    name = f"train-{variant}"
    checkpoints = Checkpoints.of(
        work / name, {"variant": variant, "parameters": parameters, "manifest": data.digest, "foundation": digests}
    )
    with joined_ranks(device) as ranks:
        pipeline = start(foundation, variant, common).to(ranks.device)
        if common.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        objective = Objective(pipeline, common, device=ranks.device)
        course = Course(
            sets=ImageSets(store, data, "train"),
            images_per_set=data.images_per_set,
            objective=objective,
            variant=params,
        )
        held_out = None
        if ranks.is_first:
            held_out = HeldOut(pipeline, objective, ImageSets(store, data, "test"), device=ranks.device)
        if isinstance(params, TrainDino) and params.caption_start and checkpoints.latest() is None:
            start_from_captions(
                pipeline, foundation / "stable-diffusion", course.sets, count=params.caption_start, seed=common.seed
            )
        state = start_or_resume(pipeline.unet, common, params, checkpoints)
        with (tracker if ranks.is_first else NullTracker()).run(
            name,
            stage="train",
            tags={"variant": variant, "manifest": data.digest},
            resume_key=checkpoints.tracking_key,
        ) as record:
            if ranks.is_first:
                checkpoints.keep_tracking_key(record.id)
            record.params({**parameters, "foundation": digests})
            record.dataset(data.kind, source=store.uri, digest=data.digest, context="training", sets=data.sets)
            train(
                name,
                state,
                course,
                ranks=ranks,
                held_out=held_out,
                checkpoints=checkpoints,
                record=record,
                workers=workers,
            )
            if ranks.is_first:
                card = model_card(
                    variant,
                    images_seen=state.images_seen,
                    parameters=parameters,
                    manifest=data,
                    parents=parents,
                    commit=str(revision()),
                )
                write_model(pipeline, state.ema, out, card=card)
                write_atomically(curve, state.curve.to_csv().encode())
                record.tags({"model": folder_digest(out)})
                record.artifact(curve)
        if ranks.is_first:
            checkpoints.clear()
    return Trained(images_seen=state.images_seen, held_out_loss=state.curve.points[-1].held_out_loss)


def start(foundation: Path, variant: Variant, common: TrainCommon) -> M2MPipeline:
    """The pipeline before the first step: a pure function of the foundation's folders.

    Raises:
        UserError: a folder is missing, incomplete or damaged.
    """
    source, dino = foundation / "stable-diffusion", foundation / "dino"
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        encoder = Dinov2Model.from_pretrained(dino, **options) if variant == "dino" else None
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **options)
        unet = ImageSetUNet.from_stable_diffusion(
            source,
            variant=variant,
            max_context=common.max_context,
            context_dim=encoder.config.hidden_size if encoder else 0,
        )
        schedule = DDIMScheduler.load_config(source, subfolder="scheduler", local_files_only=True)
        processor = BitImageProcessorPil.from_pretrained(dino, local_files_only=True) if encoder else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{foundation}: incomplete or damaged ({reason}); restore it or run the foundation stage again"
        ) from error
    return M2MPipeline(
        vae=vae.requires_grad_(False),
        unet=unet,
        scheduler=make_scheduler("ddim", {**schedule, "prediction_type": common.prediction_type}),
        image_encoder=encoder.requires_grad_(False) if encoder else None,
        feature_extractor=processor,
    )
