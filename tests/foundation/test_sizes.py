"""What is counted without weights, held against weights; and against what others know of Stable Diffusion 2.1-base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from m2m.foundation.sizes import (
    COUNTED,
    MOMENTS,
    PARAMETERS,
    SD_21_UNET,
    STATE,
    Count,
    build_and_count,
    compare,
    count,
    network,
    state,
)
from m2m.models.unet import ImageSetUNet
from m2m.params import HubFoundation, HubSnapshot, Params, Variant
from m2m.params_file import load_params
from m2m.training.state import Ema, TrainState

ROOT = Path(__file__).parents[2]
STABLE_DIFFUSION = 865_910_724
"""Parameters of the published U-Net: 865.91 M, as Stability's own code prints when it builds one."""


@pytest.fixture(scope="module")
def paper() -> Params:
    return load_params(ROOT / "profiles" / "paper.yaml")


def counted(params: Params, variant: Variant, **of_dino: object) -> Count:
    foundation, train = params.foundation, params.train
    assert isinstance(foundation, HubFoundation)
    dino = train.variant.dino.model_copy(update=of_dino)
    found = count(
        foundation,
        train.model_copy(update={"variant": train.variant.model_copy(update={"dino": dino})}),
        variant,
    )
    assert found is not None
    return found


def test_the_paper_s_networks(paper: Params) -> None:
    text = 16 * 2 * 1024  # 16 blocks' keys and values of a text, of 1024 channels …
    widths = (5 * 320 + 5 * 640 + 6 * 1280) // 16  # … into as many as the block has, on average
    null, slots = 16 * 2 * 77 * widths, 16 * 8 * widths
    own = 2 * (5 * 320**2 + 5 * 640**2 + 6 * 1280**2) + 16 * widths  # M2M-Self's keys, values, and a bias of these
    of_self = counted(paper, "self")
    assert of_self.dropped == text * widths
    assert of_self.kept == STABLE_DIFFUSION - of_self.dropped
    assert of_self.new == own + null + slots

    projection, level = 1024 * 1024 + 1024, 320 * 1024
    begun_anew, of_text = counted(paper, "dino"), counted(paper, "dino", caption_start=0)
    assert (of_text.kept, of_text.dropped) == (STABLE_DIFFUSION, 0)
    assert of_text.new == projection + level + null + slots
    assert begun_anew.parameters == of_text.parameters
    assert begun_anew.dropped == begun_anew.new - of_text.new == text * widths, "captions say what to read"
    assert counted(paper, "dino", encoder="clip") == begun_anew, "tokens of CLIP's image tower are as wide"

    assert {"self": of_self.parameters, "dino": begun_anew.parameters} == PARAMETERS
    assert [*COUNTED.values()] == [of_self, begun_anew], "no other profile is written down, and none is missing"
    assert {start: build_and_count(start) for start in COUNTED} == COUNTED
    assert str(of_self).startswith("867.2M parameters: 840.4M kept of Stable Diffusion's, 26.8M new; 25.6M of its own")


def test_the_published_configuration_says_nothing_that_the_network_does_not_know() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD_21_UNET)
    assert sum(parameter.numel() for parameter in unet.parameters()) == STABLE_DIFFUSION
    assert {key: unet.config[key] for key in SD_21_UNET} == SD_21_UNET


def test_of_other_repositories_nothing_is_known(paper: Params) -> None:
    foundation = paper.foundation
    assert isinstance(foundation, HubFoundation)
    other = HubSnapshot(repo="somebody/else", revision="0" * 40)
    assert network(foundation.model_copy(update={"stable_diffusion": other}), paper.train, "self", gpus=1) is None
    without_dino = foundation.model_copy(update={"dino": other})
    assert count(without_dino, paper.train, "dino") is None
    assert count(without_dino, paper.train, "self") is not None


@pytest.mark.parametrize("variant", ["self", "dino"])
def test_what_counts_as_kept_is_what_has_the_parent_s_values(variant: Variant, tiny_stable_diffusion: Path) -> None:
    parent = UNet2DConditionModel.from_pretrained(tiny_stable_diffusion, subfolder="unet")
    own = {"context_dim": 16} if variant == "dino" else {}
    unet = ImageSetUNet.from_stable_diffusion(tiny_stable_diffusion, variant=variant, max_context=3, **own)
    theirs = dict(parent.named_parameters())
    kept = {name for name, one in unet.named_parameters() if name in theirs and torch.equal(theirs[name], one)}
    found = compare(parent, unet, reads_anew=variant == "self")
    assert found.kept == sum(theirs[name].numel() for name in kept)
    assert found.parameters == found.kept + found.new == unet.num_parameters()
    assert parent.num_parameters() == found.kept + found.dropped
    assert (found.dropped > 0) == (variant == "self")


def test_the_state_is_that_of_training() -> None:
    trained = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(trained.parameters())
    moment = TrainState(network=trained, optimizers=(optimizer,), ema=Ema(trained, decay=0.9))
    trained(torch.ones(100)).sum().backward()
    gradients = sum(one.grad.nbytes for one in trained.parameters() if one.grad is not None)
    moment.step()
    kept = sum(tensor.nbytes for tensor in moment.tensors().values() if tensor.numel() > 1)  # AdamW counts its steps
    assert gradients + kept == STATE * 10_100


def test_gpus_share_what_is_sharded(paper: Params) -> None:
    foundation = paper.foundation
    assert isinstance(foundation, HubFoundation)
    alone, many = (network(foundation, paper.train, "self", gpus=gpus) for gpus in (1, 8))
    assert alone is not None
    assert many is not None
    assert alone.state == alone.sharded == state(PARAMETERS["self"]) == pytest.approx(16.15, abs=0.01)
    assert many.state == pytest.approx(alone.state * 24 / 20), "gradients once more, on their way"
    assert many.sharded == pytest.approx(alone.state * (24 - MOMENTS * 7 / 8) / 20)
    assert [*many.lines()][
        1
    ] == "19.4 GiB of state on each GPU, 13.7 if 8 GPUs shared Adam's moments, which they do not"
    assert [*alone.lines()][1] == "16.2 GiB of state on each GPU"
