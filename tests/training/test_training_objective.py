"""The loss against one computed image by image from the equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from m2m.data.sets import ImageSets
from m2m.manifest import Manifest
from m2m.models.dino import dino_pixels
from m2m.models.unet import ContextImages
from m2m.params import TrainCommon, TrainVariant
from m2m.training.examples import Examples
from m2m.training.loop import Course
from m2m.training.objective import Objective
from m2m.training.start import from_stable_diffusion as start

Common = Callable[..., TrainCommon]
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
) -> Callable[..., tuple[Objective, Examples]]:
    """The objective of a variant and the examples of its first step."""

    def call(name: Any, **changes: Any) -> tuple[Objective, Examples]:
        common = make_common(**changes)
        objective = Objective(start(foundation, name, common), common, device=CPU)
        manifest = Manifest.read(dataset.manifest)
        course = Course(
            sets=ImageSets(dataset.store, manifest, "train"),
            images_per_set=manifest.images_per_set,
            objective=objective,
            variant=make_variant(),
        )
        return objective, course.examples(0, range(4))

    return call


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("predict_first", [True, False])
def test_it_is_the_weighted_mean_square_of_every_image(
    make: Callable[..., tuple[Objective, Examples]], prediction_type: str, gamma: float, predict_first: bool
) -> None:
    objective, examples = make(
        "self", prediction_type=prediction_type, min_snr_gamma=gamma, predict_first=predict_first
    )
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
    assert objective(Network(), examples).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_context_is_noised_once_and_where_it_is_clean_it_is_what_it_was(
    make: Callable[..., tuple[Objective, Examples]],
) -> None:
    objective, examples = make("self")
    network = Network()
    objective(network, examples)
    clean = examples.context_timesteps == 0
    assert 0 < clean.sum() < clean.numel()
    assert torch.equal(network.context.images[clean], examples.context_images[clean])
    t, x = examples.context_timesteps[~clean], examples.context_images[~clean]
    products = objective.products[t][:, None, None, None]
    noised = products.sqrt() * x + (1 - products).sqrt() * examples.context_noise[~clean]
    assert torch.allclose(network.context.images[~clean], noised, atol=1e-6)
    assert torch.equal(network.context.timesteps, examples.context_timesteps)
    assert network.context.dropped is not None
    assert torch.equal(network.context.dropped, examples.dropped)
    assert network.context.given == examples.given == 1  # no window slides
    objective(network, replace(examples, given=2))
    assert network.context.given == 2


def test_dino_sees_each_context_image_once_a_step(make: Callable[..., tuple[Objective, Examples]]) -> None:
    objective, examples = make("dino")
    assert objective.encoder is not None
    seen: list[Tensor] = []
    model, network = objective.encoder.model, Network()
    handle = model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    objective(network, examples)
    handle.remove()
    (pixels,) = seen
    expected = dino_pixels(examples.context_images.flatten(0, 1), objective.encoder.processor)
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
    make: Callable[..., tuple[Objective, Examples]], foundation: Path, make_common: Common, name: Any
) -> None:
    unet = start(foundation, name, make_common()).unet
    losses = {}
    for precision in ("float32", "bfloat16"):
        objective, examples = make(name, precision=precision)
        losses[precision] = objective(unet, examples)
    assert losses["bfloat16"].dtype == torch.float32
    assert not torch.equal(losses["float32"], losses["bfloat16"])
    assert losses["bfloat16"].tolist() == pytest.approx(losses["float32"].tolist(), rel=0.05)
    cast(Tensor, losses["bfloat16"].mean()).backward()
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in unet.parameters())
