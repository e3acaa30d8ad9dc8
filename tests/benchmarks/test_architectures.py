"""Folders of random weights stand where the real ones would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.architectures import random_foundation, resized
from benchmarks.datasets import rows
from benchmarks.sampling import draw, image_set_pipeline
from benchmarks.setting import Setting
from benchmarks.training import operations_of_step, our_steps
from m2m.params import Variant
from m2m.params_file import load_params

ROOT = Path(__file__).parents[2]
SMALL = {
    "unet": {
        "attention_head_dim": [1, 2, 4, 4],
        "block_out_channels": [8, 16, 32, 32],
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "sample_size": 16,
        "use_linear_projection": True,
    },
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 8, 8, 8],
        "norm_num_groups": 4,
    },
    "text": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "dino": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4, "patch_size": 2},
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("foundations")
    random_foundation(folder / "128px", ROOT / "models" / "foundation", device="cpu", **SMALL)
    smaller = resized(folder / "128px", folder / "64px", sample_size=8)
    return Setting(
        device="cpu",
        foundation=smaller,
        precision="bfloat16",
        steps=2,
        sets=1,
        sets_per_step={"self": 1, "dino": 1},
        set_size=2,
        repeats=1,
    )


def test_another_size_is_the_same_networks(setting: Setting) -> None:
    whole = setting.foundation.with_name("128px")
    assert setting.pixels == 64
    assert (whole / "stable-diffusion" / "unet" / "config.json").read_text().count('"sample_size": 16') == 1
    weights = "stable-diffusion/unet/diffusion_pytorch_model.safetensors"
    assert (whole / weights).samefile(setting.foundation / weights)


@pytest.mark.parametrize("variant", ["self", "dino"])
def test_they_draw_in_half_the_precision(setting: Setting, variant: Variant) -> None:
    common = load_params(ROOT / "profiles" / "paper.yaml").train.common
    pipeline = image_set_pipeline(setting, variant, common)
    kinds: set[torch.dtype] = set()
    pipeline.unet.conv_in.register_forward_hook(lambda _, __, latents: kinds.add(latents.dtype))
    draw(setting, pipeline, given=2)
    assert {*kinds, pipeline.vae.dtype} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_datasets_are_made_and_read_by_both_sides(setting: Setting) -> None:
    names = [row.name for row in rows(setting)]
    of_both = [f"loading/64px/{variant}{what}" for variant in ("self", "dino") for what in ("", "/cpu")]
    assert names == ["generation/64px", "generation/64px/beside-the-network", "reading/64px", *of_both]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["self", "dino"])
def test_the_operations_of_a_step_are_those_of_its_sets(setting: Setting, variant: Variant) -> None:
    common = load_params(ROOT / "profiles" / "paper.yaml").train.common
    pipeline = image_set_pipeline(setting, variant, common)
    one, two = (
        operations_of_step(replace(setting, sets_per_step={"self": sets, "dino": sets}), pipeline) for sets in (1, 2)
    )
    assert two == 2 * one > 0
    longer = operations_of_step(replace(setting, set_size=4), pipeline)
    assert longer > 2 * one  # twice the images, and each reads more of them


def test_a_step_knows_how_long_it_waited_for_its_examples(setting: Setting) -> None:
    common = load_params(ROOT / "profiles" / "smoke.yaml").train.common
    with our_steps(setting, "self", common) as (steps, _, loss):
        waits = [loss.wait(steps) for _ in range(2)]
    assert all(0 < wait < 60 for wait in waits)
