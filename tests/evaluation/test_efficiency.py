"""What is timed and counted: a clock that counts its own calls stands where the real one would."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.evaluation import efficiency
from m2m.evaluation.efficiency import (
    META,
    Clock,
    hardware,
    image_set_costs,
    in_turn,
    operations,
    sets_of_noise,
    step_after_caption,
    steps_after_images,
    text_pass,
    time_after_caption,
    time_after_images,
)
from m2m.models.image_set_attention import ContextCache, ImageSetAttention, Window
from m2m.models.unet import ImageSetUNet
from m2m.params import SamplingParams, Variant
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
    sets = sets_of_noise(PARAMS, given=3, size=16)
    assert [[picture.size for picture in of_set] for of_set in sets] == [[(16, 16)] * 3] * 2
    again = sets_of_noise(PARAMS, given=3, size=16)
    assert all(
        np.array_equal(a, b) for one, two in zip(sets, again, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.slow
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


SIDE, WORDS, PATCHES, MOST = 8, 77, 16, 3
SIDES = {"down_blocks.0": 8, "down_blocks.1": 4, "mid_block": 4, "up_blocks.0": 4, "up_blocks.1": 8}
"""Of the latents at each block of the tiny U-Net."""


@pytest.fixture(scope="module")
def parent(tiny_stable_diffusion: Path) -> UNet2DConditionModel:
    config = UNet2DConditionModel.load_config(tiny_stable_diffusion, subfolder="unet")
    with META:
        return UNet2DConditionModel.from_config(config)


def image_set_unet(parent: UNet2DConditionModel, variant: Variant) -> tuple[ImageSetUNet, torch.Tensor]:
    """And what it reads of an image."""
    width = parent.config.cross_attention_dim
    with META:
        unet = ImageSetUNet.from_parent(
            parent, empty_prompt=torch.zeros(WORDS, width), variant=variant, max_context=MOST, context_dim=width
        )
        return unet, torch.empty(1, 4, SIDE, SIDE) if variant == "self" else torch.empty(1, PATCHES, width)


def queries(unet: ImageSetUNet) -> dict[ImageSetAttention, int]:
    """How many tokens of an image ask, at each block."""
    return {
        block: next(side for place, side in SIDES.items() if name.startswith(place)) ** 2
        for name, block in unet.attentions().items()
    }


def test_an_attention_is_two_products_and_its_projections() -> None:
    sets, asking, length, images, dim = 2, 64, 10, 3, 40
    with META:
        block = ImageSetAttention(
            dim=dim, inner_dim=dim, heads=5, token_dim=dim, max_context=images, null_tokens=WORDS, value_bias=False
        )
    cache = ContextCache(images)
    for _ in range(images):
        cache.append(block, *torch.empty(2, sets, length, dim, device=META))
    hidden = torch.empty(sets, asking, dim, device=META)
    counted = operations(lambda: block(hidden, Window(cache)))
    products = 2 * 2 * sets * asking * (WORDS + images * length) * dim
    projections = 2 * 2 * sets * asking * dim * dim  # queries and output
    assert counted == products + projections  # null rows need none: they are keys and values


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["self", "dino"])
def test_a_given_image_costs_the_products_with_its_tokens_until_the_window_is_full(
    parent: UNet2DConditionModel, variant: Variant
) -> None:
    unet, context = image_set_unet(parent, variant)
    guided = image_set_costs(unet, context, side=SIDE, guided=[1, 2, 3, 4, 7]).guided
    per_image = sum(
        2 * 2 * asking * (asking if variant == "self" else PATCHES) * block.to_q.out_features
        for block, asking in queries(unet).items()
    )
    assert guided[2] - guided[1] == guided[3] - guided[2] == per_image
    assert guided[MOST] == guided[4] == guided[7]


def test_a_step_differs_from_stable_diffusions_in_the_cross_attention_alone(parent: UNet2DConditionModel) -> None:
    unet, context = image_set_unet(parent, "dino")
    given, width = 2, parent.config.cross_attention_dim
    ours = image_set_costs(unet, context, side=SIDE, guided=[given]).guided[given]
    theirs, own = 0, 0
    for block, asking in queries(unet).items():
        dim, inner = block.to_q.in_features, block.to_q.out_features
        projections = 2 * 2 * asking * dim * inner  # queries and output
        theirs += 2 * (projections + 2 * 2 * WORDS * width * inner + 2 * 2 * asking * WORDS * inner)
        own += projections + 2 * 2 * asking * (WORDS + given * PATCHES) * inner  # the half with context
        own += projections + 2 * 2 * asking * WORDS * inner  # the half without
    assert 2 * text_pass(parent, side=SIDE, words=WORDS) - ours == theirs - own


@pytest.mark.slow
def test_only_what_is_asked_for_is_counted(parent: UNet2DConditionModel) -> None:
    unet, context = image_set_unet(parent, "self")
    found = image_set_costs(unet, context, side=SIDE, guided=[1], plain=[0, 2], reading=2)
    assert (list(found.guided), list(found.plain), len(found.reading)) == ([1], [0, 2], 2)
    assert 0 < found.plain[0] < found.plain[2] < found.guided[1]
    assert found.reading[0] < found.reading[1], "the second looks at the first"


def test_all_take_turns_and_the_first_turn_warms_up() -> None:
    called: list[str] = []

    def work(name: str) -> int:
        called.append(name)
        return len(called)

    assert in_turn([partial(work, "a"), partial(work, "b")], repeats=2) == [[3, 5], [4, 6]]
    assert called == ["a", "b"] * 3


def test_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = Clock("cuda:1")
    assert clock.taken(lambda: waited.append("work")) >= 0
    assert waited == ["cuda:1", "work", "cuda:1"]
    assert Clock("cpu").taken(lambda: None) >= 0
    assert len(waited) == 3


def test_what_computes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9000\nmodel name\t: Fast 9000\n")
    monkeypatch.setattr(efficiency, "PROCESSORS", tmp_path / "cpuinfo")
    assert hardware("cpu") == f"Fast 9000, {torch.get_num_threads()} threads, torch {torch.__version__}"
    monkeypatch.setattr(efficiency, "PROCESSORS", tmp_path / "none")
    assert hardware("cpu").endswith(f"torch {torch.__version__}")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert hardware("cuda:1") == f"GPU of cuda:1, torch {torch.__version__}"
