"""Sets of other lengths in one batch, with an order or with cameras: what training makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2m.data.sets import ImageSet
from m2m.errors import UserError
from m2m.models.pose import POSE_DIM, relative_poses
from m2m.params import TrainCommon, TrainVariant
from m2m.training.loop import Batches
from m2m.training.loss import Draws, Examples, SetLoss
from m2m.training.start import from_stable_diffusion, take_poses
from m2m.world.cameras import Camera
from tests.training.in_memory import InMemory

CPU = torch.device("cpu")
LENGTHS = (3, 6, 2, 5)
Common = Callable[..., TrainCommon]


def image_set(number: int, length: int) -> ImageSet:
    """Pictures and latents that differ; the mean of the latents tells their set and place."""
    rng = np.random.default_rng(number)
    noise = rng.normal(size=(length, 4, 8, 8))
    noise -= noise.mean(axis=(1, 2, 3), keepdims=True)
    latents = noise + (100 * number + np.arange(length))[:, None, None, None]
    return ImageSet(
        id=f"set-{number}",
        caption="",
        images=rng.integers(0, 256, size=(length, 64, 64, 3), dtype=np.uint8),
        latents=latents.astype(np.float32),
        extras={"poses": [Camera(rng.uniform(0, 360), rng.uniform(-80, 80)).matrix().tolist() for _ in range(length)]},
    )


def small(one: ImageSet) -> ImageSet:
    """The same with latents of the size that networks know."""
    assert one.latents is not None
    return replace(one, latents=one.latents - one.latents.mean(axis=(1, 2, 3), keepdims=True))


@pytest.fixture
def make_loss(foundation: Path, make_common: Common) -> Callable[..., tuple[SetLoss, torch.nn.Module]]:
    """The loss of a variant, and a network that heeds its context and the poses."""

    def make(variant: Any, *, poses: bool = False, **changes: Any) -> tuple[SetLoss, torch.nn.Module]:
        common = make_common(set_size=6, **changes)
        pipeline = from_stable_diffusion(foundation, variant, common)
        if poses:
            pipeline = take_poses(pipeline, seed=0)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in pipeline.unet.context_parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
        return SetLoss(pipeline, common, device=CPU), pipeline.unet

    return make


def examples_of(loss: SetLoss, lengths: Sequence[int]) -> list[Examples]:
    sets = [small(image_set(number, length)) for number, length in enumerate(lengths)]
    return [loss.draws.example(one, range(len(one.images)), key=("example", one.id)) for one in sets]


@pytest.mark.parametrize("variant", ["self", "dino"])
@pytest.mark.parametrize("poses", [False, True])
@pytest.mark.parametrize("predict_first", [True, False])
@torch.no_grad()
def test_the_loss_of_a_set_is_the_same_alone_and_among_longer_and_shorter_ones(
    make_loss: Callable[..., tuple[SetLoss, torch.nn.Module]], variant: str, poses: bool, predict_first: bool
) -> None:
    loss, network = make_loss(variant, poses=poses, predict_first=predict_first)
    examples = examples_of(loss, LENGTHS)
    together = loss(network, Examples.stack(examples))
    alone = torch.cat([loss(network, one) for one in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert len(set(alone.tolist())) == len(LENGTHS)


def test_dino_encodes_the_context_images_that_are_there_and_no_others(
    make_loss: Callable[..., tuple[SetLoss, torch.nn.Module]],
) -> None:
    loss, network = make_loss("dino")
    assert loss.encoder is not None
    seen: list[int] = []
    loss.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    with torch.no_grad():
        loss(network, Examples.stack(examples_of(loss, LENGTHS)))
    assert seen == [sum(LENGTHS) - len(LENGTHS)]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=3), copies=st.integers(1, 3))
def test_batches_of_any_lengths_split_into_what_they_were_stacked_from(lengths: list[int], copies: int) -> None:
    def example(length: int) -> Examples:
        tensors = {"latents": length, "noise": length, "timesteps": length, "dropped": length, "poses": length}
        context = {"context_images": length - 1, "context_noise": length - 1, "context_timesteps": length - 1}
        counts = {**tensors, **context}
        return Examples(lengths=(length,), **{name: torch.rand(1, count, 2) for name, count in counts.items()})

    parts = [Examples.stack([example(length) for length in lengths]) for _ in range(copies)]
    for part, again in zip(parts, Examples.stack(parts).split(copies), strict=True):
        assert again.lengths == part.lengths == tuple(lengths)
        assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in part.tensors().items())


def places(examples: Examples) -> list[list[int]]:
    """Of each set in a batch, which of its images stand there."""
    means = examples.latents.mean(dim=(2, 3, 4)).round().int() % 100  # (B, N)
    return [row[:length].tolist() for row, length in zip(means, examples.lengths, strict=True)]


@pytest.mark.parametrize("ordered", [False, True])
def test_only_images_with_an_order_come_in_it(
    make_loss: Callable[..., tuple[SetLoss, torch.nn.Module]],
    make_variant: Callable[..., TrainVariant],
    ordered: bool,
) -> None:
    loss, _ = make_loss("self", context_swap=0.3)
    loss.common = loss.common.model_copy(update={"set_size": 4})
    loss.draws = replace(loss.draws, common=loss.common)
    sets: Any = InMemory(image_set(number, length) for number, length in enumerate((6, 3, 5)))
    batches = Batches(sets=sets, images_per_set=6, loss=loss, variant=make_variant(), ordered=ordered)
    rows = []
    for step in range(12):
        examples = batches.examples(step, range(4))
        assert examples.lengths == tuple(min(4, len(sets[index].images)) for index, _ in batches.order.step(step))
        rows += places(examples)
    runs = [row == list(range(row[0], row[0] + len(row))) for row in rows]
    assert all(runs) if ordered else sum(runs) < len(runs) / 3
    assert len({tuple(row) for row in rows}) > 3
    assert all(len(set(row)) == len(row) for row in rows)


def draws(common: TrainCommon) -> Draws:
    return Draws(common=common, latent_shape=(4, 8, 8), timesteps=1000, encoder_size=None, with_poses=True)


def test_poses_are_relative_to_the_first_image_of_the_example(make_common: Common) -> None:
    one, order = image_set(0, 6), (4, 0, 5)
    poses = draws(make_common()).example(one, order, key=(0,)).poses
    assert poses.shape == (1, 3, POSE_DIM)
    torch.testing.assert_close(poses[0, 0], torch.cat([torch.eye(3).flatten(), torch.zeros(3)]))
    torch.testing.assert_close(poses[0], relative_poses(torch.from_numpy(one.cameras()[list(order)])))


@pytest.mark.parametrize(
    ("extras", "words"),
    [
        ({}, "set set-0 has no poses; views need a camera for each image"),
        ({"poses": [[0.0]] * 4}, "set set-0: its poses are not 4 finite matrices of 3 x 4"),
        ({"poses": [[[float("nan")] * 4] * 3] * 4}, "set set-0: its poses are not 4 finite matrices"),
    ],
)
def test_a_set_without_poses_is_named_in_one_line(make_common: Common, extras: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        draws(make_common()).example(replace(image_set(0, 4), extras=extras), range(4), key=(0,))
    assert "\n" not in str(caught.value)


def test_where_none_are_wanted_there_are_no_poses(make_common: Common) -> None:
    without = replace(draws(make_common()), with_poses=False)
    found: Tensor = without.example(replace(image_set(0, 4), extras={}), range(4), key=(0,)).poses
    assert found.shape == (1, 4, 0)
