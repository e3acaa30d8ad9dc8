"""Stable Diffusion from its folder: captions and noise in, pictures out; its autoencoder, and its safety checker."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil

from m2m import seeds
from m2m.devices import align
from m2m.diffusion.sampler import denoise, guides, make_scheduler
from m2m.errors import FOUNDATION_RESTORED, UserError
from m2m.files import check_digests, reading_foundation
from m2m.params import Precision, SolverName
from m2m.photos import as_signal

SAFETY_CHECKER = "safety_checker"
"""Where it lies in the folder of a Stable Diffusion that has one."""


class StableDiffusion:
    """The networks of a `StableDiffusionPipeline` folder, and how to draw with them. Latents are float32.

    Rows of a batch do not influence each other, but rounding depends on a batch's shape: for the same bytes every time,
    give batches of the same shape.

    Args:
        folder: a diffusers folder; only safetensors are read, and no network is asked.
        device: where torch computes: ``cpu``, ``cuda`` …
        precision: of the networks.

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        solver: SolverName,
        num_inference_steps: int,
        guidance_scale: float,
        device: str,
        precision: Precision = "float32",
    ) -> None:
        self._pipeline = _load(folder).to(device, getattr(torch, precision))
        self._unet, self._vae = self._pipeline.unet, self._pipeline.vae
        align(self._pipeline.text_encoder, self._unet, self._vae)
        self._solver: SolverName = solver
        self._num_inference_steps, self._guidance_scale = num_inference_steps, guidance_scale
        self._device = device
        # The tokenizer keeps in itself how far a call pads: workers that share it would pad each other's captions.
        self._tokenizing = Lock()
        self._empty = self.embed([""])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4, h, w) of one image."""
        side = self._unet.config.sample_size
        return (self._unet.config.in_channels, side, side)

    @property
    def image_size(self) -> int:
        """Pixels of a picture's side."""
        return int(self._unet.config.sample_size * self._pipeline.vae_scale_factor)

    @torch.inference_mode()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings, on the device: B captions -> (B, L, D). What is too long is cut off."""
        with self._tokenizing:
            return self._pipeline.encode_prompt(list(captions), self._device, 1, False)[0]  # type: ignore[no-any-return]

    def noise(self, seed: int) -> Tensor:
        """One image's unit noise, drawn on the CPU so that it is the same for every device: (4, h, w)."""
        return seeds.normal(self.latent_shape, torch.Generator("cpu").manual_seed(seed))[0]

    @torch.inference_mode()
    def denoise(self, noise: Tensor, embeddings: Tensor) -> Tensor:
        """Scaled latents from unit noise, with classifier-free guidance in one batch.

        (B, 4, h, w), (B, L, D) -> (B, 4, h, w), on the device.
        """
        scale, scheduler = self._guidance_scale, make_scheduler(self._solver, self._pipeline.scheduler.config)
        if guides(scale):
            embeddings = torch.cat([self._empty.expand_as(embeddings), embeddings])  # (2·B, L, D)

        def network(rows: Tensor, time: Tensor, _guided: bool) -> Tensor:
            return self._unet(rows.to(self._unet.dtype), time, embeddings, return_dict=False)[0].float()  # type: ignore[no-any-return]

        return denoise(noise.to(self._device), network, scheduler, self._num_inference_steps, scale=lambda: scale)

    @torch.inference_mode()
    def attended(
        self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor, blocks: Iterable[str]
    ) -> dict[str, Tensor]:
        """What cross-attentions read from texts, before their output projection, averaged over the queries.

        Args:
            noisy: (B, 4, h, w), at timesteps (B).
            embeddings: (B, L, D).
            blocks: names of cross-attentions in the U-Net (``mid_block.attentions.0.transformer_blocks.0.attn2``).

        Returns:
            block -> (B, inner_dim)
        """
        found: dict[str, Tensor] = {}

        def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = inputs[0].mean(dim=1)

        with ExitStack() as hooks:
            for name in blocks:
                read = self._unet.get_submodule(f"{name}.to_out.0")
                hooks.callback(read.register_forward_pre_hook(partial(keep, name)).remove)
            self._unet(noisy, timesteps, embeddings)
        return found

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of scaled latents, black where not finite: (B, 4, h, w) -> uint8 (B, H, W, 3), on the device."""
        images = decode(self._vae, latents).float()  # (B, 3, H, W)
        finite = images.isfinite().flatten(1).all(dim=1)  # (B,)
        images = torch.where(finite[:, None, None, None], images, -1.0)
        return (images * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _load(folder: Path) -> StableDiffusionPipeline:
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder}: no Stable Diffusion folder (no model_index.json); run the foundation stage")
    check_digests(folder)
    options = {"local_files_only": True, "use_safetensors": True, "safety_checker": None}
    with reading_foundation(folder):
        pipeline = StableDiffusionPipeline.from_pretrained(folder, **options)
    words, known = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    if words != known:  # transformers takes a missing vocabulary for an empty one
        text = f"{folder}: damaged (the tokenizer has {words} words, the text encoder knows {known})"
        raise UserError(f"{text}; {FOUNDATION_RESTORED}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class SafetyChecker:
    """Stable Diffusion's own judge of pictures: none may be too close, in CLIP's eyes, to a concept of some.

    Args:
        folder: a `StableDiffusionSafetyChecker` with its image processor's ``preprocessor_config.json``.
        device: where torch computes: ``cpu``, ``cuda`` …

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """

    def __init__(self, folder: Path, *, device: str) -> None:
        options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
        with reading_foundation(folder):
            network, told = StableDiffusionSafetyChecker.from_pretrained(folder, output_loading_info=True, **options)
            if lacking := sorted(told["missing_keys"]):  # the library would go on with noise in their place
                raise ValueError(f"no {lacking[0]} among its weights")
            self._processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        # It warns of pictures that it blackened, whereas here they are drawn again.
        logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
        self._network, self._device = network.to(device).eval(), device
        align(self._network)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> NDArray[np.bool_]:
        """Which pictures it rejects: uint8 (B, H, W, 3) -> (B,)."""
        pixels = self._processor(list(pictures.cpu().numpy()), return_tensors="pt", input_data_format="channels_last")
        nothing = torch.empty(len(pictures), 0)  # to blacken
        return np.array(self._network(pixels["pixel_values"].to(self._device), nothing)[1])


def posterior(vae: Any, images: Tensor) -> Any:
    """What an autoencoder tells of pictures, uint8 (B, 3, H, W): a Gaussian of latents (B, 4, h, w), not scaled."""
    return vae.encode(as_signal(images).to(vae.dtype)).latent_dist


def encode(vae: Any, images: Tensor) -> Tensor:
    """The posterior's mode, scaled: uint8 (B, 3, H, W) -> (B, 4, h, w)."""
    return posterior(vae, images).mode() * vae.config.scaling_factor  # type: ignore[no-any-return]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures of scaled latents: (B, 4, h, w) -> (B, 3, H, W) from about -1 to 1, in the autoencoder's precision."""
    precise = latents.to(torch.promote_types(latents.dtype, vae.dtype))  # either may be the more precise one
    return vae.decode((precise / vae.config.scaling_factor).to(vae.dtype)).sample  # type: ignore[no-any-return]


