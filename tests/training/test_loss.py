"""What a step trains on, and the loss against one computed image by image from the equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.errors import UserError
from m2m.manifest import Manifest
from m2m.models.context import dino_pixels
from m2m.models.unet import ContextImages
from m2m.params import TrainCommon, TrainVariant
from m2m.training.loop import Batches
from m2m.training.loss import Draws, Examples, SetLoss
from m2m.training.start import from_stable_diffusion as start

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
    drawn = drawing.example(large_set, order, key=(0,), other=(other, place))
    own = drawing.example(large_set, order, key=(0,))
    strange = drawing.example(other, place, key=(0,))
    swapped = (drawn.context_images != own.context_images).flatten(2).any(dim=2)[0]
    assert swapped.double().mean().item() == pytest.approx(0.3, abs=0.1)  # 399 draws: four standard deviations
    first = [drawing.example(large_set, range(4), key=(n,), other=(other, range(4))) for n in range(200)]
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


CPU = torch.device("cpu")


class Network(nn.Module):
    """Predicts a multiple of what it is given, and remembers the rest."""

    def forward(self, noisy: Tensor, timesteps: Tensor, context: ContextImages, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        self.context = context
        return (noisy * 0.5 + timesteps[..., None, None, None] / 1000,)


@pytest.fixture
def make(
    dataset: Any, foundation: Path, make_common: Common, make_variant: Callable[..., TrainVariant]
) -> Callable[..., tuple[SetLoss, Examples]]:
    """The loss of a variant and the examples of its first step."""

    def call(name: Any, **changes: Any) -> tuple[SetLoss, Examples]:
        common = make_common(**changes)
        loss = SetLoss(start(foundation, name, common), common, device=CPU)
        manifest = Manifest.read(dataset.manifest)
        batches = Batches(
            sets=ImageSets(dataset.store, manifest, "train"),
            images_per_set=manifest.images_per_set,
            loss=loss,
            variant=make_variant(),
        )
        return loss, batches.examples(0, range(4))

    return call


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("predict_first", [True, False])
def test_it_is_the_weighted_mean_square_of_every_image(
    make: Callable[..., tuple[SetLoss, Examples]], prediction_type: str, gamma: float, predict_first: bool
) -> None:
    loss, examples = make("self", prediction_type=prediction_type, min_snr_gamma=gamma, predict_first=predict_first)
    first = 0 if predict_first else 1
    products = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod.double()
    expected = []
    for s in range(4):
        losses = []
        for n in range(first, 4):
            x, noise = examples.latents[s, n].double(), examples.noise[s, n].double()
            t = int(examples.timesteps[s, n])
            alpha, sigma = products[t].sqrt(), (1 - products[t]).sqrt()
            prediction = 0.5 * (alpha * x + sigma * noise) + t / 1000
            snr = alpha**2 / sigma**2
            if prediction_type == "epsilon":
                wanted, weight = noise, min(snr, gamma) / snr if gamma else 1
            else:
                wanted, weight = alpha * noise - sigma * x, min(snr, gamma) / (snr + 1) if gamma else 1
            losses.append(weight * (prediction - wanted).square().mean())
        expected.append(float(sum(losses)) / (4 - first))
    assert loss(Network(), examples).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_context_is_noised_once_and_where_it_is_clean_it_is_what_it_was(
    make: Callable[..., tuple[SetLoss, Examples]],
) -> None:
    loss, examples = make("self")
    network = Network()
    loss(network, examples)
    clean = examples.context_timesteps == 0
    assert 0 < clean.sum() < clean.numel()
    assert torch.equal(network.context.images[clean], examples.context_images[clean])
    t, x = examples.context_timesteps[~clean], examples.context_images[~clean]
    products = loss.products[t][:, None, None, None]
    noised = products.sqrt() * x + (1 - products).sqrt() * examples.context_noise[~clean]
    assert torch.allclose(network.context.images[~clean], noised, atol=1e-6)
    assert torch.equal(network.context.timesteps, examples.context_timesteps)
    assert network.context.dropped is not None
    assert torch.equal(network.context.dropped, examples.dropped)
    assert network.context.given == examples.given == 1  # no window slides
    loss(network, replace(examples, given=2))
    assert network.context.given == 2


def test_dino_sees_each_context_image_once_a_step(make: Callable[..., tuple[SetLoss, Examples]]) -> None:
    loss, examples = make("dino")
    assert loss.encoder is not None
    seen: list[Tensor] = []
    model, network = loss.encoder, Network()
    handle = model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    loss(network, examples)
    handle.remove()
    (pixels,) = seen
    expected = dino_pixels(examples.context_images.flatten(0, 1), loss.processor)
    clean = examples.context_timesteps.flatten() == 0
    assert len(pixels) == 4 * 3
    assert torch.equal(pixels[clean], expected[clean])
    assert not torch.isclose(pixels[~clean], expected[~clean]).all(dim=(1, 2, 3)).any()
    assert network.context.images.shape == (4, 3, 16, 32)
    tokens = model(pixels).last_hidden_state[:, 1:].reshape(4, 3, 16, 32)
    assert torch.equal(network.context.images, tokens)
    assert not network.context.images.requires_grad


@pytest.mark.parametrize("name", ["self", "dino"])
def test_bfloat16_is_near_float32_and_keeps_the_weights_in_it(
    make: Callable[..., tuple[SetLoss, Examples]], foundation: Path, make_common: Common, name: Any
) -> None:
    unet = start(foundation, name, make_common()).unet
    losses = {}
    for precision in ("float32", "bfloat16"):
        loss, examples = make(name, precision=precision)
        losses[precision] = loss(unet, examples)
    assert losses["bfloat16"].dtype == torch.float32
    assert not torch.equal(losses["float32"], losses["bfloat16"])
    assert losses["bfloat16"].tolist() == pytest.approx(losses["float32"].tolist(), rel=0.05)
    cast(Tensor, losses["bfloat16"].mean()).backward()
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in unet.parameters())
