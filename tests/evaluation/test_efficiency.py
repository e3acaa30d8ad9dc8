"""What is timed and counted: a clock that counts its own calls stands where the real one would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.evaluation.efficiency import (
    random_sets,
    step_after_caption,
    steps_after_images,
    time_after_caption,
    time_after_images,
)
from m2m.evaluation.timing import Clock
from m2m.models.unet import Variant
from m2m.params import SamplingParams
from m2m.params_file import load_params
from m2m.pipeline import M2MPipeline
from m2m.training.start import from_stable_diffusion

PARAMS = SamplingParams(
    seed=0,
    given=(1, 2),
    solver="ddim",
    num_inference_steps=4,
    guidance_scale=3.0,
    batch_size=2,
    precision="float32",
    repeats=1,
)
WINDOW = 2


class Counting(Clock):
    """Every look at it takes a second, and what is done in between takes none."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> float:
        self.looks += 1
        return float(self.looks)


@pytest.fixture(scope="module")
def base(tiny_stable_diffusion: Path) -> StableDiffusion:
    return StableDiffusion(
        tiny_stable_diffusion, solver="ddim", num_inference_steps=4, guidance_scale=3.0, device="cpu"
    )


@pytest.fixture(scope="module")
def pipelines(
    tiny_stable_diffusion: Path, tiny_dino: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Variant, M2MPipeline]:
    foundation = tmp_path_factory.mktemp("efficiency")
    (foundation / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    (foundation / "dino").symlink_to(tiny_dino)
    common = load_params(Path(__file__).parents[2] / "profiles" / "smoke.yaml").train.common
    common = common.model_copy(update={"max_context": WINDOW})
    made: dict[Variant, M2MPipeline] = {
        "self": from_stable_diffusion(foundation, "self", common),
        "dino": from_stable_diffusion(foundation, "dino", common),
    }
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


def test_reading_drawing_and_decoding_stand_apart(base: StableDiffusion) -> None:
    found = time_after_caption(base, PARAMS, Counting())
    assert found == {"seconds": 0.5, "reading_seconds": 0.5, "decoding_seconds": 0.5}, "a second each, for two images"


@pytest.mark.parametrize("variant", ["self", "dino"])
def test_all_steps_are_drawing_and_what_comes_before_them_is_reading(
    variant: Variant, pipelines: dict[Variant, M2MPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, int]] = []
    unet, clock = pipelines[variant].unet, Counting()
    forward = unet.forward

    def noted(sample: torch.Tensor, *rest: object, **options: object) -> object:
        passes.append((len(sample), clock.looks))
        return forward(sample, *rest, **options)

    monkeypatch.setattr(unet, "forward", noted)
    found = time_after_images(pipelines[variant], 2, PARAMS, clock)
    # One look before, one after the first step and one after the last: the 3 steps between them took a second.
    assert found == {"seconds": pytest.approx(4 / 3 / 2), "reading_seconds": pytest.approx((2 - 4 / 3) / 2)}
    reading, first, others = [(2, 1)] * 2, [(4, 1)], [(4, 2)] * 3
    assert passes == reading + first + others, "two sets read two images each, then draw with guidance"


def test_given_images_are_the_same_every_time_and_noise() -> None:
    sets = random_sets(PARAMS, given=3, size=16)
    assert [[picture.size for picture in of_set] for of_set in sets] == [[(16, 16)] * 3] * 2
    again = random_sets(PARAMS, given=3, size=16)
    assert all(
        np.array_equal(a, b) for one, two in zip(sets, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_operations_are_those_of_the_very_networks(
    base: StableDiffusion, tiny_stable_diffusion: Path, pipelines: dict[Variant, M2MPipeline]
) -> None:
    text = step_after_caption(base, tiny_stable_diffusion)
    for variant, pipeline in pipelines.items():
        steps = steps_after_images(pipeline, [1, 2, 9])
        per_image = 0
        for name, block in pipeline.unet.attentions().items():
            asking = 64 if name.startswith(("down_blocks.0", "up_blocks.1")) else 16
            per_image += 2 * 2 * asking * (asking if variant == "self" else 16) * block.to_q.out_features
        assert steps[2] - steps[1] == per_image
        assert steps[9] == steps[WINDOW]
        assert text / 2 < steps[1] < text, "one image has fewer tokens than a text, and half of the batch sees none"
