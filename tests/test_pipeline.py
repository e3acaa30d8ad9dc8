"""The pipeline draws what the network was trained to draw, whatever the batch, the solver and the way it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from m2m import seeds
from m2m.diffusion.gaussian import add_context_noise, alphas_cumprod
from m2m.errors import UserError
from m2m.models.context import dino_pixels, dino_tokens
from m2m.models.unet import ContextImages, ImageSetUNet
from m2m.params import Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from tests.drawing import MakePipeline, latents, photos

VARIANTS = pytest.mark.parametrize("variant", ["self", "dino"])


@VARIANTS
def test_untrained_and_without_images_it_is_stable_diffusion(
    make_pipeline: MakePipeline, tiny_stable_diffusion: Path, variant: Variant
) -> None:
    pipeline = make_pipeline(variant, trained=False)
    parent = StableDiffusionPipeline.from_pretrained(
        tiny_stable_diffusion, scheduler=pipeline.scheduler, safety_checker=None
    )
    parent.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "np", "latents": noise}
    expected = parent("", **options).images
    np.testing.assert_allclose(pipeline([], **options).images, expected, atol=1e-4)


@VARIANTS
@pytest.mark.parametrize(("max_context", "context_timestep"), [(8, 0), (3, 0), (3, 300), (2, 0)])
@pytest.mark.slow
def test_each_step_predicts_what_the_training_pass_predicts(
    make_pipeline: MakePipeline, variant: Variant, max_context: int, context_timestep: int
) -> None:
    pipeline, given, count = make_pipeline(variant, max_context=max_context), photos(2), 3
    steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def listen(_: object, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        sample, timestep, window = inputs
        if not window.record:
            steps.append((sample, timestep, output[0]))

    with pipeline.unet.register_forward_hook(listen) and torch.no_grad():
        options = {"guidance_scale": 1.0, "context_timestep": context_timestep}
        drawn = latents(pipeline, given, count, **options)
        pictures = pipeline(given, count, num_inference_steps=2, generator=7, **options).images

        products = alphas_cumprod(pipeline.scheduler.config, "epsilon")
        if variant == "self":
            images = torch.stack([torch.from_numpy(np.array(photo)) for photo in given]).permute(0, 3, 1, 2) / 127.5 - 1
            encoded = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
            context = torch.cat([encoded, drawn])
        else:
            images = torch.stack([torch.from_numpy(np.array(picture)) for picture in [*given, *pictures]])
            context = dino_pixels(images.permute(0, 3, 1, 2), pipeline.feature_extractor)
        noise = [
            torch.randn(image.shape, generator=seeds.generator(7, "context", i)) for i, image in enumerate(context)
        ]
        levels = torch.full((len(context),), context_timestep)
        context = add_context_noise(context, torch.stack(noise), levels, products)
        context = dino_tokens(pipeline.image_encoder, context) if variant == "dino" else context

        for call, (sample, timestep, prediction) in enumerate(steps[: 2 * count]):
            position = len(given) + call // 2
            noisy = torch.zeros(1, position + 1, 4, 8, 8)
            noisy[:, position] = sample
            sets = ContextImages(context[None, :position], levels[None, :position], given=len(given))
            trained = pipeline.unet.forward_sets(noisy, timestep.expand(1, position + 1), sets)
            torch.testing.assert_close(prediction, trained[:, position], rtol=1e-3, atol=1e-4)


@VARIANTS
@pytest.mark.parametrize("context_timestep", [0, 300])
@pytest.mark.slow
def test_the_cache_changes_nothing_but_rounding(
    make_pipeline: MakePipeline, variant: Variant, context_timestep: int
) -> None:
    pipeline = make_pipeline(variant, max_context=3)
    cached, anew = (
        latents(pipeline, photos(2), 4, context_timestep=context_timestep, use_cache=use_cache)
        for use_cache in (True, False)
    )
    torch.testing.assert_close(cached, anew, rtol=1e-4, atol=1e-5)


@VARIANTS
def test_an_image_goes_through_the_network_once_for_the_cache(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline, passes = make_pipeline(variant), []
    with pipeline.unet.register_forward_hook(lambda _, inputs, __: passes.append(inputs[2].record)):
        latents(pipeline, photos(2), 3, num_inference_steps=4)
    assert sum(passes) == 2 + 2  # two given ones, and all drawn ones but the last, which none follows
    assert len(passes) - sum(passes) == 3 * 4


@VARIANTS
def test_given_images_stay_and_drawn_ones_leave(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline, given = make_pipeline(variant, max_context=3), photos(3)
    alone = torch.cat([latents(pipeline, given, 3, latents=noise) for noise in torch.zeros(2, 3, 4, 8, 8)])
    assert torch.equal(alone[1], alone[0]), "three given ones fill the window: no drawn one is read"
    two = latents(pipeline, given[1:], 3, latents=torch.zeros(3, 4, 8, 8))
    assert not torch.allclose(two[1], two[0], atol=1e-4)


@VARIANTS
def test_of_more_given_images_than_fit_the_newest_are_read_and_one_is_told(
    make_pipeline: MakePipeline, variant: Variant, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, given = make_pipeline(variant, max_context=3), photos(5)
    expected = latents(pipeline, given[2:], 2)
    assert not caplog.records
    assert torch.equal(latents(pipeline, given, 2), expected)
    (record,) = caplog.records
    assert record.name.startswith("m2m.")
    assert record.levelname == "WARNING"
    words = "5 images are given, the model's window holds 3: it reads the last 3 of them, not the first 2"
    assert record.getMessage() == words
    nested = latents(pipeline, [given, given[:1]], 2, generator=[7, 8])
    torch.testing.assert_close(nested[0], expected, rtol=1e-3, atol=1e-4 if variant == "self" else 5e-3)


@pytest.mark.parametrize("count", [3, 4])
def test_to_dino_without_slots_the_order_of_given_images_is_nothing(make_pipeline: MakePipeline, count: int) -> None:
    """What a set without an order teaches: slots are not learnt there (`freeze_slots`)."""
    pipeline, given = make_pipeline("dino", max_context=4), photos(count)
    for attention in pipeline.unet.attentions().values():
        torch.nn.init.zeros_(attention.slot_embedding)
    drawn = latents(pipeline, given, 3, generator=1)
    for order in ([2, 0, 1, 3], [1, 0, 2, 3], [2, 1, 0, 3]):
        # DINOv2 reads drawn pictures in 8 bits: what differs in the last bit may round to the next of 256 values.
        again = latents(pipeline, [given[place] for place in order[:count]], 3, generator=1)
        torch.testing.assert_close(again[0], drawn[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(again, drawn, rtol=1e-3, atol=5e-3)
    assert not torch.allclose(latents(pipeline, given[:2], 3, generator=1), drawn, atol=1e-2)


@VARIANTS
def test_image_k_does_not_depend_on_how_many_are_drawn(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline = make_pipeline(variant)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)  # draws noise itself
    few, many = (latents(pipeline, photos(1), count, context_timestep=50) for count in (2, 4))
    assert torch.equal(few, many[:2])
    assert len({image.sum().item() for image in many}) == 4


@VARIANTS
def test_a_batch_of_sets_of_any_sizes_is_each_set_alone(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline = make_pipeline(variant, max_context=2)
    sets = [photos(2), photos(1), [], photos(3)[:2]]
    together = latents(pipeline, sets, 2, generator=[1, 2, 3, 4], context_timestep=50)
    for index, images in enumerate(sets):
        alone = latents(pipeline, images, 2, generator=index + 1, context_timestep=50)
        # DINOv2 reads drawn pictures in 8 bits: what differs in the last bit may round to the next of 256 values.
        torch.testing.assert_close(together[index], alone, rtol=1e-3, atol=1e-4 if variant == "self" else 5e-3)


def test_guidance_leads_away_from_the_empty_context(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, start = make_pipeline("dino"), torch.randn(1, 4, 8, 8)
    used: list[Tensor] = []
    step = DDIMScheduler.step

    @wraps(step)
    def note(scheduler: DDIMScheduler, prediction: Tensor, *rest: Any, **more: Any) -> Any:
        used.append(prediction)
        return step(scheduler, prediction, *rest, **more)

    monkeypatch.setattr(DDIMScheduler, "step", note)
    options = {"latents": start, "num_inference_steps": 1}
    latents(pipeline, [], 1, **options)
    for guidance_scale in (1.0, 4.0):
        latents(pipeline, photos(1), 1, guidance_scale=guidance_scale, **options)
    empty, given, guided = used
    assert not torch.allclose(given, empty, atol=1e-2)
    torch.testing.assert_close(guided, empty + 4.0 * (given - empty), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' Euler schedulers
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
@pytest.mark.slow
def test_every_scheduler_draws_and_starts_each_image_afresh(
    make_pipeline: MakePipeline, scheduler: type[SchedulerMixin]
) -> None:
    pipeline = make_pipeline("self")
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    first = latents(pipeline, photos(1), 2, num_inference_steps=3)
    assert first.isfinite().all()
    assert torch.equal(latents(pipeline, photos(1), 2, num_inference_steps=3), first)
    alone = latents(pipeline, photos(1), 1, num_inference_steps=3)
    assert torch.equal(alone, first[:1])


def test_velocity_prediction_reaches_the_scheduler(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("self")
    noise = latents(pipeline, photos(1), 1)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    assert not torch.allclose(latents(pipeline, photos(1), 1, context_timestep=50), noise)


def test_seeds_may_come_as_numbers_and_generators_one_or_one_a_set(make_pipeline: MakePipeline) -> None:
    pipeline, given = make_pipeline("self"), photos(1)
    drawn = latents(pipeline, given, 1, generator=5)
    used = torch.Generator().manual_seed(5)
    torch.randn(3, generator=used)  # the initial seed counts, not the state
    assert torch.equal(latents(pipeline, given, 1, generator=used), drawn)
    assert torch.equal(latents(pipeline, [given], 1, generator=[5])[0], drawn)
    first, second = latents(pipeline, [given, given], 1, generator=5)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    anew = [latents(pipeline, given, 1, generator=None) for _ in range(2)]
    assert not torch.allclose(*anew)
    torch.manual_seed(0)
    assert torch.equal(latents(pipeline, given, 1, generator=None), anew[0])
    with pytest.raises(ValueError, match="2 generators for 1 sets"):
        latents(pipeline, given, 1, generator=[1, 2])


def test_the_initial_noise_may_be_given(make_pipeline: MakePipeline) -> None:
    pipeline, noise = make_pipeline("self"), torch.randn(2, 2, 4, 8, 8)
    alone = latents(pipeline, photos(1), 2, latents=noise[1])
    assert not torch.allclose(alone, latents(pipeline, photos(1), 2))
    assert torch.equal(latents(pipeline, photos(1), 2, latents=noise[1], generator=8), alone)
    torch.testing.assert_close(
        latents(pipeline, [photos(2), photos(1)], 2, latents=noise)[1], alone, rtol=1e-3, atol=1e-4
    )
    with pytest.raises(ValueError, match=r"are \(1, 2, 4, 8, 8\), not \(1, 3, 4, 8, 8\)"):
        latents(pipeline, photos(1), 2, latents=torch.randn(3, 4, 8, 8))


def test_every_output_type_holds_the_same_images(make_pipeline: MakePipeline) -> None:
    pipeline, sets = make_pipeline("self"), [photos(1), photos(1)]
    outputs = {
        kind: [
            pipeline(images, 2, num_inference_steps=2, generator=generator, output_type=kind).images
            for images, generator in ((photos(1), 3), (sets, [3, 4]))
        ]
        for kind in ("pil", "np", "pt", "latent")
    }
    pictures = np.stack([np.asarray(picture) for picture in outputs["pil"][0]])
    assert pictures.shape == (2, 64, 64, 3)
    assert [len(of_set) for of_set in outputs["pil"][1]] == [2, 2]
    assert np.array_equal((outputs["np"][0] * 255).round().astype(np.uint8), pictures)
    assert torch.equal(outputs["pt"][0], torch.from_numpy(outputs["np"][0]).permute(0, 3, 1, 2))
    assert outputs["np"][1].shape == (2, 2, 64, 64, 3)
    assert outputs["pt"][1].shape == (2, 2, 3, 64, 64)
    assert outputs["latent"][0].shape == (2, 4, 8, 8)
    assert outputs["latent"][1].shape == (2, 2, 4, 8, 8)
    decoded = pipeline.vae.decode(outputs["latent"][0] / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), outputs["pt"][0], rtol=1e-4, atol=1e-5)
    assert isinstance(pipeline(photos(1), num_inference_steps=1, return_dict=False), tuple)


def test_a_callback_sees_each_step_and_may_change_the_latents(make_pipeline: MakePipeline) -> None:
    pipeline, seen, timesteps = make_pipeline("self"), [], []

    def note(pipeline: M2MPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        timesteps.append(pipeline.scheduler.timesteps.tolist())
        seen.append((state["image"], step, int(timestep), tuple(state["latents"].shape)))
        return {"latents": torch.zeros_like(state["latents"])} if state["image"] == 1 else {}

    drawn = latents(pipeline, photos(1), 2, callback_on_step_end=note)
    assert seen == [(image, step, timesteps[0][step], (1, 4, 8, 8)) for image in range(2) for step in range(2)]
    assert len(timesteps[0]) == pipeline.num_timesteps == 2
    assert drawn[0].any()
    assert not drawn[1].any()


def test_progress_counts_all_steps(make_pipeline: MakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = make_pipeline("self")
    pipeline.set_progress_bar_config(disable=False)
    latents(pipeline, [photos(1), photos(2)], 3)  # two groups
    assert "12/12" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"num_images": 0}, {"num_inference_steps": 0}])
def test_nothing_wanted_is_an_error(make_pipeline: MakePipeline, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 image and 1 step"):
        make_pipeline("self")(photos(1), **{"num_images": 1, **wrong})


@VARIANTS
def test_a_saved_pipeline_comes_back_to_the_bit_without_pickle(
    make_pipeline: MakePipeline, tmp_path: Path, variant: Variant
) -> None:
    make_pipeline(variant, max_context=3).save_pretrained(tmp_path / "once")
    assert load_pipeline(tmp_path / "once", precision="bfloat16").dtype == torch.bfloat16
    pipeline = load_pipeline(tmp_path / "once")
    pipeline.save_pretrained(tmp_path / "twice")
    again = M2MPipeline.from_pretrained(tmp_path / "twice")
    names = [path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*") if path.is_file()]
    assert {name.suffix for name in names} == {".json", ".safetensors"}
    for name in names:
        if name.suffix == ".safetensors":
            assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert isinstance(again.unet, ImageSetUNet)
    assert (again.image_encoder is None) == (variant == "self")
    assert torch.equal(*(latents(each, photos(1), 2) for each in (pipeline, again)))


def test_offloading_reaches_every_network(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("dino")
    expected = latents(pipeline, photos(1), 2)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(part, "_hf_hook") for part in (pipeline.image_encoder, pipeline.unet, pipeline.vae))
    assert torch.equal(latents(pipeline, photos(1), 2), expected)


def damage(folder: Path, kind: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    match kind:
        case "no folder":
            folder.rename(folder.with_name("elsewhere"))
        case "no index":
            (folder / "model_index.json").unlink()
        case "broken index":
            (folder / "model_index.json").write_text("{", encoding="utf-8")
        case "another model":
            index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
            (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "Other"}), encoding="utf-8")
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "no configuration":
            (folder / "vae" / "config.json").unlink()
        case "no scheduler":
            (folder / "scheduler" / "scheduler_config.json").unlink()


@pytest.mark.parametrize(
    "kind",
    [
        *("no folder", "no index", "broken index", "another model"),
        *("no weights", "half the weights", "no configuration", "no scheduler"),
    ],
)
def test_a_bad_model_folder_is_named_in_one_line(make_pipeline: MakePipeline, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    make_pipeline("self").save_pretrained(folder)
    damage(folder, kind)
    with pytest.raises(UserError, match=str(folder)) as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)


@contextmanager
def torch_defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    """What somebody else in the process made torch's defaults."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@VARIANTS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_seed_draws_the_same_whatever_torchs_defaults_are(
    make_pipeline: MakePipeline, variant: Variant, dtype: torch.dtype
) -> None:
    pipeline = make_pipeline(variant)
    expected = latents(pipeline, photos(1), 2, context_timestep=50)
    with torch_defaults(dtype, "meta"):
        drawn = latents(pipeline, photos(1), 2, context_timestep=50)
        torch.manual_seed(0)
        anew = latents(pipeline, photos(1), 1, generator=None)
    assert torch.equal(drawn, expected)
    torch.manual_seed(0)
    assert torch.equal(latents(pipeline, photos(1), 1, generator=None), anew)


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), np.array(5), torch.tensor(5)])
def test_a_seed_may_be_an_integer_of_any_type(make_pipeline: MakePipeline, seed: Any) -> None:
    pipeline, given = make_pipeline("self"), photos(1)
    drawn = latents(pipeline, given, 1, generator=5, num_inference_steps=1)
    assert torch.equal(latents(pipeline, given, 1, generator=seed, num_inference_steps=1), drawn)


