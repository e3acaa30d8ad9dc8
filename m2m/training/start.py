"""The pipeline before the first step: from Stable Diffusion's weights, or from a trained one, for a task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPVisionModel, Dinov2Model

from m2m.data.dataset import ImageSets
from m2m.diffusion.gaussian import add_noise, alphas_cumprod
from m2m.diffusion.sampler import make_scheduler
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.errors import FOUNDATION_RESTORED, UserError
from m2m.files import check_digests, reading_foundation
from m2m.models.context import dino_pixels, dino_tokens
from m2m.models.pose import POSE_DIM
from m2m.models.unet import ImageSetUNet
from m2m.params import Encoder, FrozenPart, TrainCommon, Variant
from m2m.pipeline import M2MPipeline
from m2m.seeds import generator, normal
from m2m.training.loss import latents_of

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

SETS_AT_ONCE = 16
IMAGES_READ = 12
"""Of each set whose caption is read, at most: what it says is averaged over their noises and timesteps."""
RIDGE = 1e-3
"""Added to the variances of what is regressed on, as a share of their mean."""
FLAT = 1e-6
"""Directions with less than this share of the largest variance are not magnified further."""


def weights_of(foundation: Path, variant: Variant, *, encoder: Encoder = "dino") -> list[Path]:
    """The folders that a variant starts from or holds, Stable Diffusion's first."""
    return [foundation / name for name in ("stable-diffusion", *([encoder] if variant == "dino" else []))]


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
    for folder in weights_of(foundation, variant, encoder=encoder):
        if not folder.is_dir():  # else it would be taken for the name of a model on a hub
            raise UserError(f"{folder}: no such folder; {FOUNDATION_RESTORED}")
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


def start_from_captions(
    pipeline: M2MPipeline, stable_diffusion: Path, sets: ImageSets, *, count: int, seed: int
) -> None:
    """Lets M2M-DINO start to read at what the images' captions said to Stable Diffusion, by least squares, in place.

    Image-Set Attention stands where the attention to a text stood, and the caption of a multi-image set is known. So
    before the first step each block's values are fitted: DINOv2's tokens of an image, averaged, give what the block's
    attention read from the image's caption, averaged over its queries. What a caption says of shapes is then there at
    once; from zero, gradients find colours in minutes and shapes in hours. Neither training nor sampling sees any.

    Projected tokens are decorrelated and of unit variance, so that no trait drowns another; their last channel is one,
    to carry the values' mean. Keys are zero: at first all tokens are read alike. The null rows stay as they are, the
    empty prompt. On the embedded world they take a quarter of an attention after one image and a tenth after five;
    values that make up for it, or keys as large as theirs, begin with a higher loss.

    Args:
        stable_diffusion: the parent's folder.
        sets: with captions and latents.
        count: how many of them to read, the first ones.

    Raises:
        UserError: a set has no latents, or the parent's folder cannot be used.
    """
    unet: ImageSetUNet = pipeline.unet
    tokens, covariance, captions = _read(pipeline, stable_diffusion, sets, count=min(count, len(sets)), seed=seed)
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    kept = slice(-(unet.context_proj.out_features - 1), None)  # one channel is for the constant
    spread = variances[kept].clamp(min=FLAT * float(variances[-1])).sqrt()
    whiten = (directions[:, kept] / spread).T  # (channels, context_dim)
    centre = tokens.mean(dim=0)
    traits = (tokens - centre) @ whiten.T  # (n, channels)
    variance = traits.T @ traits / len(traits)
    variance += RIDGE * variance.diagonal().mean() * torch.eye(len(variance), device=variance.device)
    channels = len(whiten)
    with torch.no_grad():
        unet.context_proj.weight.zero_()[:channels] = whiten
        unet.context_proj.bias.zero_()[:channels] = -whiten @ centre
        unet.context_proj.bias[-1] = 1
        for name, attention in unet.attentions().items():
            said, mean = captions[name], captions[name].mean(dim=0)
            weight = torch.linalg.solve(variance, traits.T @ (said - mean) / len(said)).T  # (inner_dim, channels)
            attention.to_k.weight.zero_()
            attention.to_v.weight.zero_()[:, :channels] = weight
            attention.to_v.weight[:, -1] = mean


@torch.no_grad()
def _read(
    pipeline: M2MPipeline, stable_diffusion: Path, sets: ImageSets, *, count: int, seed: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What n images are to DINOv2, and what the parent's blocks read from their captions.

    Returns:
        averages of tokens over each image (n, context_dim); the covariance of single tokens (context_dim, context_dim);
        by block, averages over each set, (n, inner_dim).
    """
    device = pipeline.unet.device
    parent = StableDiffusion(
        stable_diffusion, solver="ddim", num_inference_steps=1, guidance_scale=1.0, device=str(device)
    )
    products = alphas_cumprod(pipeline.scheduler.config, "epsilon").to(device)
    blocks = tuple(pipeline.unet.attentions())
    pooled, captions = [], []
    moment, tokens_seen = torch.zeros((), device=device), 0
    for start in range(0, count, SETS_AT_ONCE):
        members = [sets[index] for index in range(start, min(start + SETS_AT_ONCE, count))]
        draws = generator(seed, "caption start", start)
        of_members = np.stack([latents_of(one, pipeline.latent_shape)[:IMAGES_READ] for one in members])
        latents = torch.from_numpy(of_members).to(device)  # (B, I, 4, h, w)
        images = np.concatenate([one.images[:IMAGES_READ] for one in members])  # (B·I, H, W, 3)
        pixels = dino_pixels(torch.from_numpy(images).permute(0, 3, 1, 2).to(device), pipeline.feature_extractor)
        tokens = dino_tokens(pipeline.image_encoder, pixels).double()  # (B·I, L, context_dim)
        pooled.append(tokens.mean(dim=1))
        moment = moment + torch.einsum("nld,nle->de", tokens, tokens)
        tokens_seen += tokens.shape[0] * tokens.shape[1]
        timesteps = torch.randint(len(products), latents.shape[:2], generator=draws).to(device)
        noise = normal(latents.shape, draws)[0].to(device)
        noisy, times = add_noise(latents, noise, timesteps, products).flatten(0, 1), timesteps.flatten()
        texts = parent.embed([one.caption for one in members]).repeat_interleave(latents.shape[1], dim=0)
        captions.append(parent.attended(noisy, times, texts, blocks))
    images_per_set, each = latents.shape[1], torch.cat(pooled)
    centre, said = each.mean(dim=0), {}
    for block in blocks:
        of_sets = torch.cat([part[block] for part in captions]).view(count, images_per_set, -1).mean(dim=1)
        said[block] = of_sets.repeat_interleave(images_per_set, dim=0)
    return each.float(), (moment / tokens_seen - centre[:, None] * centre).float(), said
