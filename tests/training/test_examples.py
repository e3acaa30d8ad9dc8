"""What is drawn for a set: how often, from what it follows, and that it is there in time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from m2m.data.shards import ImageSet
from m2m.errors import UserError
from m2m.params import TrainCommon
from m2m.training.examples import STEPS_AHEAD, Draws, Examples, made_ahead

Common = Callable[..., TrainCommon]
IMAGES = 400


@pytest.fixture(scope="module")
def large_set() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        id="large",
        caption="",
        images=rng.integers(0, 256, size=(IMAGES, 8, 8, 3), dtype=np.uint8),
        latents=rng.normal(size=(IMAGES, 4, 2, 2)).astype(np.float32),
    )


def draws(common: TrainCommon, encoder_size: tuple[int, int] | None = None, *, with_poses: bool = False) -> Draws:
    return Draws(
        common=common, latent_shape=(4, 2, 2), timesteps=1000, encoder_size=encoder_size, with_poses=with_poses
    )


def equal(one: Examples, other: Examples) -> bool:
    if one.lengths != other.lengths:
        return False
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_shares_and_ranges_are_those_of_the_parameters(make_common: Common, large_set: ImageSet) -> None:
    common = make_common(guidance_dropout=0.2, context_noise={"probability": 0.3, "max_timestep": 50})
    drawn = [draws(common).example(large_set, range(IMAGES), key=(number,)) for number in range(10)]
    dropped = torch.stack([one.dropped for one in drawn]).double().mean().item()
    levels = torch.stack([one.context_timesteps for one in drawn])
    timesteps = torch.stack([one.timesteps for one in drawn])
    noise = torch.stack([one.noise for one in drawn])
    assert dropped == pytest.approx(0.2, abs=0.03)  # 4000 draws: five standard deviations
    assert (levels > 0).double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert set(levels.unique().tolist()) == set(range(51))
    assert (timesteps.min().item(), timesteps.max().item()) == pytest.approx((0, 999), abs=5)
    assert (noise.mean().item(), noise.std().item()) == pytest.approx((0, 1), abs=0.02)


def test_without_noise_and_dropout_there_is_none(make_common: Common, large_set: ImageSet) -> None:
    common = make_common(guidance_dropout=0.0, context_noise={"probability": 0.0, "max_timestep": 1})
    drawn = draws(common).example(large_set, range(IMAGES), key=(0,))
    assert not drawn.dropped.any()
    assert not drawn.context_timesteps.any()


@pytest.mark.parametrize("encoder_size", [None, (14, 14)])
def test_context_images_at_any_place_may_be_of_another_set(
    make_common: Common, large_set: ImageSet, encoder_size: tuple[int, int] | None
) -> None:
    assert large_set.latents is not None
    other = ImageSet(id="other", caption="", images=255 - large_set.images, latents=large_set.latents + 100)
    drawing, order, place = draws(make_common(context_swap=0.3), encoder_size), range(IMAGES), range(IMAGES)[::-1]
    drawn = drawing.example(large_set, order, key=(0,), stranger=(other, place))
    own = drawing.example(large_set, order, key=(0,))
    strange = drawing.example(other, place, key=(0,))
    swapped = (drawn.context_images != own.context_images).flatten(2).any(dim=2)[0]
    assert swapped.double().mean().item() == pytest.approx(0.3, abs=0.1)  # 399 draws: four standard deviations
    first = [drawing.example(large_set, range(4), key=(n,), stranger=(other, range(4))) for n in range(200)]
    shares = torch.stack([(one.context_images[0, :, 0, 0, 0] != own.context_images[0, :3, 0, 0, 0]) for one in first])
    assert shares.double().mean(dim=0).tolist() == pytest.approx([0.3] * 3, abs=0.13)  # four standard deviations
    assert torch.equal(drawn.context_images[0, swapped], strange.context_images[0, swapped])
    assert torch.equal(drawn.context_images[0, ~swapped], own.context_images[0, ~swapped])
    assert torch.equal(drawn.latents, own.latents)  # what is to be drawn is always the set's own


def test_draws_follow_seed_and_key_alone(make_common: Common, large_set: ImageSet) -> None:
    torch.manual_seed(1)
    drawn = draws(make_common()).example(large_set, range(4), key=("example", 64, 3))
    torch.manual_seed(2)
    assert equal(drawn, draws(make_common()).example(large_set, range(4), key=("example", 64, 3)))
    for other in (
        draws(make_common()).example(large_set, range(4), key=("example", 64, 2)),
        draws(make_common()).example(large_set, range(4), key=("example", 80, 3)),
        draws(make_common(seed=8)).example(large_set, range(4), key=("example", 64, 3)),
    ):
        assert not torch.equal(drawn.noise, other.noise)


def test_both_variants_learn_from_the_same_noise(make_common: Common, large_set: ImageSet) -> None:
    ours = draws(make_common()).example(large_set, range(4), key=(0,))
    dino = draws(make_common(), encoder_size=(14, 14)).example(large_set, range(4), key=(0,))
    for name in ("latents", "noise", "timesteps", "dropped", "context_timesteps"):
        assert torch.equal(getattr(ours, name), getattr(dino, name))


def test_images_are_taken_in_the_order_asked_for(make_common: Common, large_set: ImageSet) -> None:
    order = (5, 2, 9)
    ours = draws(make_common()).example(large_set, order, key=(0,))
    dino = draws(make_common(), encoder_size=(14, 14)).example(large_set, order, key=(0,))
    assert large_set.latents is not None
    assert np.array_equal(ours.latents[0], large_set.latents[[5, 2, 9]])
    assert torch.equal(ours.context_images, ours.latents[:, :2])
    assert np.array_equal(dino.context_images[0].permute(0, 2, 3, 1), large_set.images[[5, 2]])
    assert dino.context_noise.shape == (1, 2, 3, 14, 14)


@pytest.mark.parametrize(
    ("set_size", "max_context", "numbers"), [(8, 5, {1, 2, 3, 4}), (6, 5, {1}), (8, 2, {1}), (8, 1, {1})]
)
def test_where_a_window_slides_any_number_of_images_counts_as_given(
    make_common: Common, set_size: int, max_context: int, numbers: set[int]
) -> None:
    drawing = draws(make_common(set_size=set_size, max_context=max_context))
    found = [drawing.given(key=("given", step)) for step in range(200)]
    assert set(found) == numbers
    assert all(found.count(number) > 0.6 * 200 / len(numbers) for number in numbers)
    assert found == [drawing.given(key=("given", step)) for step in range(200)]
    if len(numbers) > 1:
        other = draws(make_common(set_size=set_size, max_context=max_context, seed=8))
        assert found != [other.given(key=("given", step)) for step in range(200)]


def test_a_split_and_stacked_batch_is_the_same(make_common: Common, large_set: ImageSet) -> None:
    single = [draws(make_common()).example(large_set, range(4), key=(number,)) for number in range(6)]
    parts = Examples.stack(single, given=2).split(3)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert equal(parts[1], Examples.stack(single[2:4]))
    assert [part.to(torch.device("cpu")).given for part in parts] == [2, 2, 2]


@pytest.mark.parametrize(
    ("latents", "words"), [(None, "no latents"), (np.zeros((4, 4, 3, 3), np.float32), r"latents of shape \(4, 3, 3\)")]
)
def test_a_set_for_another_network_is_named(make_common: Common, latents: np.ndarray | None, words: str) -> None:
    wrong = ImageSet(id="cc-17", caption="", images=np.zeros((4, 8, 8, 3), np.uint8), latents=latents)
    with pytest.raises(UserError, match=f"set cc-17 has {words}"):
        draws(make_common()).example(wrong, range(4), key=(0,))


def test_batches_come_in_order_and_not_too_far_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    batches = made_ahead(make, range(3, 10))
    assert next(batches) == 9
    assert next(batches) == 16
    assert len(made) <= 2 + STEPS_AHEAD
    assert list(batches) == [step * step for step in range(5, 10)]
    assert made == list(range(3, 10))
    assert list(made_ahead(make, range(0))) == []


def test_an_error_in_the_making_is_raised_where_the_batch_is_wanted() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise UserError("shard is damaged")
        return step

    batches = made_ahead(make, range(9))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match="shard is damaged"):
        next(batches)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    batches = made_ahead(lambda step: step, range(100))
    next(batches)
    batches.close()
    assert threading.active_count() == before
