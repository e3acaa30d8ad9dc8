"""The latents of pictures, as the U-Net takes them, by the VAE of a Stable Diffusion folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from m2m.devices import align
from m2m.files import check_digests, reading_foundation


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
        signal = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
        latents = self._vae.encode(signal).latent_dist.mode() * self._vae.config.scaling_factor  # (B, 4, h, w)
        return np.asarray(latents.float().cpu().numpy())


def image_size(stable_diffusion: Path) -> int:
    """Pixels of a side of the pictures that a Stable Diffusion folder is made for, from its configuration.

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """
    check_digests(stable_diffusion, "unet/config.json", "vae")
    with reading_foundation(stable_diffusion):
        unet, vae = (
            json.loads((stable_diffusion / part / "config.json").read_text(encoding="utf-8"))
            for part in ("unet", "vae")
        )
        return int(unet["sample_size"]) << (len(vae["block_out_channels"]) - 1)
