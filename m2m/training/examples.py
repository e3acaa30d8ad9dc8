"""What a step trains on: image sets and all the chance that is in them, made ahead of need in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import torch
from torch import Tensor

from m2m.data.shards import ImageSet
from m2m.diffusion.objective import draw_context_timesteps, shift_timesteps
from m2m.errors import UserError
from m2m.models.pose import relative_poses
from m2m.params import TrainCommon
from m2m.seeds import generator, normal
from m2m.workers import in_order, thread_pool

STEPS_AHEAD = 2
"""Batches that wait, made, for the network."""

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """B sets of up to N images with their draws, zeros after the end of a shorter set.

    The last image of a set is context for none, so there are N - 1 of those.
    """

    lengths: tuple[int, ...]  # images of each set
    latents: Tensor  # (B, N, 4, h, w), scaled
    noise: Tensor  # (B, N, 4, h, w)
    timesteps: Tensor  # (B, N)
    dropped: Tensor  # (B, N) bool: drawn without context
    context_images: Tensor  # self: latents (B, N-1, 4, h, w); dino: uint8 RGB (B, N-1, 3, H, W)
    context_noise: Tensor  # self: (B, N-1, 4, h, w); dino, for the encoder's pixels: (B, N-1, 3, side, side)
    context_timesteps: Tensor  # (B, N-1); 0: clean
    poses: Tensor  # (B, N, pose_dim); pose_dim is 0 where none are wanted
    given: int = 1  # the first images of each set that stay in the window where it slides

    def __len__(self) -> int:
        return len(self.lengths)

    def tensors(self) -> dict[str, Tensor]:
        """All that are."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("lengths", "given")}

    @classmethod
    def stack(cls, examples: Sequence[Examples], *, given: int = 1) -> Self:
        """One batch, in order, of batches of any lengths."""
        parts = [example.tensors() for example in examples]
        joined = {}
        for name in parts[0]:
            longest = max(part[name].shape[1] for part in parts)
            joined[name] = torch.cat([_extended(part[name], longest) for part in parts])
        lengths = tuple(length for example in examples for length in example.lengths)
        return cls(lengths=lengths, given=given, **joined)

    def split(self, parts: int) -> list[Self]:
        """Equal parts, in order."""
        chunks = {name: tensor.chunk(parts) for name, tensor in self.tensors().items()}
        size = len(self) // parts
        return [
            type(self)(
                lengths=self.lengths[part * size : (part + 1) * size],
                given=self.given,
                **{name: chunk[part] for name, chunk in chunks.items()},
            )
            for part in range(parts)
        ]

    def pinned(self) -> Self:
        """In page-locked memory, from where a copy to the GPU waits for nothing."""
        return self._changed(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """On a device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = {name: change(tensor) for name, tensor in self.tensors().items()}
        return type(self)(lengths=self.lengths, given=self.given, **changed)


def _extended(tensor: Tensor, length: int) -> Tensor:
    """Zeros up to `length` in dimension 1."""
    missing = length - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], dim=1) if missing else tensor


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How an example is drawn from a set."""

    common: TrainCommon
    latent_shape: tuple[int, int, int]
    """What the network takes, (4, h, w)."""
    timesteps: int
    """How many the noise schedule has."""
    encoder_size: tuple[int, int] | None
    """Height and width of DINOv2's input; None for M2M-Self."""
    with_poses: bool
    """The network is told from where an image is seen."""

    def example(
        self,
        image_set: ImageSet,
        images: Sequence[int],
        *,
        key: Sequence[str | int],
        stranger: tuple[ImageSet, Sequence[int]] | None = None,
    ) -> Examples:
        """A batch of one set, with draws that are a pure function of the seed and `key`.

        What both variants need is drawn first, so that they train on the same noise.

        Args:
            images: which ones, in this order.
            stranger: another set and as many of its images, for the context images that are swapped.

        Raises:
            UserError: a set has no latents, or not of this network, or no poses though they are wanted.
        """
        draws, common, count = generator(self.common.seed, *key), self.common, len(images)
        latents = self._latents(image_set, images)  # (N, 4, h, w)
        uniform = torch.randint(self.timesteps, (count,), generator=draws)
        timesteps = shift_timesteps(uniform, common.timestep_shift, count=self.timesteps)
        noise = normal(latents.shape, draws)[0]
        dropped = torch.rand(count, generator=draws, dtype=torch.float32) < common.guidance_dropout
        context_timesteps = draw_context_timesteps(
            (count - 1,),
            probability=common.context_noise.probability,
            max_timestep=common.context_noise.max_timestep,
            generator=draws,
        )
        swapped = torch.rand(count - 1, generator=draws, dtype=torch.float32) < common.context_swap
        context_images = self._context(image_set, images)
        if stranger is not None:
            context_images = torch.where(swapped[:, None, None, None], self._context(*stranger), context_images)
        shape = context_images.shape if self.encoder_size is None else (count - 1, 3, *self.encoder_size)
        return Examples(
            lengths=(count,),
            latents=latents[None],
            noise=noise[None],
            timesteps=timesteps[None],
            dropped=dropped[None],
            context_images=context_images[None],
            context_noise=normal(shape, draws),
            context_timesteps=context_timesteps[None],
            poses=self._poses(image_set, images)[None],
        )

    def given(self, *, key: Sequence[str | int]) -> int:
        """How many of the first images of a step's sets count as given: a pure function of the seed and `key`.

        One number for all of them: their windows are one. It matters only where a set is longer than the window and one
        image more, so that the window slides; the sampler's then holds as many.
        """
        most = self.common.max_context - 1
        if self.common.set_size <= self.common.max_context + 1 or most < 2:
            return 1
        return 1 + int(torch.randint(most, (), generator=generator(self.common.seed, *key)))

    def _context(self, image_set: ImageSet, images: Sequence[int]) -> Tensor:
        """All but the last as the variant reads them: latents (N-1, 4, h, w), or uint8 RGB (N-1, 3, H, W)."""
        if self.encoder_size is None:
            return self._latents(image_set, images)[:-1]
        return torch.from_numpy(image_set.images[list(images[:-1])]).permute(0, 3, 1, 2)

    def _poses(self, image_set: ImageSet, images: Sequence[int]) -> Tensor:
        """Relative to the first of the images: (N, 12), or (N, 0)."""
        if not self.with_poses:
            return torch.empty(len(images), 0)
        return relative_poses(torch.from_numpy(image_set.cameras()[list(images)]))

    def _latents(self, image_set: ImageSet, images: Sequence[int]) -> Tensor:
        if image_set.latents is None or image_set.latents.shape[1:] != self.latent_shape:
            found = "no latents" if image_set.latents is None else f"latents of shape {image_set.latents.shape[1:]}"
            raise UserError(
                f"set {image_set.id} has {found}, the network takes {self.latent_shape}; "
                "make the dataset with the same foundation"
            )
        return torch.from_numpy(image_set.latents[list(images)])


def made_ahead(make: Callable[[int], Made], steps: range) -> Generator[Made]:
    """What `make` gives for each step, made while the steps before are being worked on; its errors are raised here."""
    with thread_pool(1, "examples") as maker:
        yield from in_order(maker, make, steps, ahead=STEPS_AHEAD)