def load_encoder(stable_diffusion: Callable[[], Path], *, device: str) -> LatentEncoder:
    """The encoder of a folder that is wherever this is called."""
    return LatentEncoder(stable_diffusion(), device=device)


class LatentEncoder:
    """A VAE's encoder in float32.

    Rounding depends on a batch's shape: for the same bytes every time, give batches of the same shape.

    Args:
        stable_diffusion: a diffusers folder, of which only ``vae/`` is read.
        device: where torch computes: ``cpu``, ``cuda`` …

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """

    def __init__(self, stable_diffusion: Path, *, device: str) -> None:
        folder = stable_diffusion / "vae"
        check_digests(stable_diffusion, "vae")
        with reading_foundation(folder):
            vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._vae = vae.to(device).eval()
        align(self._vae)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The posterior's mode, scaled: (B, H, W, 3) -> (B, 4, h, w)."""
        latents = encode(self._vae, torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2))
        return np.asarray(latents.float().cpu().numpy())


def image_size(stable_diffusion: Path) -> int:
    """Pixels of a side of the pictures that a Stable Diffusion folder is made for, from its configuration.

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """
    check_digests(stable_diffusion, "unet/config.json", "vae")
    with reading_foundation(stable_diffusion):
        files = [stable_diffusion / part / "config.json" for part in ("unet", "vae")]
        unet, vae = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        return int(unet["sample_size"]) << (len(vae["block_out_channels"]) - 1)
