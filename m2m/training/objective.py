"""What training minimises: denoising with teacher forcing, all images of a set in one pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, Dinov2Model

from m2m.devices import sent
from m2m.diffusion.objective import add_context_noise, add_noise, alphas_cumprod, denoising_loss, min_snr_weight, target
from m2m.models.dino import Preprocessing, dino_pixels, dino_tokens
from m2m.models.unet import ContextImages
from m2m.params import TrainCommon
from m2m.pipeline import M2MPipeline
from m2m.training.examples import Draws, Examples


@dataclass(frozen=True, eq=False)
class ContextEncoder:
    """DINOv2 or another, frozen, and how it wants its pictures."""

    model: Dinov2Model | CLIPVisionModel
    processor: Preprocessing

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its input."""
        return self.processor.crop_size["height"], self.processor.crop_size["width"]


class Objective:
    """The loss of each set, given a network, for the noise schedule and the encoder of a pipeline."""

    def __init__(self, pipeline: M2MPipeline, common: TrainCommon, *, device: torch.device) -> None:
        self.common = common
        self.products = alphas_cumprod(pipeline.scheduler.config, common.prediction_type).to(device)  # (T,)
        self.latent_shape = pipeline.latent_shape
        self.with_poses = pipeline.unet.pose_dim > 0
        self.encoder = (
            None
            if pipeline.image_encoder is None
            else ContextEncoder(pipeline.image_encoder, pipeline.feature_extractor)
        )

    @property
    def draws(self) -> Draws:
        """How examples for it are drawn."""
        return Draws(
            common=self.common,
            latent_shape=self.latent_shape,
            timesteps=len(self.products),
            encoder_size=self.encoder.size if self.encoder else None,
            with_poses=self.with_poses,
        )

    def __call__(self, network: nn.Module, examples: Examples) -> Tensor:
        """For each set the mean loss of its N images, each predicted from those before it: (B,) (paper, section 3).

        The first, which none comes before, is left out where a set always begins with given ones.

        The network is called as an `ImageSetUNet` is, so that DDP's wrapper of one will do.
        """
        timesteps, products, common = examples.timesteps, self.products, self.common
        noisy = add_noise(examples.latents, examples.noise, timesteps, products)  # (B, N, 4, h, w)
        with self._autocast(noisy.device):
            context = ContextImages(
                self._context(examples),
                examples.context_timesteps,
                dropped=examples.dropped,
                lengths=examples.lengths,
                poses=examples.poses if self.with_poses else None,
                predict_first=common.predict_first,
                given=examples.given,
            )
            (prediction,) = network(noisy, timesteps, context, return_dict=False)  # (B, N, 4, h, w)
        wanted = target(
            examples.latents, examples.noise, timesteps, products, common.prediction_type
        )  # (B, N, 4, h, w)
        weight = min_snr_weight(timesteps, products, gamma=common.min_snr_gamma, prediction_type=common.prediction_type)
        losses = denoising_loss(prediction, wanted, weight)  # (B, N), 0 after the end of a set
        first = 0 if common.predict_first else 1
        predicted = sent([length - first for length in examples.lengths], losses.device, torch.long)
        return losses[:, first:].sum(dim=1) / predicted

    def _context(self, examples: Examples) -> Tensor:
        """What the network reads of the context images: latents (B, N-1, 4, h, w) or patch tokens (B, N-1, L, D).

        Each is noised, and encoded, once for all images that read it.
        """
        images, noise = examples.context_images, examples.context_noise
        if self.encoder is None:
            return add_context_noise(images, noise, examples.context_timesteps, self.products)
        # Only those that are there: a shorter set costs no more than it has.
        real = [(place, n) for place, length in enumerate(examples.lengths) for n in range(length - 1)]
        rows, positions = sent(real, images.device, torch.long).T
        pixels = dino_pixels(images[rows, positions], self.encoder.processor)  # (real, 3, side, side)
        levels = examples.context_timesteps[rows, positions]
        pixels = add_context_noise(pixels, noise[rows, positions], levels, self.products)
        tokens = dino_tokens(self.encoder.model, pixels)  # (real, L, D)
        context = tokens.new_zeros(*images.shape[:2], *tokens.shape[1:])
        return context.index_put((rows, positions), tokens)  # (B, N-1, L, D)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """bfloat16 where the parameters ask for it and the device has it."""
        has_it = device.type != "cuda" or torch.cuda.is_bf16_supported()
        return torch.autocast(device.type, torch.bfloat16, enabled=self.common.precision == "bfloat16" and has_it)
