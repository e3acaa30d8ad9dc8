"""The M2M network: what it inherits, what it may see, and that training and sampling are the same function."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from m2m.models.image_set_attention import ContextCache, Window
from m2m.models.unet import ContextImages, ImageSetUNet, empty_prompt
from m2m.params import Variant
from tests.drawing import leave_the_start

SETS, POSITIONS, LENGTH, DINO_DIM = 2, 5, 4, 24
VARIANTS = pytest.mark.parametrize("variant", ["self", "dino"])
WINDOWS = pytest.mark.parametrize("max_context", [1, 2, 8])
GIVEN = pytest.mark.parametrize(("max_context", "given"), [(1, 1), (2, 1), (3, 2), (8, 2)])
SD_21_BASE: dict[str, Any] = {  # unet/config.json of stable-diffusion-2-1-base
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}


def network(
    folder: Path, variant: Variant, *, max_context: int = 8, pool: int = 1, trained: bool = True
) -> ImageSetUNet:
    """From the tiny Stable Diffusion; `trained`: its new weights are no longer where they started."""
    dim = DINO_DIM if variant == "dino" else 0
    unet = ImageSetUNet.from_stable_diffusion(
        folder, variant=variant, max_context=max_context, context_dim=dim, context_pool=pool
    ).eval()
    if trained:
        leave_the_start(unet)
    return unet


def batch(variant: Variant) -> tuple[Tensor, Tensor, ContextImages]:
    """Noisy latents, their timesteps and context images of a training batch."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, 8, 8) if variant == "self" else (LENGTH, DINO_DIM)
    noisy = torch.randn(SETS, POSITIONS, 4, 8, 8, generator=generator)
    timesteps = torch.randint(1000, (SETS, POSITIONS), generator=generator)
    images = torch.randn(SETS, POSITIONS, *shape, generator=generator)
    levels = torch.randint(0, 300, (SETS, POSITIONS), generator=generator)
    return noisy, timesteps, ContextImages(images, levels)


@torch.no_grad()
def predict(unet: ImageSetUNet, noisy: Tensor, timesteps: Tensor, context: ContextImages) -> Tensor:
    return unet(noisy, timesteps, context, return_dict=False)[0]


@VARIANTS
def test_it_starts_as_the_parent_with_the_empty_prompt(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=2, trained=False)
    parent = UNet2DConditionModel.from_pretrained(tiny_stable_diffusion, subfolder="unet")
    noisy, timesteps, context = batch(variant)
    text = empty_prompt(tiny_stable_diffusion)
    with torch.no_grad():
        expected = parent(noisy.flatten(0, 1), timesteps.flatten(), text.expand(SETS * POSITIONS, -1, -1)).sample
    expected = expected.view_as(noisy)
    dropped = replace(context, dropped=torch.ones(SETS, POSITIONS, dtype=torch.bool))
    assert off(predict(unet, noisy, timesteps, dropped), expected) < 1e-5
    with_context = predict(unet, noisy, timesteps, context)
    assert off(with_context[:, 0], expected[:, 0]) < 1e-5
    cache = ContextCache(2)
    record(unet, context.images[:, 0], context.timesteps[:, 0], cache)
    with torch.no_grad():
        guided = unet(torch.cat([noisy[:, 1]] * 2), torch.cat([timesteps[:, 1]] * 2), Window(cache, SETS)).sample
    assert off(guided[:SETS], expected[:, 1]) < 1e-5
    torch.testing.assert_close(guided[SETS:], with_context[:, 1], rtol=1e-4, atol=1e-5)


def test_the_empty_prompt_is_what_stable_diffusions_own_pipeline_makes_of_it(tiny_stable_diffusion: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_stable_diffusion, safety_checker=None)
    expected, _ = pipeline.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
    assert expected.shape == (1, 77, 32)
    torch.testing.assert_close(empty_prompt(tiny_stable_diffusion), expected[0])


