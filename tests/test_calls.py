"""A call of the pipeline: what it may be given, and that others beside it change nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, Event, get_ident
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback
from PIL import Image
from torch import Tensor

from m2m.calls import pixels_of, seeds_of_sets, sets_of
from m2m.pipeline import M2MPipeline
from tests.drawing import MakePipeline, latents, photos

State = dict[str, Any]
JOBS = (
    {"num_images": 2, "num_inference_steps": 3, "generator": 1},
    {"num_images": 1, "num_inference_steps": 5, "generator": 2, "guidance_scale": 1.0},
    {"num_images": 2, "num_inference_steps": 4, "generator": 3, "context_timestep": 50},
)


def at_once(jobs: list[Callable[[], Tensor]]) -> list[Tensor]:
    with ThreadPoolExecutor(len(jobs)) as threads:
        return [future.result(timeout=120) for future in [threads.submit(job) for job in jobs]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' Euler schedulers
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_calls_in_threads_draw_what_they_draw_alone(
    make_pipeline: MakePipeline, scheduler: type[SchedulerMixin]
) -> None:
    pipeline = make_pipeline("self")
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    alone = [latents(pipeline, photos(1), **job) for job in JOBS]
    together = Barrier(len(JOBS))

    def in_step(_: M2MPipeline, step: int, __: object, state: State) -> State:
        if state["image"] == 0 and step < 3:
            together.wait(timeout=60)  # all of them are in the midst of an image
        return state

    jobs = [partial(latents, pipeline, photos(1), **job, callback_on_step_end=in_step) for job in JOBS]
    for drawn, expected in zip(at_once(jobs), alone, strict=True):
        assert torch.equal(drawn, expected)


def test_a_callback_may_draw_with_the_pipeline_that_calls_it(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("self")
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    expected, inner = latents(pipeline, photos(1), 2, num_inference_steps=3), []

    def draw(_: M2MPipeline, step: int, __: object, state: State) -> State:
        if step == 1:
            inner.append(latents(pipeline, photos(1), 2, num_inference_steps=3))
        return state

    assert torch.equal(latents(pipeline, photos(1), 2, num_inference_steps=3, callback_on_step_end=draw), expected)
    assert all(torch.equal(drawn, expected) for drawn in inner)


def test_a_call_leaves_the_scheduler_as_it_is(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("self")
    before, found = pipeline.scheduler.timesteps.clone(), []
    latents(pipeline, [], 1, callback_on_step_end=lambda call, *_: found.append(call.scheduler.timesteps.tolist()))
    assert torch.equal(pipeline.scheduler.timesteps, before)
    assert found[0] == [501, 1]


def test_networks_whose_weights_come_and_go_serve_one_call_at_a_time(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("dino")
    alone = [latents(pipeline, photos(1), **job) for job in JOBS]
    pipeline.enable_model_cpu_offload(device="cpu")
    steps: list[int] = []

    def note(_: M2MPipeline, __: int, ___: object, state: State) -> State:
        steps.append(get_ident())
        return state

    jobs = [partial(latents, pipeline, photos(1), **job, callback_on_step_end=note) for job in JOBS]
    for drawn, expected in zip(at_once(jobs), alone, strict=True):
        assert torch.equal(drawn, expected)
    turns = [now for before, now in zip([None, *steps], steps, strict=False) if now != before]
    assert len(turns) == len(set(turns)) == len(JOBS), "none draws while another one does"


def stop(_: M2MPipeline, step: int, __: object, state: State, *, who: M2MPipeline | None = None) -> State:
    if (state["image"], step) == (1, 0):
        (who or _)._interrupt = True
    return state


@pytest.mark.parametrize("own", [True, False])
def test_an_interrupted_call_returns_what_it_has(make_pipeline: MakePipeline, own: bool) -> None:
    pipeline, seen = make_pipeline("self"), []
    whole = latents(pipeline, photos(1), 3, callback_on_step_end=lambda *all_: seen.append(all_[3]["latents"]))
    callback = partial(stop, who=None if own else pipeline)
    drawn = latents(pipeline, photos(1), 3, callback_on_step_end=callback)
    assert torch.equal(drawn, torch.stack([whole[0], seen[2][0]])), "the second as it is, the third not at all"
    assert torch.equal(latents(pipeline, photos(1), 3), whole), "the next call draws on"
    options = {"num_inference_steps": 2, "generator": [7, 8], "callback_on_step_end": callback}
    for output_type in ("pil", "np", "pt", "latent"):  # of two groups the second has not begun
        first, second = pipeline([photos(1), photos(2)], 3, output_type=output_type, **options).images
        assert (len(first), len(second)) == (2, 0)


def test_to_interrupt_one_call_leaves_the_others_and_to_interrupt_the_pipeline_none(
    make_pipeline: MakePipeline,
) -> None:
    pipeline, stopped, begun = make_pipeline("self"), Event(), Barrier(3)
    whole = latents(pipeline, photos(1), 3)

    def first(call: M2MPipeline, step: int, timestep: object, state: State) -> State:
        if (state["image"], step) == (0, 0):
            begun.wait(timeout=60)
        call._interrupt = state["image"] == 1
        return state

    def other(_: M2MPipeline, step: int, __: object, state: State) -> State:
        if (state["image"], step) == (0, 0):
            begun.wait(timeout=60)
            assert stopped.wait(timeout=60)
        return state

    def draw(callback: Callable[..., State]) -> Tensor:
        return latents(pipeline, photos(1), 3, callback_on_step_end=callback)

    with ThreadPoolExecutor(2) as threads:
        ended, going = threads.submit(draw, first), threads.submit(draw, other)
        begun.wait(timeout=60)
        assert len(ended.result(timeout=60)) == 2
        stopped.set()
        assert torch.equal(going.result(timeout=60), whole)
        begun.reset()
        stopped.clear()
        both = [threads.submit(draw, other) for _ in range(2)]
        begun.wait(timeout=60)
        pipeline._interrupt = True
        stopped.set()
        assert [len(each.result(timeout=60)) for each in both] == [1, 1]


@pytest.mark.parametrize("several", [False, True])
def test_guidance_may_be_cut_off_in_the_midst_of_each_image(make_pipeline: MakePipeline, several: bool) -> None:
    pipeline, rows = make_pipeline("self"), []
    cutoff: Any = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    cutoff = MultiPipelineCallbacks([cutoff]) if several else cutoff
    options = {"num_inference_steps": 4, "guidance_scale": 3.0}
    with pipeline.unet.register_forward_hook(
        lambda _, inputs, __: None if inputs[2].record else rows.append(len(inputs[0]))
    ):
        drawn = latents(pipeline, photos(1), 2, callback_on_step_end=cutoff, **options)
    assert rows == [2, 2, 2, 1] * 2
    assert torch.equal(latents(pipeline, photos(1), 1, callback_on_step_end=cutoff, **options), drawn[:1])
    assert not torch.equal(latents(pipeline, photos(1), 2, **options), drawn)
    assert (pipeline.guidance_scale, pipeline.num_timesteps) == (3.0, 4)

    def weaker(call: M2MPipeline, step: int, _: object, state: State) -> State:
        assert call.do_classifier_free_guidance == (call.guidance_scale > 1)
        call._guidance_scale = 3.0 if step < 2 else 0.0
        return state

    assert torch.equal(latents(pipeline, photos(1), 2, callback_on_step_end=weaker, **options), drawn)


def test_a_callback_is_told_what_it_may_ask_for(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("self")
    cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=0.5)
    with pytest.raises(
        ValueError, match=r"latents and prompt_embeds of this pipeline, not for add_text_embeds"
    ) as error:
        latents(pipeline, photos(1), 1, callback_on_step_end=cutoff)
    assert "\n" not in str(error.value)
    found: list[set[str]] = []
    options = {"callback_on_step_end": lambda *all_: found.append({*all_[3]})}
    latents(pipeline, photos(1), 1, num_inference_steps=1, callback_on_step_end_tensor_inputs=[], **options)
    latents(pipeline, photos(1), 1, num_inference_steps=1, **options)
    assert found == [{"image"}, {"image", "latents"}]


PICTURE = Image.new("RGB", (8, 8))
ARRAYS = np.zeros((2, 8, 8, 3), np.uint8)
TENSORS = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "counts", "nested"),
    [
        ([], [0], False),
        ([PICTURE], [1], False),
        ((PICTURE, ARRAYS[0], TENSORS[0]), [3], False),
        (ARRAYS, [2], False),
        (TENSORS, [2], False),
        (iter([PICTURE, PICTURE]), [2], False),
        (np.array([PICTURE, None], dtype=object)[:1], [1], False),
        ([[]], [0], True),
        ([[PICTURE], (PICTURE, PICTURE), []], [1, 2, 0], True),
        ([ARRAYS, TENSORS, [PICTURE]], [2, 2, 1], True),
        (ARRAYS[None], [2], True),
        (TENSORS[None].expand(3, -1, -1, -1, -1), [2, 2, 2], True),
    ],
)
def test_sets_are_lists_of_pictures(images: Any, counts: list[int], nested: bool) -> None:
    sets, came_nested = sets_of(images)
    assert ([len(pictures) for pictures in sets], came_nested) == (counts, nested)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("cat.png", r"not the path 'cat.png'; give \[PIL"),
        (Path("cat.png"), r"not the path PosixPath\('cat.png'\)"),
        (PICTURE, r"not a single one; give \[picture\]"),
        (ARRAYS[0], "not a single one"),
        (TENSORS[0], "not a single one"),
        (ARRAYS[0, :, :, 0], "not a single one"),
        (["cat.png"], r"images\[0\] is the path 'cat.png'; give a Pillow image"),
        ([[PICTURE], [PICTURE, Path("a")]], r"images\[1\]\[1\] is the path"),
        ([PICTURE, None], r"images\[1\] is of type NoneType"),
        ([[[PICTURE]]], r"images\[0\]\[0\] is of type list"),
        ([PICTURE, [PICTURE]], "not of both"),
        ([ARRAYS, PICTURE], "not of both"),
        (None, "not of type NoneType"),
        (5, "not of type int"),
        ({"image": PICTURE}, "not of type dict"),
    ],
)
def test_what_is_no_list_of_pictures_is_told_in_one_line(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        sets_of(images)
    assert "\n" not in str(error.value)


def test_which_picture_is_none_is_told() -> None:
    with pytest.raises(ValueError, match=r"^given image 1 of set 2: .* not 0 to 5; "):
        pixels_of([[], [PICTURE], [PICTURE, np.full((8, 8, 3), [0.0, 1.0, 5.0])]], 8)
    assert pixels_of([[], [PICTURE, TENSORS[0]]], 4)[1][1].shape == (3, 4, 4)


def test_seeds_are_integers_or_generators() -> None:
    used = torch.Generator().manual_seed(5)
    for seeds in ([5, 6], (np.int64(5), np.uint8(6)), np.array([5, 6]), torch.tensor([5, 6]), range(5, 7), [used, 6]):
        assert seeds_of_sets(seeds, 2, True) == [5, 6]
    for seed in (5, np.int32(5), np.array(5), torch.tensor(5), used):
        assert seeds_of_sets(seed, 1, False) == [5]
        assert seeds_of_sets(seed, 2, True) == seeds_of_sets(5, 2, True) != [5, 5]
    for wrong, kind in ((1.5, "float"), ("7", "str"), (np.random.default_rng(1), "Generator"), ([1, None], "NoneType")):
        with pytest.raises(ValueError, match=kind) as error:
            seeds_of_sets(wrong, 2, True)
        assert "\n" not in str(error.value)
