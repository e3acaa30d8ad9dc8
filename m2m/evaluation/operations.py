"""The operations of networks, counted on tensors without contents: exact, and the same on any machine.

A multiplication and its addition are two operations, of matrix products, convolutions and attention; on tensors
without contents torch takes attention apart into its two matrix products, so the counter sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from m2m.models.context import PrecedingImages
from m2m.models.unet import ImageSetUNet

META = torch.device("meta")


def operations(work: Callable[[], object]) -> int:
    """What `work` computes, without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def text_pass(unet: UNet2DConditionModel, *, side: int, words: int) -> int:
    """One pass of Stable Diffusion's U-Net, on META, for one image of latents (4, side, side) and a text."""
    text = torch.empty(1, words, unet.config["cross_attention_dim"], device=META)
    return operations(lambda: unet(_latents(unet, side), torch.empty(1, device=META), text))


@dataclass
class Costs:
    """Operations for one image, by how many came before."""

    reading: list[int] = field(default_factory=list)
    """The n-th of a set's images joins the context: its own pass (M2M-Self), or its keys and values."""
    guided: dict[int, int] = field(default_factory=dict)
    """A denoising step with and without context."""
    plain: dict[int, int] = field(default_factory=dict)
    """A denoising step with context only."""


def image_set_costs(
    unet: ImageSetUNet,
    context: Tensor,
    *,
    side: int,
    guided: Collection[int],
    plain: Collection[int] = (),
    reading: int = 0,
) -> Costs:
    """Counted on the network as it draws, image after image.

    Args:
        unet: on META.
        context: what it reads of an image, on META: latents (1, 4, side, side), or patch tokens (1, L, context_dim).
        side: of the latents that it draws.
        guided: numbers of images before, for which a guided step is counted.
        plain: the same for a step without guidance.
        reading: for how many images it is counted what it takes to read them.
    """
    found = Costs()
    preceding = PrecedingImages(unet, sets=1, timestep=0, device=META, use_cache=True)
    time = torch.empty((), device=META)
    for given in range(max((*guided, *plain)) + 1):
        if given in plain:
            window = preceding.window(guided=False)
            found.plain[given] = operations(partial(unet, _latents(unet, side), time, window))
        if given in guided:
            window = preceding.window(guided=True)
            found.guided[given] = operations(partial(unet, _latents(unet, side, rows=2), time, window))
        if given < reading:
            found.reading.append(operations(partial(preceding.append, context)))
        else:  # only to come to the next: counting takes longer
            preceding.append(context)
    return found


def _latents(unet: UNet2DConditionModel, side: int, rows: int = 1) -> Tensor:
    return torch.empty(rows, unet.config["in_channels"], side, side, device=META)
