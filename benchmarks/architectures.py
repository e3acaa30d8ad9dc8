"""The networks of the paper's scale, Stable Diffusion 2.1-base and DINOv2-large, with random weights.

Speed does not depend on weights. The folders have the formats of the real ones, so that all else is the same code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import AutoTokenizer, BitImageProcessorPil, CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

from m2m.foundation.sizes import SD_21_UNET
from m2m.models.unet import ImageSetUNet

PATCH_TOKENS = 256
"""Of a picture, DINOv2 at 224 pixels."""
SD_21_VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
SD_21_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
DINO_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 518,
    "patch_size": 14,
}
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def random_foundation(
    folder: Path,
    like: Path,
    *,
    device: str,
    unet: Mapping[str, Any] = SD_21_UNET,
    vae: dict[str, Any] = SD_21_VAE,
    text: dict[str, Any] = SD_21_TEXT,
    dino: dict[str, Any] = DINO_LARGE,
) -> None:
    """Writes ``stable-diffusion/`` and ``dino/``; tokenizer and noise schedule are those of the foundation `like`."""
    small = StableDiffusionPipeline.from_pretrained(like / "stable-diffusion", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(like / "stable-diffusion", subfolder="tokenizer", local_files_only=True)
    tokenizer.model_max_length = 77
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 77}
    torch.manual_seed(0)
    with torch.device(device):
        parts: dict[str, Any] = {
            "vae": AutoencoderKL(**vae),
            "unet": UNet2DConditionModel(**unet),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text, **words)),
            "tokenizer": tokenizer,
            "scheduler": small.scheduler,
            "safety_checker": None,
            "feature_extractor": None,
        }
        StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "stable-diffusion")
        Dinov2Model(Dinov2Config(**dino)).save_pretrained(folder / "dino")
    side = 16 * dino["patch_size"]  # 256 tokens
    processor = BitImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **IMAGENET
    )
    processor.save_pretrained(folder / "dino")


def resized(foundation: Path, folder: Path, *, sample_size: int) -> Path:
    """The same networks for latents of another side: weights are linked, one number is changed."""
    shutil.copytree(foundation, folder, copy_function=os.link)
    config = folder / "stable-diffusion" / "unet" / "config.json"
    changed = {**json.loads(config.read_text()), "sample_size": sample_size}
    config.unlink()
    config.write_text(json.dumps(changed))
    return folder


def read_in_full(unet: ImageSetUNet) -> ImageSetUNet:
    """Ours as one would write it first, for the fast paths to be held against.

    It lets the last block of M2M-Self read for context images, too, though nobody reads what comes of it.
    """
    for attention in unet.attentions().values():
        attention.last = False
    return unet