def off(found: Tensor, wanted: Tensor) -> float:
    """Root of the mean square of the difference, as a share of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def carried(unet: ImageSetUNet, parent: UNet2DConditionModel, variant: Variant) -> set[str]:
    """The names of the parent's weights that must be in `unet`, unchanged."""
    weights = parent.state_dict()
    new = {n for n in weights if ".attn2.to_k." in n or ".attn2.to_v." in n} if variant == "self" else set()
    return set(weights) - new


@pytest.mark.parametrize(("variant", "kept"), [("self", 654), ("dino", 686)])
def test_all_of_sd_21_base_is_carried_over(variant: Variant, kept: int) -> None:
    with torch.device("meta"):
        parent = UNet2DConditionModel.from_config(SD_21_BASE)
        unet = ImageSetUNet.from_parent(
            parent, empty_prompt=torch.zeros(77, 1024), variant=variant, max_context=24, context_dim=768
        )
    names = carried(unet, parent, variant)
    shapes = unet.state_dict()
    assert len(parent.state_dict()) == 686
    assert len(names) == kept
    assert all(shapes[name].shape == weight.shape for name, weight in parent.state_dict().items() if name in names)
    attentions = unet.attentions()
    assert len(attentions) == 16
    assert {(a.heads, a.to_q.out_features) for a in attentions.values()} == {(5, 320), (10, 640), (20, 1280)}


@pytest.mark.slow
@VARIANTS
def test_the_weights_of_sd_21_base_scaled_down_are_carried_over(variant: Variant) -> None:
    torch.manual_seed(0)
    small = {"block_out_channels": [20, 40, 80, 80], "norm_num_groups": 4, "cross_attention_dim": 16, "sample_size": 8}
    parent = UNet2DConditionModel.from_config({**SD_21_BASE, **small})
    unet = ImageSetUNet.from_parent(
        parent, empty_prompt=torch.randn(77, 16), variant=variant, max_context=3, context_dim=DINO_DIM
    )
    weights = unet.state_dict()
    assert all(torch.equal(weights[name], parent.state_dict()[name]) for name in carried(unet, parent, variant))
    assert predict(unet.eval(), *batch(variant)).isfinite().all()


def test_a_network_without_plain_cross_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="only_cross_attention must be off"):
        ImageSetUNet(
            variant="self",
            max_context=2,
            null_tokens=77,
            block_out_channels=(32, 32, 32, 32),
            only_cross_attention=True,
        )


@VARIANTS
def test_saving_and_loading_changes_no_bit(
    tiny_stable_diffusion: Path, tmp_path: Path, variant: Variant, caplog: pytest.LogCaptureFixture
) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=3)
    logging.getLogger("diffusers").addHandler(caplog.handler)  # it does not propagate
    unet.save_pretrained(tmp_path)
    loaded = ImageSetUNet.from_pretrained(tmp_path, use_safetensors=True)
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert not caplog.records
    assert (loaded.variant, loaded.max_context, loaded.config["null_tokens"]) == (variant, 3, 77)
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in unet.config.items() if k[0] != "_"
    }
    ours, theirs = unet.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@VARIANTS
@GIVEN
@pytest.mark.parametrize("other", [2.0, float("nan"), float("inf")])
@pytest.mark.slow
def test_a_context_image_changes_later_predictions_only(
    tiny_stable_diffusion: Path, variant: Variant, max_context: int, given: int, other: float
) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=max_context)
    noisy, timesteps, context = batch(variant)
    context = replace(context, given=given)
    before = predict(unet, noisy, timesteps, context)
    for k in range(POSITIONS):
        images = context.images.clone()
        images[:, k] *= other
        after = predict(unet, noisy, timesteps, replace(context, images=images))
        assert torch.equal(after[:, : k + 1], before[:, : k + 1])
        room = max_context - given  # for images that leave the window again
        last = POSITIONS if k < given or max_context == 8 else min(k + 1 + room, POSITIONS)
        for n in range(k + 1, last):
            assert not torch.equal(after[:, n], before[:, n])


