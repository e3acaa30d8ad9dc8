"""What host and GPU do side by side. What only a GPU shows is tested where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m2m.devices import Replayed, sent
from m2m.models.unet import ImageSetUNet
from m2m.params import Variant
from m2m.params_file import load_params
from m2m.pipeline import M2MPipeline
from m2m.training.start import from_stable_diffusion

ROOT = Path(__file__).parents[1]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
VARIANTS = pytest.mark.parametrize("variant", ["self", "dino"])


def test_numbers_arrive() -> None:
    assert torch.equal(sent([[1, 2], [3, 4]], torch.device("cpu"), torch.long), torch.tensor([[1, 2], [3, 4]]))
    assert sent([0.5], torch.device("cpu"), torch.float64).dtype == torch.float64
    assert sent([0.5], torch.device("meta"), torch.float32).device.type == "meta"


def test_on_a_cpu_each_call_is_made() -> None:
    calls: list[float] = []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(float(tensor))
        return 2 * tensor

    replayed = Replayed(double)
    results = [replayed(torch.tensor(float(n))) for n in range(4)]
    assert calls == [0, 1, 2, 3]
    assert [float(result) for result in results] == [0, 2, 4, 6]


@ON_GPU
def test_on_a_gpu_a_graph_repeats_the_work() -> None:
    calls: list[torch.Tensor] = []
    weight = torch.randn(64, 64, device="cuda")

    def product(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        return tensor @ weight

    replayed = Replayed(product)
    inputs = [torch.randn(8, 64, device="cuda") for _ in range(5)]
    results = [replayed(tensor) for tensor in inputs]
    assert len(calls) == 2  # once as it is, once captured
    for tensor, result in zip(inputs, results, strict=True):
        assert torch.equal(result, tensor @ weight)


def pipeline(variant: Variant) -> M2MPipeline:
    """With contexts that it heeds."""
    common = load_params(ROOT / "profiles" / "embedded.yaml").train.common
    made = from_stable_diffusion(ROOT / "models" / "foundation", variant, common)
    torch.manual_seed(0)
    network: ImageSetUNet = made.unet
    with torch.no_grad():
        for parameter in network.context_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return made


def drawn(made: M2MPipeline, **options: Any) -> torch.Tensor:
    """The latents of three images after two given ones."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, made.image_size, made.image_size, 3), np.uint8)
    given = [Image.fromarray(picture) for picture in pictures]
    images: torch.Tensor = made(given, 3, num_inference_steps=6, generator=1, output_type="latent", **options).images
    return images.float().cpu()


@ON_GPU
@VARIANTS
def test_graphs_draw_the_same_to_the_bit(variant: Variant) -> None:
    made = pipeline(variant).to("cuda")
    assert torch.equal(drawn(made, use_cuda_graphs=False), drawn(made))


@ON_GPU
@VARIANTS
def test_a_gpu_draws_what_a_cpu_draws(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    made = pipeline(variant)
    torch.testing.assert_close(drawn(made.to("cuda")), drawn(made.to("cpu")), rtol=0.02, atol=0.02)


@ON_GPU
@VARIANTS
def test_steps_of_drawing_wait_for_nothing(variant: Variant) -> None:
    made = pipeline(variant).to("cuda")

    def watch(_: M2MPipeline, step: int, __: object, state: dict[str, Any]) -> dict[str, Any]:
        torch.cuda.set_sync_debug_mode("error" if 1 < step < 5 else "default")
        return state

    try:
        drawn(made, callback_on_step_end=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
