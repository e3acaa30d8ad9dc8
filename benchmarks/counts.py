"""Operations of our networks and of Stable Diffusion's, at the size of Stable Diffusion 2.1-base.

`m2m.evaluation.efficiency` says what counts. Decoders are not counted: all sides have the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from benchmarks.architectures import DINO_LARGE, PATCH_TOKENS, read_in_full
from benchmarks.rows import Row
from m2m.evaluation.efficiency import META, Costs, image_set_costs, operations, text_pass
from m2m.foundation.sizes import SD_21_UNET
from m2m.models.unet import ContextImages, ImageSetUNet
from m2m.params import Variant

VARIANTS: tuple[Variant, ...] = ("dino", "self")
PIXELS = (256, 512)
GIVEN = (1, 2, 4, 8, 16, 24)
STEPS = 50
SET_SIZE = 12
POOLED, MOST_POOLED = 2, 4
"""Tokens read as one where M2M-Self's keys at the finest level are coarser, and given images to which it is counted."""
WORDS = 77
GIGA = 1e9


@cache
def text_unet() -> UNet2DConditionModel:
    with META:
        unet: UNet2DConditionModel = UNet2DConditionModel(**SD_21_UNET)
    return unet


@cache
def image_set_unet(variant: Variant, pool: int = 1, plain: bool = False) -> ImageSetUNet:
    """Ours, or (`plain`) as one would write it first."""
    with META:
        unet = ImageSetUNet.from_parent(
            text_unet(),
            empty_prompt=torch.zeros(WORDS, SD_21_UNET["cross_attention_dim"]),
            variant=variant,
            max_context=max(GIVEN),
            context_dim=DINO_LARGE["hidden_size"] if variant == "dino" else 0,
            context_pool=pool,
        )
    return read_in_full(unet) if plain else unet


@cache
def captioned(pixels: int) -> int:
    """One pass of Stable Diffusion's U-Net with a text."""
    return text_pass(text_unet(), side=pixels // 8, words=WORDS)


@cache
def encoding() -> int:
    """DINOv2-large reads a picture."""
    return encoder_pass(Dinov2Config(**DINO_LARGE), height=224, width=224)


def encoder_pass(config: Dinov2Config, *, height: int, width: int) -> int:
    """A DINOv2 reads a picture of such a size."""
    with META:
        encoder = Dinov2Model(config)
    return operations(lambda: encoder(torch.empty(1, 3, height, width, device=META)))


@cache
def costs(variant: Variant, pixels: int, most: int = max(GIVEN), pool: int = 1, plain: bool = False) -> Costs:
    """Of a variant, until `most` images came before."""
    image = (
        _latents(pixels) if variant == "self" else torch.empty(1, PATCH_TOKENS, DINO_LARGE["hidden_size"], device=META)
    )
    guided = [given for given in GIVEN if given <= most]
    return image_set_costs(
        image_set_unet(variant, pool, plain),
        image,
        side=pixels // 8,
        guided=guided,
        plain={*guided, *range(min(most + 1, SET_SIZE))},
        reading=SET_SIZE,
    )


def teacher_forcing(variant: Variant, pixels: int) -> int:
    """All positions of a set in one forward pass."""
    latents = (4, pixels // 8, pixels // 8)
    read = latents if variant == "self" else (PATCH_TOKENS, DINO_LARGE["hidden_size"])
    network = pass_over_sets(image_set_unet(variant), sets=1, images=SET_SIZE, latents=latents, read=read)
    return network + (SET_SIZE - 1) * _encoded(variant)


def pass_over_sets(
    unet: ImageSetUNet, *, sets: int, images: int, latents: tuple[int, ...], read: tuple[int, ...]
) -> int:
    """The training pass of a network on META, forwards; `latents` and what it reads are the shapes of one image."""
    context = ContextImages(
        torch.empty(sets, images - 1, *read, device=META), torch.empty(sets, images - 1, device=META)
    )
    noisy, times = torch.empty(sets, images, *latents, device=META), torch.empty(sets, images, device=META)
    return operations(lambda: unet(noisy, times, context))


def position_by_position(variant: Variant, pixels: int) -> int:
    """The same predictions one after the other, each after reading its context anew."""
    cost = costs(variant, pixels, most=SET_SIZE - 1, plain=True)
    reading = [one + _encoded(variant) for one in cost.reading]
    return sum(cost.plain[n] + sum(reading[:n]) for n in range(SET_SIZE))


def rows() -> Iterator[Row]:
    """All counts; the backward pass, twice the forward one on every side, is left out."""
    for pixels in PIXELS:
        base = 2 * captioned(pixels)
        for variant in VARIANTS:
            cost = costs(variant, pixels)
            for given in GIVEN:
                yield _row(f"step/{pixels}px/{variant}/given={given}", cost.guided[given], base)
            yield _row(f"growth/{pixels}px/{variant}", cost.guided[GIVEN[-1]], cost.guided[1])
            for given in (1, 2, 4):
                whole = STEPS * cost.guided[given] + sum(cost.reading[:given]) + given * _encoded(variant)
                yield _row(f"image/{pixels}px/{variant}/given={given}", whole, STEPS * base)
            yield _row(
                f"teacher-forcing-count/{pixels}px/{variant}",
                teacher_forcing(variant, pixels),
                position_by_position(variant, pixels),
            )
        pooled = costs("self", pixels, most=MOST_POOLED, pool=POOLED)
        yield _row(f"step/{pixels}px/self-pooled/given={MOST_POOLED}", pooled.guided[MOST_POOLED], base)
        yield from caching(pixels, "self", costs("self", pixels), pool=1)
        yield from caching(pixels, "self-pooled", pooled, pool=POOLED)


def caching(pixels: int, name: str, cost: Costs, *, pool: int) -> Iterator[Row]:
    """A step, and an image with what is read before it, after four given ones: their keys and values kept, against
    reading them anew at each step.
    """
    once = sum(cost.reading[:4])
    anew = sum(costs("self", pixels, most=4, pool=pool, plain=True).reading[:4])
    for guidance, step in (("plain", cost.plain[4]), ("guided", cost.guided[4])):
        yield _row(f"cache-step/{pixels}px/{name}/{guidance}", step, step + anew)
        yield _row(f"cache-count/{pixels}px/{name}/{guidance}", STEPS * step + once, STEPS * (step + anew))


def _latents(pixels: int) -> Tensor:
    return torch.empty(1, 4, pixels // 8, pixels // 8, device=META)


def _encoded(variant: Variant) -> int:
    return encoding() if variant == "dino" else 0


def _row(name: str, ours: int, other: int) -> Row:
    return Row.of(name, ours / GIGA, other / GIGA, unit="GFLOP", kind="count")
