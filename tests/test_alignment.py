"""The same weights give the same bits wherever they are loaded from: here they begin at odd addresses, on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from m2m.devices import ALIGNMENT, align
from m2m.diffusion.stable_diffusion import LatentEncoder, StableDiffusion
from m2m.evaluation.networks import Clip
from m2m.evaluation.published import INCEPTION_V3, InceptionV3
from m2m.files import file_digest
from m2m.foundation import fit as fit_module
from m2m.params import Fit, Variant
from m2m.params_file import load_params
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.training.start import from_stable_diffusion
from m2m.training.state import Ema, TrainState

ROOT = Path(__file__).parents[1]
COMMON = load_params(ROOT / "profiles" / "embedded.yaml").train.common
VARIANTS = pytest.mark.parametrize("variant", ["self", "dino"])
PAST = pytest.mark.parametrize("past", [4, 40])
"""Bytes from a multiple of 64 to a file's first tensor."""
BY_HEADER = 40
"""Where safetensors that were only just saved have been seen to begin."""


def shift(file: Path, past: int) -> None:
    """Moves the tensors of a safetensors file: its header is JSON, at the end of which blanks mean nothing."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    header += b" " * ((past - 8 - length) % 64)
    file.unlink()
    file.write_bytes(len(header).to_bytes(8, "little") + header + tensors)


def shifted(source: Path, target: Path, past: int) -> Path:
    """A copy of a folder whose weights begin elsewhere."""
    shutil.copytree(source, target)
    for file in target.rglob("*.safetensors"):
        shift(file, past)
    return target


def moved(tensor: Tensor, past: int) -> Tensor:
    """The tensor, of the same strides, where torch would not put it."""
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + ALIGNMENT // size, dtype=tensor.dtype)
    assert room.data_ptr() % ALIGNMENT == 0
    odd = room.as_strided(tensor.shape, tensor.stride(), past // size)
    odd.copy_(tensor)
    return odd


def odd(*networks: nn.Module | None) -> list[str]:
    """The weights that begin at odd addresses."""
    return [
        name
        for network in networks
        if network is not None
        for name, tensor in network.state_dict().items()
        if tensor.data_ptr() % ALIGNMENT
    ]


def heedful(foundation: Path, variant: Variant) -> M2MPipeline:
    """A pipeline whose network heeds what it sees, and that was never in a file."""
    pipeline = from_stable_diffusion(foundation, variant, COMMON.model_copy(update={"context_pool": 1}))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.unet.context_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws)
    return pipeline


def drawn(pipeline: M2MPipeline) -> Tensor:
    """Two images after one."""
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    options = {"num_inference_steps": 2, "generator": 7, "output_type": "latent"}
    images: Tensor = pipeline([Image.fromarray(picture)], 2, **options).images
    return images


@pytest.fixture
def foundation(tiny_stable_diffusion: Path, tiny_dino: Path, tmp_path: Path) -> Path:
    (tmp_path / "foundation").mkdir()
    (tmp_path / "foundation" / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    (tmp_path / "foundation" / "dino").symlink_to(tiny_dino)
    return tmp_path / "foundation"


def test_what_is_aligned_keeps_its_place_and_the_rest_its_strides_and_its_ties() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    convolution, tied, linear, norm = network
    linear.weight = tied.weight
    parameters, weights = list(network.parameters()), {k: v.clone() for k, v in network.state_dict().items()}
    convolution.weight.data = moved(convolution.weight.data.to(memory_format=torch.channels_last), 8)
    tied.weight.data, norm.running_var.data = moved(tied.weight.data, 4), moved(norm.running_var.data, 40)
    place, moving = norm.weight.data_ptr(), [tensor.data_ptr() for tensor in (convolution.weight, tied.weight)]
    assert odd(network) == ["0.weight", "1.weight", "2.weight", "3.running_var"]

    align(network, None)
    assert odd(network) == []
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert linear.weight is tied.weight
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert norm.weight.data_ptr() == place
    now = [tensor.data_ptr() for tensor in (convolution.weight, tied.weight)]
    align(network)
    assert [tensor.data_ptr() for tensor in (convolution.weight, tied.weight)] == now != moving


@VARIANTS
@PAST
@pytest.mark.slow
def test_a_pipeline_draws_the_same_from_any_file(foundation: Path, tmp_path: Path, variant: Variant, past: int) -> None:
    made = heedful(foundation, variant)
    made.save_pretrained(tmp_path / "model")
    folder = shifted(tmp_path / "model", tmp_path / "shifted", past)
    expected = drawn(made)
    for loaded in (load_pipeline(folder), M2MPipeline.from_pretrained(folder)):
        assert torch.equal(drawn(loaded), expected)
        assert odd(loaded.vae, loaded.unet, loaded.image_encoder) == []


@VARIANTS
def test_a_pipeline_of_networks_at_odd_addresses_draws_the_same(foundation: Path, variant: Variant) -> None:
    pipeline = heedful(foundation, variant)
    expected = drawn(pipeline)
    for parameter in pipeline.unet.parameters():
        parameter.data = moved(parameter.data, BY_HEADER)
    assert torch.equal(drawn(M2MPipeline(**pipeline.components)), expected)


@PAST
@pytest.mark.slow
def test_training_starts_the_same_from_any_file(foundation: Path, tmp_path: Path, past: int) -> None:
    other = shifted(foundation, tmp_path / "shifted", past)
    for variant in ("self", "dino"):
        ours, theirs = (from_stable_diffusion(each, variant, COMMON) for each in (foundation, other))
        weights = theirs.unet.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.unet.state_dict().items())
        assert odd(theirs.vae, theirs.unet, theirs.image_encoder) == []


@PAST
def test_stable_diffusion_draws_the_same_from_any_file(tiny_stable_diffusion: Path, tmp_path: Path, past: int) -> None:
    results, left = [], []
    for folder in (tiny_stable_diffusion, shifted(tiny_stable_diffusion, tmp_path / "shifted", past)):
        model = StableDiffusion(folder, solver="ddim", num_inference_steps=2, guidance_scale=1.0, device="cpu")
        networks = model._pipeline
        left += odd(networks.text_encoder, networks.unet, networks.vae, LatentEncoder(folder, device="cpu")._vae)
        results.append(model.denoise(model.noise(1)[None], model.embed(["a cat"])))
    assert torch.equal(*results)
    assert left == []


@PAST
def test_clip_reads_the_same_from_any_file(tmp_path: Path, past: int) -> None:
    source = ROOT / "models" / "foundation" / "clip"
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8))
    one, other = (Clip.from_pretrained(folder) for folder in (source, shifted(source, tmp_path / "shifted", past)))
    assert torch.equal(one.embed(picture), other.embed(picture))
    assert odd(one.model, other.model) == []


def test_inception_is_read_into_memory_of_its_own(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionV3().state_dict().items() if tensor.shape}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": INCEPTION_V3}))
    shift(tmp_path / "model.safetensors", BY_HEADER)
    assert odd(InceptionV3.from_pretrained(tmp_path)) == []


def test_a_state_that_is_resumed_lies_as_one_that_was_not(tmp_path: Path) -> None:
    def new_state() -> TrainState:
        network = nn.Linear(5, 3)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        return TrainState(network=network, optimizers=(optimizer,), ema=Ema(network, decay=0.9))

    trained = new_state()
    trained.network(torch.ones(1, 5)).sum().backward()
    trained.optimizers[0].step()
    trained.save(tmp_path / "state")
    shift(tmp_path / "state", BY_HEADER)
    resumed = new_state()
    resumed.load(tmp_path / "state")
    assert resumed.tensors().keys() == trained.tensors().keys()
    assert [name for name, tensor in resumed.tensors().items() if tensor.data_ptr() % ALIGNMENT] == []


def test_a_fit_that_is_resumed_lies_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers: list[torch.optim.AdamW] = []
    make = torch.optim.AdamW

    def watched(*args: Any, **kwargs: Any) -> torch.optim.AdamW:
        optimizers.append(make(*args, **kwargs))
        return optimizers[-1]

    def fit(loss: Callable[[nn.Module], Tensor]) -> None:
        network, sizes = nn.Linear(5, 3), Fit(images=6, batch_size=1, learning_rate=0.01)
        fit_module.fit("line", network, lambda *_: loss(network), fit=sizes, pictures=9, seed=0, work=tmp_path)

    def killed(network: nn.Module) -> Tensor:
        if list(tmp_path.glob("checkpoints/fit/line/*")):
            raise KeyboardInterrupt
        return network(torch.ones(1, 5)).sum()  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.optim, "AdamW", watched)
    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    with pytest.raises(KeyboardInterrupt):
        fit(killed)
    (kept,) = tmp_path.glob("checkpoints/fit/line/*")
    shift(kept, BY_HEADER)
    seen = kept.name.partition(".")[0]
    kept.rename(kept.with_name(f"{seen}.{file_digest(kept)}.{kept.stat().st_size}"))
    fit(lambda network: network(torch.ones(1, 5)).sum())
    moments = [tensor for state in optimizers[-1].state.values() for tensor in state.values()]
    assert len(moments) == 2 * 3  # a step and two moments of weight and bias
    assert not any(tensor.data_ptr() % ALIGNMENT for tensor in moments)
