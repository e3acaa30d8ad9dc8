"""The small Stable Diffusion: its U-Net and text encoder, its autoencoder, its words."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from m2m.foundation import text_to_image
from m2m.foundation.text_to_image import (
    CAPTION_DROPOUT,
    MAX_TOKENS,
    TextToImage,
    learn_tokenizer,
    scheduler,
    text_to_image_loss,
    tokenize,
)
from m2m.foundation.world import Lessons
from m2m.manifest import Split
from m2m.params import PredictionType, UnetFit, VaeFit
from m2m.world.grammar import KINDS, captions_naming, procedure_captions, view_captions


@pytest.fixture
def networks(tokenizer: CLIPTokenizer) -> TextToImage:
    torch.manual_seed(0)
    params = UnetFit(
        images=1,
        batch_size=1,
        learning_rate=1e-3,
        prediction_type="v_prediction",
        block_out_channels=(16, 32),
        attention_head_dim=(1, 2),
    )
    return TextToImage(params, tokenizer)


PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_noise_schedule_is_sd_2_1s(prediction_type: PredictionType) -> None:
    config = scheduler(prediction_type).config
    assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == ("scaled_linear", 0.00085, 0.012)
    assert (config["steps_offset"], config["set_alpha_to_one"], config["clip_sample"]) == (1, False, False)
    assert (config["prediction_type"], config["num_train_timesteps"]) == (prediction_type, 1000)


def test_the_u_net_is_configured_as_sd_2_1s(networks: TextToImage) -> None:
    config: Any = networks.unet.config
    assert config.use_linear_projection
    assert config.attention_head_dim == (1, 2)
    assert config.cross_attention_dim == networks.text_encoder.config.hidden_size
    assert (config.in_channels, config.out_channels, config.sample_size) == (4, 4, 8)


def test_captions_are_padded_and_cut_to_one_length(tokenizer: CLIPTokenizer, lessons: Lessons) -> None:
    ids = tokenize(tokenizer, ["", lessons.captions[0], "a red star " * 20])
    assert ids.shape == (3, tokenizer.model_max_length)
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 3
    assert ids[:, -1].tolist() == [tokenizer.eos_token_id] * 3
    assert ids[0, 1] == tokenizer.eos_token_id


class Stub:
    """Networks that answer as told and keep what they were asked."""

    def __init__(self, prediction: Callable[[Tensor], Tensor]) -> None:
        self.prediction = prediction
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def text_encoder(self, ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=ids)

    def unet(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Any:
        self.asked.append((noisy, timesteps, text))
        return SimpleNamespace(sample=self.prediction(noisy))


def test_the_loss_is_the_weighted_error_of_the_noise() -> None:
    n = 64
    stub: Any = Stub(torch.zeros_like)
    tokens, empty = torch.arange(n)[:, None] + 1, torch.zeros(1, 1, dtype=torch.long)
    # With latents and spread zero the noisy latents are the noise, scaled: what was drawn can be read from them.
    nothing = torch.zeros(n, 4, 8, 8)
    loss = text_to_image_loss(stub, nothing, nothing, tokens, empty, "epsilon")(
        torch.arange(n), torch.Generator().manual_seed(0)
    )
    noisy, timesteps, _ = stub.asked[0]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)[timesteps]
    noise = noisy.double() / (1 - alpha).sqrt().view(-1, 1, 1, 1)
    snr = alpha / (1 - alpha)
    expected = (torch.minimum(snr, torch.tensor(5.0)) / snr * noise.square().mean(dim=(1, 2, 3))).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert timesteps.min() < 100
    assert timesteps.max() > 900


def test_the_loss_of_v_has_no_weights() -> None:
    n = 64
    stub: Any = Stub(torch.zeros_like)
    clean, nothing = torch.full((n, 4, 8, 8), 2.0), torch.zeros(n, 4, 8, 8)
    tokens, empty = torch.arange(n)[:, None] + 1, torch.zeros(1, 1, dtype=torch.long)
    loss = text_to_image_loss(stub, clean, nothing, tokens, empty, "v_prediction")
    found = loss(torch.arange(n), torch.Generator().manual_seed(0))
    noisy, timesteps, _ = stub.asked[0]
    alpha = scheduler("v_prediction").alphas_cumprod.double()[timesteps].view(-1, 1, 1, 1)
    noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    v = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    assert found.item() == pytest.approx(v.square().mean().item(), rel=1e-4)


def test_latents_are_drawn_anew_around_their_means() -> None:
    n = 256
    stub: Any = Stub(torch.zeros_like)
    mean, spread = torch.full((n, 4, 8, 8), 30.0), torch.full((n, 4, 8, 8), 4.0)
    loss = text_to_image_loss(stub, mean, spread, torch.zeros(n, 1).long(), torch.zeros(1, 1).long(), "epsilon")
    loss(torch.arange(n), torch.Generator().manual_seed(0))
    noisy, timesteps, _ = stub.asked[0]
    alpha = scheduler("epsilon").alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    scaled = (noisy - alpha.sqrt() * mean) / (alpha * 16 + 1 - alpha).sqrt()
    assert scaled.mean().item() == pytest.approx(0, abs=0.02)
    assert scaled.std().item() == pytest.approx(1, abs=0.02)


def test_a_tenth_of_the_captions_is_dropped() -> None:
    n = 4000
    stub: Any = Stub(torch.zeros_like)
    latents, tokens = torch.zeros(n, 4, 1, 1), torch.arange(n)[:, None] + 1
    text_to_image_loss(stub, latents, latents, tokens, torch.zeros(1, 1).long(), "epsilon")(
        torch.arange(n), torch.Generator().manual_seed(0)
    )
    text = stub.asked[0][2]
    dropped = text == 0
    assert dropped.float().mean().item() == pytest.approx(CAPTION_DROPOUT, abs=0.02)
    assert torch.equal(text[~dropped], tokens[~dropped])


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_it_learns(
    networks: TextToImage,
    tokenizer: CLIPTokenizer,
    lessons: Lessons,
    descend: Callable[..., tuple[float, float]],
    prediction_type: PredictionType,
) -> None:
    latents = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(1)).expand(16, 4, 8, 8)
    tokens, empty = tokenize(tokenizer, lessons.captions), tokenize(tokenizer, [""])
    loss = text_to_image_loss(networks, latents, torch.zeros_like(latents), tokens, empty, prediction_type)
    first, last = descend(networks, loss, pictures=16, steps=20)
    assert last < 0.7 * first
    for part in (networks.unet, networks.text_encoder):
        parameters: Any = part
        assert all(value.requires_grad for value in parameters.parameters())


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return text_to_image.build_autoencoder(
        VaeFit(images=1, batch_size=1, learning_rate=1e-3, block_out_channels=(8, 8, 16, 16))
    )


def test_it_is_configured_as_stable_diffusions(network: Any) -> None:
    assert network.config.latent_channels == 4
    assert 2 ** (len(network.config.block_out_channels) - 1) == 8
    assert network.config.sample_size == 64


def test_encoding_and_decoding_do_not_depend_on_the_batches(network: Any, lessons: Lessons) -> None:
    network.eval()
    means, spread = text_to_image.encoded(network, lessons.images, batch_size=5)
    assert means.shape == spread.shape == (16, 4, 8, 8)
    assert (spread > 0).all()
    torch.testing.assert_close(means, text_to_image.encoded(network, lessons.images)[0])
    parts = list(text_to_image.decoded(network, means, batch_size=5))
    assert [len(part) for part in parts] == [5, 5, 5, 1]
    restored = torch.cat(parts)
    assert restored.dtype == torch.uint8
    assert restored.shape == lessons.images.shape
    whole = torch.cat(list(text_to_image.decoded(network, means)))
    assert (whole.int() - restored.int()).abs().max() <= 1


@pytest.mark.slow
def test_it_learns_to_restore(network: Any, lessons: Lessons, descend: Callable[..., tuple[float, float]]) -> None:
    images = lessons.images[-4:]  # half-built things, whose large even parts are soon learnt
    before = text_to_image.psnr(
        torch.cat(list(text_to_image.decoded(network, text_to_image.encoded(network, images)[0]))), images
    )
    first, last = descend(network, text_to_image.reconstruction_loss(network, images), pictures=4, steps=20, rate=5e-3)
    after = text_to_image.psnr(
        torch.cat(list(text_to_image.decoded(network, text_to_image.encoded(network, images)[0]))), images
    )
    assert last < 0.6 * first
    assert after > before + 2


def test_psnr_is_the_mean_over_pictures() -> None:
    rng = np.random.default_rng(0)
    images, restored = rng.integers(0, 256, (2, 3, 3, 4, 4), dtype=np.uint8)
    errors = [np.mean((a.astype(float) - b.astype(float)) ** 2) for a, b in zip(images, restored, strict=True)]
    expected = np.mean([20 * np.log10(255) - 10 * np.log10(error) for error in errors])
    assert text_to_image.psnr(torch.from_numpy(restored), torch.from_numpy(images)) == pytest.approx(expected, rel=1e-5)
    assert text_to_image.psnr(torch.from_numpy(images), torch.from_numpy(images)) > 100


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Everything that the world can say, held out or not."""
    meanings = [
        caption
        for split in get_args(Split)
        for caption in (
            *(caption for named in KINDS for caption in captions_naming(named, split)),
            *view_captions(split),
            *(step for steps in procedure_captions(split) for step in steps),
        )
    ]
    return [caption.text(template) for caption in meanings for template in range(caption.templates)]


