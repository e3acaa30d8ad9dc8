"""The small Stable Diffusion: its tokenizer, its autoencoder, and a U-Net configured like SD 2.1's with a text encoder.

The tokenizer is CLIP's byte-pair encoding, learned from the captions of the world. The autoencoder has f = 8 and four
latent channels, as Stable Diffusion's. U-Net and text encoder are trained together.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from m2m.diffusion.gaussian import add_noise, denoising_loss, min_snr_weight, target
from m2m.diffusion.stable_diffusion import posterior
from m2m.foundation.fit import Loss
from m2m.params import PredictionType, UnetFit, VaeFit
from m2m.photos import as_levels, as_signal

MAX_TOKENS = 16
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
KL_WEIGHT = 1e-5
ABSOLUTE_WEIGHT = 0.1
TEXT_WIDTH = 96
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0


def learn_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in whose vocabulary every word of the captions becomes one token.

    Printable ASCII is its alphabet, so that any other English caption can be encoded too, if in more tokens. The ids
    depend on the words alone, not on how often a corpus repeats them.
    """
    bare = CLIPTokenizer().backend_tokenizer
    normalized = {bare.normalizer.normalize_str(caption) for caption in captions}
    merges = learn_merges({word for text in normalized for word, _ in bare.pre_tokenizer.pre_tokenize_str(text)})
    alphabet = sorted({*string.ascii_letters, *string.digits, *string.punctuation})
    endings = [letter + END_OF_WORD for letter in alphabet]
    vocabulary = dict.fromkeys([*alphabet, *endings, *map("".join, merges), START, END])
    pairs: Any = merges  # annotated as a list of strings, used as a list of pairs
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=pairs,
        model_max_length=MAX_TOKENS,
    )


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al., 2016): joins the commonest neighbours until each word is one token.

    Of equally common pairs the first in alphabetical order is joined. The trainer of the tokenizers library leaves that
    to a hash table, so that its ids, and with them trained embeddings, would differ from process to process.
    """
    merges: list[tuple[str, str]] = []
    split = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))]
    while pairs := Counter(pair for tokens in split for pair in pairwise(tokens)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        for tokens in split:
            _join(tokens, *merges[-1])
    return merges


def _join(tokens: list[str], first: str, second: str) -> None:
    """Joins each such pair in place, from the left."""
    index = 0
    while index < len(tokens) - 1:
        if (tokens[index], tokens[index + 1]) == (first, second):
            tokens[index : index + 2] = [first + second]
        index += 1


def build_autoencoder(params: VaeFit) -> AutoencoderKL:
    """The untrained autoencoder for 64-pixel pictures; four levels, so that a latent pixel covers 8 x 8 pixels."""
    levels = len(params.block_out_channels)
    network: AutoencoderKL = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=params.block_out_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    return network


def reconstruction_loss(vae: AutoencoderKL, images: Tensor) -> Loss:
    """Squared and absolute error of the reconstruction, and a small pull of the posterior towards a standard normal."""

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        signal = as_signal(images[batch])
        # bfloat16 products double the speed of these wide, shallow convolutions; weights and averages stay float32.
        with torch.autocast(signal.device.type, torch.bfloat16):
            latents = vae.encode(signal).latent_dist
            restored = vae.decode(latents.sample(generator=draws)).sample.float()
        error = F.mse_loss(restored, signal) + ABSOLUTE_WEIGHT * F.l1_loss(restored, signal)
        total: Tensor = error + KL_WEIGHT * latents.kl().mean()
        return total

    return loss


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """Posterior means and standard deviations, not yet scaled: uint8 (n, 3, 64, 64) -> two of float32 (n, 4, 8, 8)."""
    read = [posterior(vae, part) for part in torch.split(images, batch_size)]
    return torch.cat([one.mean for one in read]), torch.cat([one.std for one in read])


@torch.no_grad()
def decoded(vae: AutoencoderKL, latents: Tensor, batch_size: int = 64) -> Iterator[Tensor]:
    """Latents, not scaled, (n, 4, 8, 8) -> batches of uint8 pictures (b, 3, 64, 64)."""
    for part in torch.split(latents, batch_size):
        yield as_levels(vae.decode(part).sample)


def psnr(restored: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB: the mean over pictures, both uint8 (n, 3, H, W)."""
    error = (restored.float() - images.float()).square().mean(dim=(1, 2, 3)).clamp_min(1e-6)
    return float((10 * torch.log10(255**2 / error)).mean())


def of_tokens(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What the configuration of a text encoder says of its tokenizer."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length, **special}


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
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                **of_tokens(tokenizer),
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
    ids: Tensor = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
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