@VARIANTS
def test_below_one_there_is_no_guidance(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline = make_pipeline(variant)
    plain = latents(pipeline, photos(1), 2, guidance_scale=1.0)
    for scale in (0.0, 0.5, -1.0):
        assert torch.equal(latents(pipeline, photos(1), 2, guidance_scale=scale), plain)
    assert not torch.equal(latents(pipeline, photos(1), 2, guidance_scale=1.5), plain)
    with pytest.raises(ValueError, match="guidance_scale is a finite number, not nan"):
        latents(pipeline, photos(1), 1, guidance_scale=float("nan"))


@VARIANTS
@pytest.mark.parametrize("network", [torch.bfloat16, torch.float32])
@pytest.mark.slow
def test_networks_may_be_of_different_precision(
    make_pipeline: MakePipeline, variant: Variant, network: torch.dtype
) -> None:
    pipeline = make_pipeline(variant)
    expected = pipeline(photos(2), 2, num_inference_steps=2, generator=7, context_timestep=50, output_type="pt").images
    pipeline.unet.to(network)
    pipeline.vae.to(torch.float32 if network == torch.bfloat16 else torch.bfloat16)
    options = {"num_inference_steps": 2, "generator": 7, "context_timestep": 50}
    drawn = pipeline(photos(2), 2, output_type="pt", **options).images
    assert drawn.dtype == pipeline.vae.dtype
    assert (drawn - expected).square().mean().sqrt() < 0.05
    assert len(pipeline(list(drawn), 1, num_inference_steps=1).images) == 1, "what it drew is given to it"


def test_diffusers_loads_a_model_folder_by_the_class_that_it_names(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline("self")
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, M2MPipeline)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents(loaded, photos(1), 1), latents(pipeline, photos(1), 1))


def test_a_scheduler_of_another_family_is_told_in_one_line(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("self")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(UserError, match=r"^FlowMatchEulerDiscreteScheduler .* DDIM") as error:
        latents(pipeline, photos(1), 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_type": "pillow"}, "output_type is one of pil, np, pt, latent, not 'pillow'"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "a tensor, not of type ndarray"),
        ({"generator": 1.5}, "a seed is an integer or a torch.Generator, not float"),
    ],
)
def test_an_argument_of_another_kind_is_told_in_one_line(
    make_pipeline: MakePipeline, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        latents(make_pipeline("self"), photos(1), 1, **wrong)
    assert "\n" not in str(error.value)
