import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.errors import UserError
from m2m.params import Precision

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
