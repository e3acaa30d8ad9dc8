"""What sampling remembers of the images that the next one follows."""

from __future__ import annotations

import torch
from torch import Tensor

from m2m.models.image_set_attention import ContextCache, Window
from m2m.models.pose import Viewpoints
from m2m.models.unet import ImageSetUNet


class PrecedingImages:
    """The images so far of S sets, as the U-Net takes them in: latents for M2M-Self, patch tokens for M2M-DINO.

    Args:
        timestep: the noise on all of them; 0: none.
        use_cache: keep keys and values, not images; else they are computed from all images anew for each window, which
            is the slow path that the fast one is held against.
        given: how many of the first ones stay in the window. At least one does: where none is given, the first drawn
            one is what those after it go with, as in training.
    """

    def __init__(
        self,
        unet: ImageSetUNet,
        *,
        sets: int,
        timestep: int,
        device: torch.device,
        use_cache: bool,
        given: int = 1,
    ) -> None:
        self.unet = unet
        self.given = max(given, 1)
        self.timesteps = torch.full((sets,), timestep, device=device)  # (S)
        self.use_cache = use_cache
        self.count = 0
        self._cache = ContextCache(unet.max_context, given=self.given)
        self._images: list[tuple[Tensor, Viewpoints | None]] = []

    def append(self, image: Tensor, seen_from: Viewpoints | None = None) -> None:
        """Adds one image a set: latents (S, 4, h, w) or patch tokens (S, L, D)."""
        self.count += 1
        if self.use_cache:
            self._record(image, seen_from, self._cache)
        else:
            self._images.append((image, seen_from))

    def window(self, *, guided: bool, seen_from: Viewpoints | None = None) -> Window:
        """What the next image reads in one step.

        Args:
            guided: the first half of the batch is drawn from the empty set.
            seen_from: the image that is drawn, of each set.
        """
        cache = self._cache
        if not self.use_cache:
            cache = ContextCache(self.unet.max_context, given=self.given)
            for image, its_viewpoints in self._images:
                self._record(image, its_viewpoints, cache)
        return Window(cache, unconditional=len(self.timesteps) if guided else 0, seen_from=seen_from)

    def _record(self, image: Tensor, seen_from: Viewpoints | None, cache: ContextCache) -> None:
        self.unet(image, self.timesteps, Window(cache, record=True, seen_from=seen_from))
