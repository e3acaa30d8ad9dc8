"""Teacher forcing: all positions of a set in one pass, against a pass for each."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.plain import read_in_full
from benchmarks.rows import Row
from benchmarks.sampling import VARIANTS
from benchmarks.setting import Setting
from benchmarks.steps import precision
from m2m.evaluation.efficiency import context_shape
from m2m.models.context import PrecedingImages
from m2m.models.unet import ContextImages, ImageSetUNet, Variant
from m2m.params import TrainCommon
from m2m.training.start import from_stable_diffusion

LONG_SET = 12


def rows(setting: Setting, common: TrainCommon) -> Iterator[Row]:
    """Seconds, of both variants."""
    for variant in VARIANTS:
        yield long_set(setting, variant, common)
        setting.free()


def long_set(setting: Setting, variant: Variant, common: TrainCommon) -> Row:
    """Gradients of a long set's loss: one pass, against one a position that reads its context anew.

    The latter takes a GPU half a minute, most of it to be told what to do: it has one turn there.
    """
    pipeline = from_stable_diffusion(setting.foundation, variant, common.model_copy(update={"max_context": LONG_SET}))
    unet = pipeline.unet.to(setting.device)
    plain = read_in_full(deepcopy(unet))
    noisy = torch.randn(1, LONG_SET, *pipeline.latent_shape, device=setting.device)
    images = torch.randn(1, LONG_SET - 1, *context_shape(pipeline), device=setting.device)
    times = torch.randint(1000, (1, LONG_SET), device=setting.device)
    context = ContextImages(images, torch.zeros(1, LONG_SET - 1, dtype=torch.long, device=setting.device))

    def at_once() -> None:
        with precision(setting, common):
            loss = unet(noisy, times, context, return_dict=False)[0].square().mean()
        loss.backward()
        unet.zero_grad()

    def one_by_one() -> None:
        for position in range(LONG_SET):
            with precision(setting, common):
                prediction = _alone(plain, noisy[:, position], times[:, position], images[:, :position])
            prediction.square().mean().backward()
        plain.zero_grad()

    if setting.on_gpu:
        (ours,), other = setting.seconds(at_once), setting.taken(one_by_one)
    else:
        ours, other = setting.seconds(at_once, one_by_one)
    return Row.of(f"teacher-forcing/{setting.pixels}px/{variant}", ours, other, unit="s", kind=setting.kind)


def _alone(unet: ImageSetUNet, noisy: Tensor, time: Tensor, images: Tensor) -> Tensor:
    preceding = PrecedingImages(unet, sets=1, timestep=0, device=noisy.device, use_cache=True)
    for position in range(images.shape[1]):
        preceding.append(images[:, position])
    prediction: Tensor = unet(noisy, time, preceding.window(guided=False), return_dict=False)[0]
    return prediction
