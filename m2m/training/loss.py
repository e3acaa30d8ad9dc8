"""What a step trains on, image sets and all the chance that is in them, and the loss that it minimises on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from m2m.data.sets import ImageSet, StoredSet
from m2m.devices import sent
from m2m.diffusion import gaussian
from m2m.errors import UserError
from m2m.models.context import dino_pixels, dino_tokens
from m2m.models.pose import relative_poses
from m2m.models.unet import ContextImages
from m2m.params import TrainCommon
from m2m.pipeline import M2MPipeline
from m2m.seeds import generator, normal


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

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with other tensors: on a device, in page-locked memory …"""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    @classmethod
    def stack(cls, examples: Sequence[Examples], *, given: int = 1) -> Self:
        """One batch, in order, of batches of any lengths."""
        parts = [example.tensors() for example in examples]
        joined = {
            name: pad_sequence([row for part in parts for row in part[name]], batch_first=True) for name in parts[0]
        }
        lengths = tuple(length for example in examples for length in example.lengths)
        return cls(lengths=lengths, given=given, **joined)

    def split(self, parts: int) -> list[Self]:
        """Equal parts, in order."""
        size = len(self) // parts
        places = [slice(part * size, (part + 1) * size) for part in range(parts)]
        return [replace(self.changed(itemgetter(part)), lengths=self.lengths[part]) for part in places]

    def to(self, device: torch.device) -> Self:
        """On a device."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))


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
        image_set: ImageSet | StoredSet,
        images: Sequence[int],
        *,
        key: Sequence[str | int],
        other: tuple[ImageSet | StoredSet, Sequence[int]] | None = None,
    ) -> Examples:
        """A batch of one set, with draws that are a pure function of the seed and `key`.

        What both variants need is drawn first, so that they train on the same noise.

        Args:
            images: which ones, in this order.
            other: another set and as many of its images, for the context images that are swapped.

        Raises:
            UserError: a set has no latents, or not of this network, or no poses though they are wanted.
        """
        draws, common, count = generator(self.common.seed, *key), self.common, len(images)
        latents = self._latents(image_set, images)  # (N, 4, h, w)
        uniform = torch.randint(self.timesteps, (count,), generator=draws)
        timesteps = gaussian.shift_timesteps(uniform, common.timestep_shift, count=self.timesteps)
        noise = normal(latents.shape, draws)[0]
        dropped = torch.rand(count, generator=draws, dtype=torch.float32) < common.guidance_dropout
        context_timesteps = gaussian.draw_context_timesteps(
            (count - 1,),
            probability=common.context_noise.probability,
            max_timestep=common.context_noise.max_timestep,
            generator=draws,
        )
        swapped = torch.rand(count - 1, generator=draws, dtype=torch.float32) < common.context_swap
        context_images = self._context(image_set, images)
        if other is not None:
            context_images = torch.where(swapped[:, None, None, None], self._context(*other), context_images)
        shape = context_images.shape if self.encoder_size is None else (count - 1, 3, *self.encoder_size)
        context_noise = normal(shape, draws)
        poses = torch.empty(count, 0)
        if self.with_poses:
            poses = relative_poses(torch.from_numpy(image_set.cameras()[list(images)]))  # (N, 12)
        return Examples(
            lengths=(count,),
            latents=latents[None],
            noise=noise[None],
            timesteps=timesteps[None],
            dropped=dropped[None],
            context_images=context_images[None],
            context_noise=context_noise,
            context_timesteps=context_timesteps[None],
            poses=poses[None],
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

    def _context(self, image_set: ImageSet | StoredSet, images: Sequence[int]) -> Tensor:
        """All but the last as the variant reads them: latents (N-1, 4, h, w), or uint8 RGB (N-1, 3, H, W)."""
        if self.encoder_size is None:
            return self._latents(image_set, images)[:-1]
        return torch.from_numpy(image_set.pictures(images[:-1])).permute(0, 3, 1, 2)

    def _latents(self, image_set: ImageSet | StoredSet, images: Sequence[int]) -> Tensor:
        return torch.from_numpy(latents_of(image_set, self.latent_shape)[list(images)])


def latents_of(image_set: ImageSet | StoredSet, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """The latents of a set, each of the `shape` that a network takes: (N, 4, h, w).

    Raises:
        UserError: it has none, or others.
    """
    latents = image_set.latents
    if latents is None or latents.shape[1:] != shape:
        found = "no latents" if latents is None else f"latents of shape {latents.shape[1:]}"
        text = f"set {image_set.id} has {found}, the network takes {shape}"
        raise UserError(f"{text}; make the dataset with the same foundation")
    return latents


class SetLoss:
    """Denoising with teacher forcing: the loss of each set, all of its images in one pass of a network.

    It holds what a pipeline has for it: the noise schedule, and M2M-DINO's encoder.
    """

    def __init__(self, pipeline: M2MPipeline, common: TrainCommon, *, device: torch.device) -> None:
        self.common = common
        self.products = gaussian.alphas_cumprod(pipeline.scheduler.config, common.prediction_type).to(device)  # (T,)
        self.encoder, self.processor = pipeline.image_encoder, pipeline.feature_extractor
        crop = None if self.encoder is None else self.processor.crop_size
        self.draws = Draws(
            common=common,
            latent_shape=pipeline.latent_shape,
            timesteps=len(self.products),
            encoder_size=crop and (crop["height"], crop["width"]),
            with_poses=pipeline.unet.pose_dim > 0,
        )
        """How examples for it are drawn."""

    def __call__(self, network: nn.Module, examples: Examples) -> Tensor:
        """For each set the mean loss of its N images, each predicted from those before it: (B,) (paper, section 3).

        The first, which none comes before, is left out where a set always begins with given ones.

        The network is called as an `ImageSetUNet` is, so that DDP's wrapper of one will do.
        """
        timesteps, products, common = examples.timesteps, self.products, self.common
        noisy = gaussian.add_noise(examples.latents, examples.noise, timesteps, products)  # (B, N, 4, h, w)
        # bfloat16 where the parameters ask for it and the device has it
        kind = noisy.device.type
        has_it = kind != "cuda" or torch.cuda.is_bf16_supported()
        with torch.autocast(kind, torch.bfloat16, enabled=common.precision == "bfloat16" and has_it):
            context = ContextImages(
                self._context(examples),
                examples.context_timesteps,
                dropped=examples.dropped,
                lengths=examples.lengths,
                poses=examples.poses if self.draws.with_poses else None,
                predict_first=common.predict_first,
                given=examples.given,
            )
            (prediction,) = network(noisy, timesteps, context, return_dict=False)  # (B, N, 4, h, w)
        predicts, gamma = common.prediction_type, common.min_snr_gamma
        wanted = gaussian.target(examples.latents, examples.noise, timesteps, products, predicts)  # (B, N, 4, h, w)
        weight = gaussian.min_snr_weight(timesteps, products, gamma=gamma, prediction_type=predicts)
        losses = gaussian.denoising_loss(prediction, wanted, weight)  # (B, N), 0 after the end of a set
        first = 0 if common.predict_first else 1
        predicted = sent([length - first for length in examples.lengths], losses.device, torch.long)
        return losses[:, first:].sum(dim=1) / predicted

    def _context(self, examples: Examples) -> Tensor:
        """What the network reads of the context images: latents (B, N-1, 4, h, w) or patch tokens (B, N-1, L, D).

        Each is noised, and encoded, once for all images that read it.
        """
        images, noise = examples.context_images, examples.context_noise
        if self.encoder is None:
            return gaussian.add_context_noise(images, noise, examples.context_timesteps, self.products)
        # Only those that are there: a shorter set costs no more than it has.
        real = [(place, n) for place, length in enumerate(examples.lengths) for n in range(length - 1)]
        rows, positions = sent(real, images.device, torch.long).T
        pixels = dino_pixels(images[rows, positions], self.processor)  # (real, 3, side, side)
        levels = examples.context_timesteps[rows, positions]
        pixels = gaussian.add_context_noise(pixels, noise[rows, positions], levels, self.products)
        tokens = dino_tokens(self.encoder, pixels)  # (real, L, D)
        context = tokens.new_zeros(*images.shape[:2], *tokens.shape[1:])
        return context.index_put((rows, positions), tokens)  # (B, N-1, L, D)
