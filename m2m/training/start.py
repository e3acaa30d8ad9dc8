"""The pipeline before the first step: from Stable Diffusion's weights, or from a trained one, for a task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPVisionModel, Dinov2Model

from m2m.diffusion.solvers import make_scheduler
from m2m.files import check_digests, reading_foundation
from m2m.models.pose import POSE_DIM
from m2m.models.unet import ImageSetUNet
from m2m.params import Encoder, FrozenPart, TrainCommon, Variant
from m2m.pipeline import M2MPipeline

ENCODERS: Mapping[Encoder, tuple[Any, Any]] = {
    "dino": (Dinov2Model, BitImageProcessorPil),
    "clip": (CLIPVisionModel, CLIPImageProcessorPil),
}
"""Vision transformers that M2M-DINO can read images with, and their image processors."""

FROZEN_PARTS: dict[FrozenPart, tuple[str, ...]] = {
    "convolutions": (".resnets.", ".downsamplers.", ".upsamplers.", "conv_in.", "conv_out.", "conv_norm_out."),
    "self_attention": (".attn1.",),
    "image_set_attention": (".attn2.", "context_proj.", "context_level."),
    "feed_forward": (".ff.",),
}
"""What the names of a part's parameters hold, or begin with."""


def from_stable_diffusion(
    foundation: Path, variant: Variant, common: TrainCommon, *, encoder: Encoder = "dino"
) -> M2MPipeline:
    """The pipeline before the first step: a pure function of the foundation's folders.

    Args:
        encoder: what M2M-DINO reads images with.

    Raises:
        UserError: a folder is missing, incomplete or damaged.
    """
    source, images = foundation / "stable-diffusion", foundation / encoder
    network_class, processor_class = ENCODERS[encoder]
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    for folder in (source, images) if variant == "dino" else (source,):
        check_digests(folder)
    with reading_foundation(foundation):
        network = network_class.from_pretrained(images, **options) if variant == "dino" else None
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **options)
        unet = ImageSetUNet.from_stable_diffusion(
            source,
            variant=variant,
            max_context=common.max_context,
            context_dim=network.config.hidden_size if network else 0,
            context_pool=common.context_pool if variant == "self" else 1,
        )
        schedule = DDIMScheduler.load_config(source, subfolder="scheduler", local_files_only=True)
        processor = processor_class.from_pretrained(images, local_files_only=True) if network else None
    return M2MPipeline(
        vae=vae.requires_grad_(False),
        unet=unet,
        scheduler=make_scheduler("ddim", {**schedule, "prediction_type": common.prediction_type}),
        image_encoder=network.requires_grad_(False) if network else None,
        feature_extractor=processor,
    )


def take_poses(pipeline: M2MPipeline, *, seed: int) -> M2MPipeline:
    """The same pipeline, whose network takes poses and does not heed them yet."""
    unet = ImageSetUNet.with_poses(pipeline.unet, pose_dim=POSE_DIM, seed=seed)
    return M2MPipeline(**{**pipeline.components, "unet": unet})


def freeze_slots(unet: ImageSetUNet) -> None:
    """Keeps the slots as they are, zero from the start: for sets without an order, no place in a window is another.

    The paper's sets have none either, yet it says nothing of how the order of their images is kept out.
    """
    for attention in unet.attentions().values():
        attention.slot_embedding.requires_grad_(False)


def freeze(unet: ImageSetUNet, parts: Collection[FrozenPart]) -> None:
    """Keeps the weights of some parts as they are."""
    names = tuple(name for part in parts for name in FROZEN_PARTS[part])
    for name, parameter in unet.named_parameters():
        if any(part in name if part.startswith(".") else name.startswith(part) for part in names):
            parameter.requires_grad_(False)
