"""Where M2M-DINO starts to read: at what the images' captions said to Stable Diffusion, by least squares.

Image-Set Attention stands where the attention to a text stood, and the caption of a multi-image set is known. So before
the first step each block's values are fitted: DINOv2's tokens of an image, averaged, give what the block's attention
read from the image's caption, averaged over its queries. What a caption says of shapes is then there at once; from
zero, gradients find colours in minutes and shapes in hours. Neither training nor sampling sees a caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet
from m2m.diffusion.objective import add_noise, alphas_cumprod
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.errors import UserError
from m2m.models.dino import dino_pixels, dino_tokens
from m2m.models.unet import ImageSetUNet
from m2m.pipeline import M2MPipeline
from m2m.seeds import generator, normal

SETS_AT_ONCE = 16
IMAGES = 12
"""Of each set at most; what a caption says is averaged over their noises and timesteps."""
RIDGE = 1e-3
"""Added to the variances of what is regressed on, as a share of their mean."""
FLAT = 1e-6
"""Directions with less than this share of the largest variance are not magnified further."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What n images are to DINOv2, and what the parent's blocks read from their captions."""

    tokens: Tensor  # (n, context_dim), averages over an image
    covariance: Tensor  # (context_dim, context_dim), of single tokens
    captions: Mapping[str, Tensor]  # block -> (n, inner_dim), averages over a set


def start_from_captions(
    pipeline: M2MPipeline, stable_diffusion: Path, sets: ImageSets, *, count: int, seed: int
) -> None:
    """Sets the projection of DINOv2's tokens and each block's keys and values, in place.

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
    reading = _read(pipeline, stable_diffusion, sets, count=min(count, len(sets)), seed=seed)
    variances, directions = torch.linalg.eigh(reading.covariance)  # ascending
    kept = slice(-(unet.context_proj.out_features - 1), None)  # one channel is for the constant
    spread = variances[kept].clamp(min=FLAT * float(variances[-1])).sqrt()
    whiten = (directions[:, kept] / spread).T  # (channels, context_dim)
    centre = reading.tokens.mean(dim=0)
    traits = (reading.tokens - centre) @ whiten.T  # (n, channels)
    variance = traits.T @ traits / len(traits)
    variance += RIDGE * variance.diagonal().mean() * torch.eye(len(variance), device=variance.device)
    channels = len(whiten)
    with torch.no_grad():
        unet.context_proj.weight.zero_()[:channels] = whiten
        unet.context_proj.bias.zero_()[:channels] = -whiten @ centre
        unet.context_proj.bias[-1] = 1
        for name, attention in unet.attentions().items():
            said, mean = reading.captions[name], reading.captions[name].mean(dim=0)
            weight = torch.linalg.solve(variance, traits.T @ (said - mean) / len(said)).T  # (inner_dim, channels)
            attention.to_k.weight.zero_()
            attention.to_v.weight.zero_()[:, :channels] = weight
            attention.to_v.weight[:, -1] = mean


@torch.no_grad()
def _read(pipeline: M2MPipeline, stable_diffusion: Path, sets: ImageSets, *, count: int, seed: int) -> Reading:
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
        latents = torch.stack([torch.from_numpy(_latents(one)) for one in members]).to(device)  # (B, I, 4, h, w)
        images = np.concatenate([one.images[:IMAGES] for one in members])  # (B·I, H, W, 3)
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
    images_per_set = latents.shape[1]
    each, centre = torch.cat(pooled), torch.cat(pooled).mean(dim=0)
    return Reading(
        tokens=each.float(),
        covariance=(moment / tokens_seen - centre[:, None] * centre).float(),
        captions={
            block: torch.cat([part[block] for part in captions])
            .view(count, images_per_set, -1)
            .mean(dim=1)
            .repeat_interleave(images_per_set, dim=0)
            for block in blocks
        },
    )


def _latents(image_set: ImageSet) -> npt.NDArray[np.float32]:
    if image_set.latents is None:
        raise UserError(f"set {image_set.id} has no latents; make the dataset with the same foundation")
    return image_set.latents[:IMAGES]
