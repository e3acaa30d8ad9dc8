"""The images before: how M2M-DINO looks at them, and what sampling remembers of them for the images to come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModel, Dinov2Model

from m2m.devices import sent
from m2m.models.pose import Viewpoints

if TYPE_CHECKING:
    from m2m.models.image_set_attention import ImageSetAttention
    from m2m.models.unet import ImageSetUNet


def dino_pixels(images: Tensor, processor: Any) -> Tensor:
    """The input of a vision transformer from whole pictures. Resizing is bicubic with anti-aliasing, as Pillow's.

    The published processor resizes to more and crops: of 256 pixels it shows the middle 224, 77 % of the area. A token
    is told the ray of its place in the whole picture, which has to be what it sees, and what stands at the edge of a
    given picture should be seen as well.

    Args:
        images: uint8 RGB (n, 3, H, W).
        processor: transformers' image processor; only the size of the input, scale and normalisation are used.

    Returns:
        float32 (n, 3, h, w), where h and w are the processor's crop size, on the device of the images.
    """
    pixels = images.float()  # (n, 3, H, W), 0 to 255
    size = processor.crop_size["height"], processor.crop_size["width"]
    if images.shape[-2:] != size:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)  # (n, 3, h, w)
    channels = sent([processor.image_mean, processor.image_std], pixels.device, torch.float32)  # (2, 3)
    mean, std = channels[:, :, None, None]
    normalised: Tensor = (pixels * processor.rescale_factor - mean) / std
    return normalised


def dino_tokens(encoder: Dinov2Model | CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Patch tokens without the class token: (n, 3, h, w) -> (n, L, D). The encoder is frozen: no gradient is kept."""
    with torch.no_grad():
        return encoder(pixels).last_hidden_state[:, 1:]  # type: ignore[no-any-return]


class ContextCache:
    """The windows of S sets at every block: keys and values, computed once, read by all later steps and images.

    A window is the given images, which come first, and the newest drawn ones in what is left of `max_context`: memory
    is bounded however many are drawn. An image's place in it, oldest first, is its slot. (The paper says nothing of
    more images than a window holds.)

    Args:
        given: how many of the first images stay. Of more than fit, the newest do, and no drawn one is read.
    """

    def __init__(self, max_context: int, *, given: int = 1) -> None:
        self.max_context = max_context
        self.given = given
        self._appended: Counter[ImageSetAttention] = Counter()
        self._images: dict[ImageSetAttention, list[tuple[Tensor, Tensor]]] = {}
        self._windows: dict[ImageSetAttention, tuple[Tensor, Tensor]] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def append(self, block: ImageSetAttention, keys: Tensor, values: Tensor) -> None:
        """Adds an image, keys and values (S, L, inner_dim); where the window is full the oldest drawn one leaves it."""
        images = self._images.setdefault(block, [])
        images.append((keys, values))
        self._appended[block] += 1
        if len(images) > self.max_context:
            only_given = self._appended[block] <= self.given
            del images[0 if only_given else min(self.given, self.max_context)]
        self._windows.pop(block, None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def read(self, block: ImageSetAttention, sets: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the window, null rows first, (S, L0 + n·L, inner_dim): put together once an image."""
        if block not in self._windows:
            self._windows[block] = block.assemble(self._images.get(block, []), sets)
        return self._windows[block]


@dataclass(frozen=True, eq=False)
class Window:
    """What one image of each of S sets reads while it is drawn, or (`record`) while its own tokens join the cache."""

    cache: ContextCache
    unconditional: int = 0  # rows at the head of the batch that see the empty set
    record: bool = False
    seen_from: Viewpoints | None = None  # the image of each set


class PrecedingImages:
    """The images so far of S sets, as the U-Net takes them in: latents for M2M-Self, patch tokens for M2M-DINO.

    Args:
        timestep: the noise on all of them; 0: none.
        use_cache: keep keys and values, not images; else they are computed from all images anew for each window, which
            is the slow path that the fast one is held against.
        given: how many of the first ones stay in the window. At least one does: where none is given, the first drawn
            one is what those after it go with, as in training.
        drawn_context: how many of those after the given ones are read at most, the first of them; None: the newest that
            fit the window. What is never read is never encoded.
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
        drawn_context: int | None = None,
    ) -> None:
        self.unet = unet
        self.given = max(given, 1)
        self.timesteps = torch.full((sets,), timestep, device=device)  # (S)
        self.use_cache = use_cache
        self.count = 0
        """Images so far, read or not: the place of the next one in its set."""
        self._last = None if drawn_context is None else min(given + drawn_context, max(given, unet.max_context))
        self.cache = ContextCache(unet.max_context, given=self.given)
        self._images: list[tuple[Tensor, Viewpoints | None]] = []

    @property
    def next_is_read(self) -> bool:
        """Whether any later image will read the next one; what is not read is only to be counted, see `skip`."""
        return self._last is None or self.count < self._last

    @property
    def none_is_read(self) -> bool:
        """Whether there is nothing to go with yet: each image is drawn from the empty set."""
        return self.count == 0 or self._last == 0

    def append(self, image: Tensor, seen_from: Viewpoints | None = None) -> None:
        """Adds one image a set: latents (S, 4, h, w) or patch tokens (S, L, D)."""
        self.count += 1
        if self.use_cache:
            self._record(image, seen_from)
        else:
            self._images.append((image, seen_from))

    def skip(self) -> None:
        """Counts an image that none will read."""
        self.count += 1

    def window(self, *, guided: bool, seen_from: Viewpoints | None = None) -> Window:
        """What the next image reads in one step.

        Args:
            guided: the first half of the batch is drawn from the empty set.
            seen_from: the image that is drawn, of each set.
        """
        if not self.use_cache:
            self.cache = ContextCache(self.unet.max_context, given=self.given)
            for image, its_viewpoints in self._images:
                self._record(image, its_viewpoints)
        return Window(self.cache, unconditional=len(self.timesteps) if guided else 0, seen_from=seen_from)

    def _record(self, image: Tensor, seen_from: Viewpoints | None) -> None:
        self.unet(image, self.timesteps, Window(self.cache, record=True, seen_from=seen_from))