@VARIANTS
def test_a_noisy_image_and_its_timestep_change_their_own_prediction_only(
    tiny_stable_diffusion: Path, variant: Variant
) -> None:
    unet = network(tiny_stable_diffusion, variant)
    noisy, timesteps, context = batch(variant)
    before = predict(unet, noisy, timesteps, context)
    for k in range(POSITIONS):
        others = [n for n in range(POSITIONS) if n != k]
        other_noise, other_times = noisy.clone(), timesteps.clone()
        other_noise[:, k] = float("nan")
        other_times[:, k] = 999 - other_times[:, k]
        for after in (predict(unet, other_noise, timesteps, context), predict(unet, noisy, other_times, context)):
            assert torch.equal(after[:, others], before[:, others])
            assert not torch.equal(after[:, k], before[:, k])


def test_an_image_reads_nothing_outside_its_window(tiny_stable_diffusion: Path) -> None:
    unet = network(tiny_stable_diffusion, "dino", max_context=2)
    noisy, timesteps, context = batch("dino")
    images = context.images.clone()
    images[:, 1:3] = float("nan")
    before, after = (
        predict(unet, noisy, timesteps, ContextImages(seen, context.timesteps)) for seen in (context.images, images)
    )
    assert torch.equal(after[:, 4], before[:, 4])  # reads images 0 and 3
    assert after[:, 3].isnan().all()  # reads images 0 and 2


def test_given_images_stay_in_the_window(tiny_stable_diffusion: Path) -> None:
    unet = network(tiny_stable_diffusion, "dino", max_context=3)
    noisy, timesteps, context = batch("dino")
    context = replace(context, given=2)
    for k, is_read in enumerate([True, True, False, True]):  # by the image in place 4
        images = context.images.clone()
        images[:, k] = float("nan")
        assert predict(unet, noisy, timesteps, replace(context, images=images))[:, 4].isnan().all() == is_read


@VARIANTS
def test_the_noise_on_a_context_image_is_told(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant)
    noisy, timesteps, context = batch(variant)
    clean = ContextImages(context.images, torch.zeros_like(context.timesteps))
    before, after = predict(unet, noisy, timesteps, context), predict(unet, noisy, timesteps, clean)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_pooled_tokens_are_read_at_the_finest_level_only(tiny_stable_diffusion: Path, tmp_path: Path) -> None:
    unet = network(tiny_stable_diffusion, "self", pool=2)
    finest = unet.config["block_out_channels"][0]
    assert {(a.to_q.in_features == finest, a.pool) for a in unet.attentions().values()} == {(True, 2), (False, 1)}
    unet.save_pretrained(tmp_path)
    plain = ImageSetUNet.from_pretrained(tmp_path, context_pool=1)  # the same weights
    noisy, timesteps, context = batch("self")
    coarse, fine = predict(unet, noisy, timesteps, context), predict(plain, noisy, timesteps, context)
    assert torch.equal(coarse[:, 0], fine[:, 0])  # no context, nothing to pool
    assert not torch.allclose(coarse[:, 1:], fine[:, 1:], atol=1e-4)
    cache = ContextCache(8)
    record(unet, context.images[:, 0], context.timesteps[:, 0], cache)
    with torch.no_grad():
        sampled = unet(noisy[:, 1], timesteps[:, 1], Window(cache)).sample
    torch.testing.assert_close(sampled, coarse[:, 1], rtol=1e-4, atol=1e-5)


def test_pooling_is_m2m_selfs(tiny_stable_diffusion: Path) -> None:
    with pytest.raises(ValueError, match="context_pool coarsens what M2M-Self reads"):
        network(tiny_stable_diffusion, "dino", pool=2)


@VARIANTS
def test_the_order_of_context_images_is_their_slot(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant)
    noisy, timesteps, context = batch(variant)
    swap = [1, 0, 2, 3, 4]
    swapped = ContextImages(context.images[:, swap], context.timesteps[:, swap])
    before, after = (predict(unet, noisy, timesteps, images)[:, 2] for images in (context, swapped))
    assert not torch.allclose(before, after, atol=1e-4)
    for attention in unet.attentions().values():
        torch.nn.init.zeros_(attention.slot_embedding)
    before, after = (predict(unet, noisy, timesteps, images)[:, 2] for images in (context, swapped))
    if variant == "dino":  # in M2M-Self the second image has read the first, too
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def record(unet: ImageSetUNet, image: Tensor, levels: Tensor, cache: ContextCache) -> None:
    unet(image, levels, Window(cache, record=True))