@pytest.fixture(scope="module")
def world_tokenizer(captions: list[str]) -> CLIPTokenizer:
    return learn_tokenizer(captions)


def words(caption: str) -> list[str]:
    """Punctuation marks are words of their own."""
    return caption.replace(",", " ,").replace(":", " :").split()


def test_every_word_is_one_token_and_every_caption_fits(world_tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    encoded = world_tokenizer(captions, truncation=False)["input_ids"]
    assert [len(ids) for ids in encoded] == [len(words(caption)) + 2 for caption in captions]
    assert max(map(len, encoded)) <= MAX_TOKENS == world_tokenizer.model_max_length


def test_captions_come_back(world_tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    encoded = world_tokenizer(captions)["input_ids"]
    decoded = world_tokenizer.batch_decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert [text.split() for text in decoded] == [words(caption) for caption in captions]
    assert {ids[0] for ids in encoded} == {world_tokenizer.bos_token_id}
    assert {ids[-1] for ids in encoded} == {world_tokenizer.eos_token_id}


def test_other_english_is_encoded_too(world_tokenizer: CLIPTokenizer) -> None:
    text = "Two photographs of Zürich's old town? 100% grey!"
    ids = world_tokenizer(text.replace("ü", "u"), truncation=False)["input_ids"]
    back = world_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert back.replace(" ", "") == text.replace("ü", "u").replace(" ", "").lower()


def test_it_depends_on_the_words_alone(world_tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    again = learn_tokenizer([*reversed(captions), *captions[:50]])
    assert again.get_vocab() == world_tokenizer.get_vocab()
    assert again(captions[::97])["input_ids"] == world_tokenizer(captions[::97])["input_ids"]


def test_it_is_padded_and_saved_as_clip_does(
    world_tokenizer: CLIPTokenizer, captions: list[str], tmp_path: Path
) -> None:
    world_tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    options = {"padding": "max_length", "truncation": True}
    assert loaded(captions[::97], **options)["input_ids"] == world_tokenizer(captions[::97], **options)["input_ids"]
    assert loaded.model_max_length == MAX_TOKENS
    (ids,) = loaded([""], **options)["input_ids"]
    assert ids == [loaded.bos_token_id] + [loaded.eos_token_id] * (MAX_TOKENS - 1)
    assert len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]) == len(loaded) < 600
