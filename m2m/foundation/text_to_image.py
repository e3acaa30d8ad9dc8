"""The small Stable Diffusion: a U-Net configured like SD 2.1's and its text encoder, trained together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from m2m.diffusion.objective import add_noise, denoising_loss, min_snr_weight, target
from m2m.foundation.fit import Loss
from m2m.params import PredictionType, UnetFit

TEXT_WIDTH = 96
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0


class TextToImage(nn.Module):
    """The two networks that learn together, as in the first latent diffusion: the text encoder is not CLIP's."""

    def __init__(self, params: UnetFit, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D",) * len(params.block_out_channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(params.block_out_channels),
            mid_block_type="UNetMidBlock2DCrossAttn",
            block_out_channels=params.block_out_channels,
            layers_per_block=1,
            attention_head_dim=params.attention_head_dim,
            cross_attention_dim=TEXT_WIDTH,
            use_linear_projection=True,
            norm_num_groups=16,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def scheduler(prediction_type: PredictionType) -> Any:
    """SD 2.1's noise schedule: scaled-linear betas and an offset of one step."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (n, length), padded and cut to the tokenizer's length."""
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def text_to_image_loss(
    networks: TextToImage,
    latents: Tensor,
    spread: Tensor,
    tokens: Tensor,
    empty: Tensor,
    prediction_type: PredictionType,
) -> Loss:
    """The mean denoising loss of a batch: noise prediction with min-SNR weights (Hang et al., 2023), or v unweighted.

    Weights of v by min-SNR would leave next to nothing of the steps that decide a picture's layout.

    Args:
        latents: scaled posterior means (n, 4, 8, 8); they, and all that comes with them, are where the networks are.
        spread: scaled posterior standard deviations, likewise; a fresh sample is drawn at each use.
        tokens: (n, length), the captions.
        empty: (1, length), the empty caption, which replaces a tenth of the others for classifier-free guidance.
    """
    device = latents.device
    products: Tensor = scheduler(prediction_type).alphas_cumprod.to(device)
    gamma = MIN_SNR if prediction_type == "epsilon" else 0.0

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        size = (len(batch), 4, *latents.shape[2:])
        clean = latents[batch] + spread[batch] * torch.randn(size, generator=draws).to(device)
        noise = torch.randn(size, generator=draws).to(device)
        timesteps = torch.randint(len(products), (len(batch),), generator=draws).to(device)
        dropped = (torch.rand(len(batch), 1, generator=draws) < CAPTION_DROPOUT).to(device)
        text = networks.text_encoder(torch.where(dropped, empty, tokens[batch])).last_hidden_state
        predicted = networks.unet(add_noise(clean, noise, timesteps, products), timesteps, text).sample
        wanted = target(clean, noise, timesteps, products, prediction_type)
        weight = min_snr_weight(timesteps, products, gamma=gamma, prediction_type=prediction_type)
        return denoising_loss(predicted, wanted, weight).mean()

    return loss


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    networks: TextToImage,
    tokenizer: CLIPTokenizer,
    prediction_type: PredictionType,
) -> None:
    """Write a ``StableDiffusionPipeline`` folder, safetensors only."""
    build: Any = StableDiffusionPipeline
    pipeline = build(
        vae=vae,
        text_encoder=networks.text_encoder,
        tokenizer=tokenizer,
        unet=networks.unet,
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