@VARIANTS
@GIVEN
@torch.no_grad()
def test_sampling_predicts_what_training_predicts(
    tiny_stable_diffusion: Path, variant: Variant, max_context: int, given: int
) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=max_context)
    noisy, timesteps, context = batch(variant)
    trained = predict(unet, noisy, timesteps, replace(context, given=given))
    cache = ContextCache(max_context, given=given)
    for n in range(POSITIONS):
        sampled = unet(noisy[:, n], timesteps[:, n], Window(cache)).sample
        torch.testing.assert_close(sampled, trained[:, n], rtol=1e-4, atol=1e-5)
        record(unet, context.images[:, n], context.timesteps[:, n], cache)


@VARIANTS
@torch.no_grad()
def test_a_guided_batch_is_the_empty_context_and_the_given_one(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant)
    noisy, timesteps, context = batch(variant)
    cache = ContextCache(8)
    record(unet, context.images[:, 0], context.timesteps[:, 0], cache)
    rows, times = noisy[:, 1], timesteps[:, 1]
    guided = unet(torch.cat([rows, rows]), torch.cat([times, times]), Window(cache, unconditional=SETS)).sample
    empty = unet(rows, times, Window(ContextCache(8))).sample
    given = unet(rows, times, Window(cache)).sample
    torch.testing.assert_close(guided, torch.cat([empty, given]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided[:SETS], guided[SETS:], atol=1e-4)


@VARIANTS
def test_dropping_empties_the_context_of_that_noisy_image_alone(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant)
    noisy, timesteps, context = batch(variant)
    dropped = torch.zeros(SETS, POSITIONS, dtype=torch.bool)
    dropped[0, 2] = dropped[1, 3] = True
    before = predict(unet, noisy, timesteps, context)
    after = predict(unet, noisy, timesteps, ContextImages(context.images, context.timesteps, dropped))
    alone = ContextImages(context.images.flatten(0, 1)[:, None], context.timesteps.view(-1, 1))  # sets of one image
    empty = predict(unet, noisy.view(-1, 1, 4, 8, 8), timesteps.view(-1, 1), alone).view_as(noisy)
    assert torch.equal(after[~dropped], before[~dropped])
    torch.testing.assert_close(after[dropped], empty[dropped], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[dropped], empty[dropped], atol=1e-4)


@VARIANTS
def test_the_last_context_image_may_be_left_out(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant)
    noisy, timesteps, context = batch(variant)
    shorter = ContextImages(context.images[:, :-1], context.timesteps[:, :-1])
    assert torch.equal(predict(unet, noisy, timesteps, shorter), predict(unet, noisy, timesteps, context))


def test_what_nobody_reads_is_not_computed(tiny_stable_diffusion: Path) -> None:
    """The last block of a context image is not read: with it the predictions and gradients would be the same."""
    unet = network(tiny_stable_diffusion, "self", max_context=2).train()
    (last,) = [attention for attention in unet.attentions().values() if attention.last]
    noisy, timesteps, context = batch("self")
    found = []
    for last.last in (True, False):
        unet.zero_grad()
        with FlopCounterMode(display=False) as counter:
            prediction = unet(noisy, timesteps, context).sample
        prediction.square().mean().backward()
        found.append((counter.get_total_flops(), prediction, [parameter.grad for parameter in unet.parameters()]))
    (fewer, ours, our_gradients), (more, whole, whole_gradients) = found
    assert fewer < more
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(our_gradients, whole_gradients, rtol=1e-4, atol=1e-7)


@VARIANTS
def test_gradient_checkpointing_changes_no_gradient_and_every_weight_has_one(
    tiny_stable_diffusion: Path, variant: Variant
) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=2).train()
    noisy, timesteps, context = batch(variant)
    gradients = []
    for checkpointing in (False, True):
        unet.zero_grad()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(noisy, timesteps, context).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert gradient is not None
        assert gradient.any(), f"no gradient reaches {name}"
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7)


