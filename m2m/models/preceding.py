"""What sampling remembers of the images that the next one follows."""

from __future__ import annotations

import torch
from torch import Tensor

from m2m.models.image_set_attention import ContextCache, Window
from m2m.models.unet import ImageSetUNet


class PrecedingImages:
    """The images so far of S sets, as the U-Net takes them in: latents for M2M-Self, patch tokens for M2M-DINO.

    Args:
        timestep: the noise on all of them; 0: none.
        use_cache: keep keys and values, not images; else they are computed from all images anew for each window, which
            is the slow path that the fast one is held against.
    """

    def __init__(self, unet: ImageSetUNet, *, sets: int, timestep: int, device: torch.device, use_cache: bool) -> None:
        self.unet = unet
        self.timesteps = torch.full((sets,), timestep, device=device)  # (S)
        self.use_cache = use_cache
        self.count = 0
        self._cache = ContextCache(unet.max_context)
        self._images: list[Tensor] = []

    def append(self, image: Tensor) -> None:
        """Adds one image a set: latents (S, 4, h, w) or patch tokens (S, L, D)."""
        self.count += 1
        if self.use_cache:
            self._record(image, self._cache)
        else:
            self._images.append(image)

    def window(self, *, guided: bool) -> Window:
        """What the next image reads in one step; `guided`: the first half of the batch is drawn from the empty set."""
        cache = self._cache
        if not self.use_cache:
            cache = ContextCache(self.unet.max_context)
            for image in self._images:
                self._record(image, cache)
        return Window(cache, unconditional=len(self.timesteps) if guided else 0)

    def _record(self, image: Tensor, cache: ContextCache) -> None:
        self.unet(image, self.timesteps, Window(cache, record=True))
