"""Operations, counted on tensors without contents: exact, on any machine, at the size of Stable Diffusion 2.1-base.

A multiplication and its addition are two operations, of matrix products, convolutions and attention; on tensors
without contents torch takes attention apart into its two matrix products, so the counter sees it. Decoders are not
counted: all sides have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from benchmarks.architectures import DINO_LARGE, PATCH_TOKENS, SD_21_UNET
from benchmarks.rows import Row
from m2m.models.preceding import PrecedingImages
from m2m.models.unet import ContextImages, ImageSetUNet, Variant

VARIANTS: tuple[Variant, ...] = ("dino", "self")
PIXELS = (256, 512)
GIVEN = (1, 2, 4, 8, 16, 24)
STEPS = 50
SET_SIZE = 12
WORDS = 77
META = torch.device("meta")
GIGA = 1e9


def operations(work: Callable[[], object]) -> int:
    """What `work` computes, without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


@cache
def text_unet() -> UNet2DConditionModel:
    with META:
        return UNet2DConditionModel(**SD_21_UNET)


@cache
def image_set_unet(variant: Variant) -> ImageSetUNet:
    with META:
        return ImageSetUNet.from_parent(
            text_unet(),
            empty_prompt=torch.zeros(SD_21_UNET["cross_attention_dim"]),
            variant=variant,
            max_context=max(GIVEN),
            context_dim=DINO_LARGE["hidden_size"] if variant == "dino" else 0,
        )


@cache
def text_pass(pixels: int) -> int:
    """One pass of Stable Diffusion's U-Net with a text."""
    text = torch.empty(1, WORDS, SD_21_UNET["cross_attention_dim"], device=META)
    return operations(lambda: text_unet()(_latents(pixels), torch.empty(1, device=META), text))


@cache
def encoding() -> int:
    """DINOv2-large reads a picture."""
    with META:
        encoder = Dinov2Model(Dinov2Config(**DINO_LARGE))
    return operations(lambda: encoder(torch.empty(1, 3, 224, 224, device=META)))


@dataclass
class Costs:
    """Of a variant, by how many images came before."""

    reading: list[int] = field(default_factory=list)
    """The n-th of a set's images joins the context: its own pass (M2M-Self), or its keys and values."""
    guided: dict[int, int] = field(default_factory=dict)
    """A denoising step with and without context."""
    plain: dict[int, int] = field(default_factory=dict)
    """A denoising step with context only."""


@cache
def costs(variant: Variant, pixels: int, most: int = max(GIVEN)) -> Costs:
    """Measured on the network as it draws, image after image, until `most` came before."""
    unet, found = image_set_unet(variant), Costs()
    preceding = PrecedingImages(unet, sets=1, timestep=0, device=META, use_cache=True)
    image = (
        _latents(pixels) if variant == "self" else torch.empty(1, PATCH_TOKENS, DINO_LARGE["hidden_size"], device=META)
    )
    time = torch.empty((), device=META)
    for given in range(most + 1):
        if given in GIVEN or given < SET_SIZE:
            found.plain[given] = operations(lambda: unet(_latents(pixels), time, preceding.window(guided=False)))
        if given in GIVEN:
            both = _latents(pixels, rows=2)
            found.guided[given] = operations(lambda both=both: unet(both, time, preceding.window(guided=True)))
        if given < SET_SIZE:
            found.reading.append(operations(lambda: preceding.append(image)))
        else:  # only to come to the next: counting takes longer
            preceding.append(image)
    return found


def teacher_forcing(variant: Variant, pixels: int) -> int:
    """All positions of a set in one forward pass."""
    shape = (4, pixels // 8, pixels // 8) if variant == "self" else (PATCH_TOKENS, DINO_LARGE["hidden_size"])
    context = ContextImages(
        torch.empty(1, SET_SIZE - 1, *shape, device=META), torch.empty(1, SET_SIZE - 1, device=META)
    )
    noisy = torch.empty(1, SET_SIZE, 4, pixels // 8, pixels // 8, device=META)
    network = operations(lambda: image_set_unet(variant)(noisy, torch.empty(1, SET_SIZE, device=META), context))
    return network + (SET_SIZE - 1) * _encoded(variant)


def position_by_position(variant: Variant, pixels: int) -> int:
    """The same predictions one after the other, each after reading its context anew."""
    cost = costs(variant, pixels)
    reading = [one + _encoded(variant) for one in cost.reading]
    return sum(cost.plain[n] + sum(reading[:n]) for n in range(SET_SIZE))


def rows() -> Iterator[Row]:
    """All counts; the backward pass, twice the forward one on every side, is left out."""
    for pixels in PIXELS:
        base = 2 * text_pass(pixels)
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
        cost = costs("self", pixels)
        reading = sum(cost.reading[:4])
        for name, step in (("plain", cost.plain[4]), ("guided", cost.guided[4])):
            yield _row(f"cache-count/{pixels}px/self/{name}", STEPS * step + reading, STEPS * (step + reading))


def _latents(pixels: int, rows: int = 1) -> Tensor:
    return torch.empty(rows, 4, pixels // 8, pixels // 8, device=META)


def _encoded(variant: Variant) -> int:
    return encoding() if variant == "dino" else 0


def _row(name: str, ours: int, other: int) -> Row:
    return Row.of(name, ours / GIGA, other / GIGA, unit="GFLOP", kind="count")