@VARIANTS
def test_it_trains_in_bfloat16(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=2).train()
    noisy, timesteps, context = batch(variant)
    expected = predict(unet, noisy, timesteps, context)
    dropped = torch.rand(SETS, POSITIONS) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        prediction = unet(noisy, timesteps, ContextImages(context.images, context.timesteps, dropped)).sample
        torch.testing.assert_close(predict(unet, noisy, timesteps, context).float(), expected, rtol=0.1, atol=0.1)
    prediction.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in unet.parameters())


class NoWaiting(TorchDispatchMode):
    """Fails where a program waits for the device to read a number from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


@VARIANTS
@WINDOWS
@torch.no_grad()
def test_no_pass_waits_for_the_device(tiny_stable_diffusion: Path, variant: Variant, max_context: int) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=max_context)
    noisy, timesteps, context = batch(variant)
    dropped = torch.rand(SETS, POSITIONS) < 0.5
    cache = ContextCache(max_context)
    with NoWaiting():
        unet(noisy, timesteps, ContextImages(context.images, context.timesteps, dropped))
        for n in range(3):
            record(unet, context.images[:, n], context.timesteps[:, n], cache)
        unet(torch.cat([noisy[:, 0]] * 2), timesteps[0, 0], Window(cache, unconditional=SETS))


@VARIANTS
def test_what_reads_the_context_is_all_that_a_context_reaches_first(
    tiny_stable_diffusion: Path, variant: Variant
) -> None:
    unet = network(tiny_stable_diffusion, variant)
    chosen = {id(parameter) for parameter in unet.context_parameters()}
    names = {name.rsplit("attn2.", 1)[-1] for name, parameter in unet.named_parameters() if id(parameter) in chosen}
    expected = {"to_k.weight", "to_v.weight", "slot_embedding"}  # the null rows are the parent's, and in their old use
    expected |= (
        {"to_v.bias"} if variant == "self" else {"context_proj.weight", "context_proj.bias", "context_level.weight"}
    )
    assert names == expected
    assert not any("attn1" in name for name, parameter in unet.named_parameters() if id(parameter) in chosen)


LENGTHS = (3, 5, 2)
"""Of the sets of a batch in which they differ."""


def mixed_batch(variant: Variant, *, pose_dim: int = 0) -> tuple[Tensor, Tensor, ContextImages]:
    """As `batch`, of sets of different lengths; what stands after their ends is NaN."""
    generator = torch.Generator().manual_seed(2)
    shape = (4, 8, 8) if variant == "self" else (LENGTH, DINO_DIM)
    sets, most = len(LENGTHS), max(LENGTHS)
    noisy = torch.randn(sets, most, 4, 8, 8, generator=generator)
    images = torch.randn(sets, most - 1, *shape, generator=generator)
    for place, length in enumerate(LENGTHS):
        noisy[place, length:], images[place, length - 1 :] = torch.nan, torch.nan
    timesteps = torch.randint(1000, (sets, most), generator=generator)
    levels = torch.randint(0, 300, (sets, most - 1), generator=generator)
    dropped = torch.rand(sets, most, generator=generator) < 0.3
    poses = torch.randn(sets, most, pose_dim, generator=generator) if pose_dim else None
    return noisy, timesteps, ContextImages(images, levels, dropped, lengths=LENGTHS, poses=poses)


@VARIANTS
@WINDOWS
def test_a_set_is_predicted_the_same_alone_and_among_longer_and_shorter_ones(
    tiny_stable_diffusion: Path, variant: Variant, max_context: int
) -> None:
    unet = network(tiny_stable_diffusion, variant, max_context=max_context)
    noisy, timesteps, context = mixed_batch(variant)
    together = predict(unet, noisy, timesteps, context)
    assert torch.isfinite(together).all()
    assert context.dropped is not None
    for place, length in enumerate(LENGTHS):
        one = slice(place, place + 1)
        alone = ContextImages(
            context.images[one, : length - 1], context.timesteps[one, : length - 1], context.dropped[one, :length]
        )
        expected = predict(unet, noisy[one, :length], timesteps[one, :length], alone)
        torch.testing.assert_close(together[one, :length], expected, rtol=1e-4, atol=1e-5)
        assert not together[place, length:].any()


@VARIANTS
def test_nothing_is_computed_for_what_is_not_there(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = network(tiny_stable_diffusion, variant)
    rows: list[int] = []
    unet.conv_in.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    predict(unet, *mixed_batch(variant))
    contexts = sum(LENGTHS) - len(LENGTHS) if variant == "self" else 0
    assert rows == [sum(LENGTHS) + contexts]


@VARIANTS
def test_a_first_image_that_is_only_given_costs_nothing_and_changes_none_after_it(
    tiny_stable_diffusion: Path, variant: Variant
) -> None:
    unet = ImageSetUNet.with_poses(network(tiny_stable_diffusion, variant), pose_dim=12, seed=0).eval()
    noisy, timesteps, context = mixed_batch(variant, pose_dim=12)
    rows: list[int] = []
    unet.conv_in.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    every, later = (predict(unet, noisy, timesteps, replace(context, predict_first=first)) for first in (True, False))
    torch.testing.assert_close(later[:, 1:], every[:, 1:], rtol=1e-4, atol=1e-5)
    assert not later[:, 0].any()
    assert rows[1] == rows[0] - len(LENGTHS)


@VARIANTS
def test_poses_change_nothing_before_the_first_step_and_can_be_learnt(
    tiny_stable_diffusion: Path, variant: Variant
) -> None:
    parent = network(tiny_stable_diffusion, variant)
    unet = ImageSetUNet.with_poses(parent, pose_dim=12, seed=0).eval()
    noisy, timesteps, context = mixed_batch(variant, pose_dim=12)
    without = ContextImages(context.images, context.timesteps, context.dropped, lengths=LENGTHS)
    assert torch.equal(predict(unet, noisy, timesteps, context), predict(parent, noisy, timesteps, without))

    optimizer = torch.optim.SGD(unet.parameters(), lr=1.0)
    unet(noisy, timesteps, context, return_dict=False)[0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    unet(noisy, timesteps, context, return_dict=False)[0].square().mean().backward()
    embeddings = [unet.class_embedding, *([unet.context_pose] if variant == "dino" else [])]
    embeddings += [
        rays for attention in unet.attentions().values() for rays in (attention.query_rays, attention.key_rays)
    ]
    assert all(parameter.grad.abs().sum() > 0 for one in embeddings for parameter in one.parameters())
    assert {id(p) for one in embeddings for p in one.parameters()} <= {id(p) for p in unet.context_parameters()}


@VARIANTS
def test_a_pose_reaches_its_own_image_and_those_that_look_at_it(tiny_stable_diffusion: Path, variant: Variant) -> None:
    unet = ImageSetUNet.with_poses(network(tiny_stable_diffusion, variant), pose_dim=12, seed=0).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "_rays." in name or (".linear_2." in name and not name.startswith("time_embedding")):
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    noisy, timesteps, context = mixed_batch(variant, pose_dim=12)
    before = predict(unet, noisy, timesteps, context)
    assert context.poses is not None
    poses = context.poses.clone()
    poses[1, 2] += 1
    moved = ContextImages(context.images, context.timesteps, context.dropped, lengths=LENGTHS, poses=poses)
    changed = (predict(unet, noisy, timesteps, moved) != before).flatten(2).any(dim=2)
    assert context.dropped is not None
    looking = [bool(n == 2 or (n > 2 and not context.dropped[1, n])) for n in range(5)]
    assert changed[1].tolist() == looking
    assert not changed[0].any()
    assert not changed[2].any()


def test_a_network_with_poses_comes_back_to_the_bit(tiny_stable_diffusion: Path, tmp_path: Path) -> None:
    unet = ImageSetUNet.with_poses(network(tiny_stable_diffusion, "dino"), pose_dim=12, seed=0)
    unet.save_pretrained(tmp_path)
    loaded = ImageSetUNet.from_pretrained(tmp_path)
    assert loaded.pose_dim == 12
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in unet.state_dict().items())
