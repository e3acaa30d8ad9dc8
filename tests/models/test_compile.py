"""Compiled blocks (`compile_repeated_blocks`, as for any network of diffusers): the same numbers, and no new graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from m2m.models.image_set_attention import ContextCache, Window
from m2m.models.pose import POSE_DIM, Viewpoints
from m2m.models.unet import ContextImages, ImageSetUNet
from m2m.params import Variant

pytestmark = pytest.mark.slow  # the compiler takes longer than all that it compiles
SETS, POSITIONS, LENGTH, DINO_DIM = 2, 5, 4, 24
VARIANTS = pytest.mark.parametrize("variant", ["self", "dino"])


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(variant: Variant) -> ImageSetUNet:
    """Of one level: each shape of a block is a graph more to be made."""
    torch.manual_seed(0)
    parent = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        attention_head_dim=2,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        use_linear_projection=True,
    )
    dim = DINO_DIM if variant == "dino" else 0
    unet = ImageSetUNet.from_parent(
        parent, empty_prompt=torch.randn(5, 32), variant=variant, max_context=8, context_dim=dim
    )
    with torch.no_grad():
        for parameter in unet.context_parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return unet


def context_images(unet: ImageSetUNet, *shape: int) -> Tensor:
    sample = unet.config.sample_size
    one = (LENGTH, DINO_DIM) if unet.variant == "dino" else (unet.config.in_channels, sample, sample)
    return torch.randn(*shape, *one)


def drawn(unet: ImageSetUNet, images: int) -> Iterator[Tensor]:
    """What is predicted with guidance after each of so many images."""
    draws, cache = torch.manual_seed(1), ContextCache(unet.max_context)
    side = unet.config.sample_size
    for _ in range(images):
        seen_from = Viewpoints(torch.randn(SETS, POSE_DIM)) if unet.pose_dim else None
        none = torch.zeros(SETS, dtype=torch.long)
        unet(context_images(unet, SETS), none, Window(cache, record=True, seen_from=seen_from))
        noisy = torch.randn(2 * SETS, unet.config.in_channels, side, side, generator=draws)
        yield unet(noisy, torch.tensor(500), Window(cache, unconditional=SETS, seen_from=seen_from)).sample


@pytest.mark.parametrize(("variant", "poses"), [("self", False), ("dino", True)])
@torch.no_grad()
def test_a_set_grows_without_a_new_graph(variant: Variant, poses: bool) -> None:
    unet = network(variant).eval()
    if poses:
        unet = ImageSetUNet.with_poses(unet, pose_dim=POSE_DIM, seed=0).eval()
    expected = list(drawn(unet, 5))
    unet.compile_repeated_blocks(backend="eager", dynamic=True)
    list(drawn(unet, 2))
    with torch.compiler.set_stance("fail_on_recompile"):
        for prediction, plain in zip(drawn(unet, 5), expected, strict=True):
            torch.testing.assert_close(prediction, plain)


@VARIANTS
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's own doing, both
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_training_has_the_same_gradients(variant: Variant) -> None:
    unet = network(variant).train()
    side = unet.config.sample_size
    noisy = torch.randn(SETS, POSITIONS, unet.config.in_channels, side, side)
    times = torch.randint(1000, (SETS, POSITIONS))
    images = context_images(unet, SETS, POSITIONS - 1)
    context = ContextImages(images, torch.zeros(SETS, POSITIONS - 1, dtype=torch.long))
    gradients = []
    for compiled in (False, True):
        unet.zero_grad()
        if compiled:
            unet.compile_repeated_blocks(backend="aot_eager")
        unet(noisy, times, context).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    plain, compiled_too = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled_too[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
