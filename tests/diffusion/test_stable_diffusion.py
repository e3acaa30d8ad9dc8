import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil

from m2m.diffusion.stable_diffusion import SafetyChecker, StableDiffusion
from m2m.errors import UserError
from m2m.params import Precision
from tests.safety import write_safety_checker

CAPTIONS = ["a red star, neon", "", "a blue moon " * 30]


def load(folder: Path, *, guidance_scale: float = 4.0, precision: Precision = "float32") -> StableDiffusion:
    return StableDiffusion(
        folder,
        solver="ddim",
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        device="cpu",
        precision=precision,
    )


@pytest.fixture(scope="module")
def model(tiny_stable_diffusion: Path) -> StableDiffusion:
    return load(tiny_stable_diffusion)


def noises(model: StableDiffusion, count: int) -> Tensor:
    return torch.stack([model.noise(seed) for seed in range(count)])


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0, 4.0])
def test_it_draws_what_the_diffusers_pipeline_draws(guidance_scale: float, tiny_stable_diffusion: Path) -> None:
    model = load(tiny_stable_diffusion, guidance_scale=guidance_scale)
    noise = noises(model, 3)
    latents = model.denoise(noise, model.embed(CAPTIONS))
    pictures = model.decode(latents)

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_stable_diffusion, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "latents": noise}
    torch.testing.assert_close(latents, pipeline(CAPTIONS, output_type="latent", **options).images)
    theirs = torch.from_numpy(pipeline(CAPTIONS, output_type="np", **options).images)
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (3, model.image_size, model.image_size, 3) == (3, 64, 64, 3)
    assert (pictures - (theirs * 255)).abs().max() < 0.51


def test_half_the_precision_draws_nearly_the_same(model: StableDiffusion, tiny_stable_diffusion: Path) -> None:
    half = load(tiny_stable_diffusion, precision="bfloat16")
    assert half.embed(CAPTIONS).dtype == torch.bfloat16
    noise = noises(model, 3)
    expected, latents = (one.denoise(noise, one.embed(CAPTIONS)) for one in (model, half))
    assert latents.dtype == torch.float32
    difference = (latents - expected).std() / expected.std()
    assert 0 < difference < 0.05
    pictures = half.decode(latents).float()
    assert (pictures - model.decode(latents).float()).abs().mean() < 2


def test_rows_of_a_batch_do_not_influence_each_other(model: StableDiffusion) -> None:
    noise, embeddings = noises(model, 3), model.embed(CAPTIONS)
    expected = model.denoise(noise, embeddings)
    embeddings = embeddings.clone()
    noise[1], embeddings[1] = float("nan"), float("nan")
    latents = model.denoise(noise, embeddings)
    assert torch.equal(latents[[0, 2]], expected[[0, 2]])
    assert latents[1].isnan().all()


def test_threads_that_share_it_embed_what_one_alone_does(model: StableDiffusion) -> None:
    alone = model.embed(CAPTIONS)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: model.embed(CAPTIONS), range(64)):
            torch.testing.assert_close(together, alone)


def test_the_noise_hangs_on_the_seed_alone(model: StableDiffusion) -> None:
    torch.manual_seed(0)
    first = model.noise(2**63 - 1)
    assert first.shape == model.latent_shape == (4, 8, 8)
    assert torch.equal(model.noise(2**63 - 1), first)
    assert not torch.equal(model.noise(2**63 - 2), first)


def test_what_is_not_finite_is_black_and_leaves_the_others(model: StableDiffusion) -> None:
    latents = noises(model, 3)
    expected = model.decode(latents)
    for value in (float("nan"), float("inf")):
        latents[1, 0, 3, 3] = value
        pictures = model.decode(latents)
        assert not pictures[1].any()
        assert torch.equal(pictures[[0, 2]], expected[[0, 2]])


def without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def without_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def without_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def with_cut_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def with_cut_text_encoder(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def with_pickled_weights(folder: Path) -> None:
    without_weights(folder)
    torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def with_damaged_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def with_other_shapes(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 48}))


@pytest.mark.parametrize(
    "damage",
    [
        *(
            without_index,
            without_unet,
            without_weights,
            without_tokenizer,
            without_vocabulary,
            with_cut_weights,
            with_cut_text_encoder,
        ),
        *(with_pickled_weights, with_damaged_index, with_other_shapes),
    ],
)
def test_an_incomplete_or_damaged_folder_is_named(
    damage: Callable[[Path], None], tiny_stable_diffusion: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stable-diffusion"
    shutil.copytree(tiny_stable_diffusion, folder)
    damage(folder)
    with pytest.raises(UserError, match="foundation") as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no Stable Diffusion folder \(no model_index\.json\)"):
        load(tmp_path / "nothing")


# The safety checker


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    """(12, 64, 64, 3), the first three of which are rejected."""
    coarse = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def checker(pictures: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "safety_checker"
    write_safety_checker(folder, rejected=pictures[:3], accepted=pictures[3:])
    return folder


def test_it_rejects_what_the_diffusers_pipeline_blackens(
    checker: Path, pictures: NDArray[np.uint8], tiny_stable_diffusion: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = np.random.default_rng(1).permutation(len(pictures))
    given = torch.from_numpy(pictures[order])
    judge = SafetyChecker(checker, device="cpu")
    found = judge(given)
    assert (found.dtype, found.tolist()) == (np.bool_, (order < 3).tolist())
    assert caplog.text == ""
    assert torch.equal(given, torch.from_numpy(pictures[order])), "nothing is blackened"
    assert not judge(given[order >= 3]).any()

    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_stable_diffusion,
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(checker),
        feature_extractor=CLIPImageProcessorPil.from_pretrained(checker),
    )
    shown, rejected = pipeline.run_safety_checker(given.numpy() / 255, "cpu", torch.float32)
    assert rejected == found.tolist()
    assert [not picture.any() for picture in shown] == rejected


def test_it_reads_what_was_published(checker: Path, pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    """Older libraries named the weights and the image processor's sizes in another way, and saved one thing more."""
    folder = shutil.copytree(checker, tmp_path / "published")
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("vision_model.encoder.") for name in weights)
    old = {name.replace("vision_model.", "vision_model.vision_model."): value for name, value in weights.items()}
    old["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor.pop("image_processor_type") == "CLIPImageProcessor"
    processor |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert SafetyChecker(folder, device="cpu")(torch.from_numpy(pictures)).tolist() == [True] * 3 + [False] * 9


def lacking_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["concept_embeds_weights"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lacking_weights, "no concept_embeds_weights among its weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), ""),
        (lambda folder: (folder / "model.safetensors").unlink(), ""),
        (lambda folder: (folder / "config.json").unlink(), ""),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), ""),
        (shutil.rmtree, ""),
    ],
)
def test_an_incomplete_or_damaged_safety_checker_is_named(
    damage: Callable[[Path], object], said: str, checker: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checker, tmp_path / "safety_checker")
    damage(folder)
    with pytest.raises(UserError, match=rf"safety_checker: incomplete or damaged \(.*{said}") as caught:
        SafetyChecker(folder, device="cpu")
    assert "\n" not in str(caught.value)
