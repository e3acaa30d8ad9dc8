"""The judges, from folders, our own distance, and what they see of a lot of pictures; which of them do not count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from m2m.errors import UserError
from m2m.evaluation.metrics import Benchmark, fid
from m2m.evaluation.networks import (
    Batch,
    Clip,
    Networks,
    Thresholds,
    nearest_earlier,
    nearest_other,
    observe,
    perceptual_distance,
    read_values,
)
from m2m.evaluation.published import InceptionV3
from m2m.foundation import encoders
from m2m.foundation.text_to_image import learn_tokenizer
from m2m.models.classifier import Readings, WorldClassifier
from m2m.params import TransformerFit
from m2m.world.grammar import ATTRIBUTES, parse
from m2m.world.pictures import Variation, paint

CAPTIONS = ["a red star, flat", "a neon drawing of a blue moon", "an orange heart in comic style"]
LONG = " ".join(["a red star"] * 40)


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, real formats."""
    folder = tmp_path_factory.mktemp("foundation")
    tokenizer = learn_tokenizer(CAPTIONS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=32, layers=2)
        encoders.save_clip(folder / "clip", encoders.build_clip(fit, tokenizer), tokenizer)
        WorldClassifier({"noun": ("star", "moon"), "colour": ("red", "blue"), "style": ("flat",)}).save_pretrained(
            folder / "inception"
        )
    return folder


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_clip_embeds_as_its_model_does(foundation: Path, pictures: torch.Tensor) -> None:
    clip = Clip.from_pretrained(foundation / "clip")
    model = CLIPModel.from_pretrained(foundation / "clip").eval()
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pictures.float() / 127.5 - 1).pooler_output
    expected = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(clip.embed(pictures), expected, atol=1e-5, rtol=1e-4)


def test_clip_score_is_the_cosine_of_the_two_towers(foundation: Path, pictures: torch.Tensor) -> None:
    clip = Clip.from_pretrained(foundation / "clip")
    found = (clip.embed(pictures) * clip.embed_texts(CAPTIONS)).sum(dim=1)
    model = CLIPModel.from_pretrained(foundation / "clip").eval()
    with torch.no_grad():
        cosines = [
            model(
                **clip.processor.tokenizer(caption, return_tensors="pt"), pixel_values=picture[None].float() / 127.5 - 1
            ).logits_per_image.item()
            / model.logit_scale.exp().item()
            for caption, picture in zip(CAPTIONS, pictures, strict=True)
        ]
    assert found.tolist() == pytest.approx(cosines, rel=1e-3)


def test_long_captions_keep_their_end_token(foundation: Path) -> None:
    clip = Clip.from_pretrained(foundation / "clip")
    tokens = clip.processor.tokenizer(LONG)["input_ids"]
    assert tokens[-1] == clip.processor.tokenizer.eos_token_id
    cut = torch.tensor([[*tokens[:15], tokens[-1]]])
    expected = clip.model.get_text_features(input_ids=cut).pooler_output
    torch.testing.assert_close(clip.embed_texts([LONG]), torch.nn.functional.normalize(expected, dim=-1))


def test_networks_know_what_their_folders_hold(foundation: Path) -> None:
    networks = Networks.load(foundation, device="cpu")
    assert networks.attributes == ("noun", "colour", "style")
    assert networks.names["inception"].startswith("world-classifier@")
    assert networks.names["perceptual"] == networks.names["inception"], "its layers compare pictures"
    assert networks.recorded("clip") == {"network/clip": networks.names["clip"]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "alexnet"}, "is 'alexnet', expected world-classifier or inception-v3-compat"),
        ({"architecture": "inception-v3-compat"}, "incomplete or damaged"),
        ({}, "incomplete or damaged"),
        ([], "incomplete or damaged"),
        ({"architecture": "world-classifier"}, "incomplete or damaged"),
        ({"architecture": "world-classifier", "classes": [], "widths": [8, 8]}, "incomplete or damaged"),
        ({"architecture": ["world-classifier"]}, "incomplete or damaged"),
    ],
)
def test_a_wrong_inception_folder_is_one_clear_line(tmp_path: Path, config: object, words: str) -> None:
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words) as caught:
        Networks.load(tmp_path, device="cpu")
    assert str(tmp_path / "inception") in str(caught.value)


def test_a_missing_clip_folder_is_one_clear_line(foundation: Path, tmp_path: Path) -> None:
    (tmp_path / "inception").symlink_to(foundation / "inception")
    with pytest.raises(UserError, match="clip: incomplete or damaged"):
        Networks.load(tmp_path, device="cpu")


def test_damaged_weights_are_one_clear_line(foundation: Path, tmp_path: Path) -> None:
    (tmp_path / "inception").symlink_to(foundation / "inception")
    shutil.copytree(foundation / "clip", tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="clip: incomplete or damaged"):
        Networks.load(tmp_path, device="cpu")


def test_pictures_are_compared_by_lpips_where_the_foundation_has_it(
    foundation: Path, lpips_folder: Path, pictures: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "with").mkdir()
    for name in ("inception", "clip"):
        (tmp_path / "with" / name).symlink_to(foundation / name)
    (tmp_path / "with" / "perceptual").symlink_to(lpips_folder)
    pair = pictures, pictures.flip(3)
    own, published = (Networks.load(folder, device="cpu") for folder in (foundation, tmp_path / "with"))
    assert published.names["perceptual"].startswith("lpips-alexnet-v0.1@")
    assert published.names["inception"] == own.names["inception"]
    assert published.lpips is not None
    torch.testing.assert_close(published.perceptual(*pair), published.lpips(*pair), rtol=0, atol=0)
    torch.testing.assert_close(own.perceptual(*pair), perceptual_distance(own.inception, *pair), rtol=0, atol=0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text('{"architecture": "lpips-vgg"}'),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"rotten"),
        lambda folder: save_file({"features.0.weight": torch.zeros(3)}, folder / "model.safetensors"),
    ],
)
def test_a_damaged_lpips_folder_is_one_clear_line(
    foundation: Path, lpips_folder: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    for name in ("inception", "clip"):
        (tmp_path / name).symlink_to(foundation / name)
    shutil.copytree(lpips_folder, tmp_path / "perceptual")
    damage(tmp_path / "perceptual")
    with pytest.raises(UserError, match="perceptual: incomplete or damaged") as caught:
        Networks.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=["world", "inception"])
def network(request: pytest.FixtureRequest, committed: Networks) -> WorldClassifier | InceptionV3:
    if request.param == "world":
        assert isinstance(committed.inception, WorldClassifier)
        return committed.inception
    with torch.device("meta"):
        model = InceptionV3()
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=draws) * (2 / fan_in) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()
    return model


@pytest.fixture(scope="module")
def painted() -> Tensor:
    import numpy as np

    rng = np.random.default_rng(0)
    captions = [parse(text) for text in ("a red star in flat style", "a blue moon in neon style")]
    drawn = np.stack([paint(caption, Variation.draw(rng)) for caption in captions])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def noisy(pictures: Tensor, amount: float) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return (pictures + amount * noise).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.slow
@torch.no_grad()
def test_it_is_a_distance_that_grows_with_noise(network: WorldClassifier | InceptionV3, painted: Tensor) -> None:
    assert perceptual_distance(network, painted, painted).tolist() == pytest.approx([0, 0], abs=1e-9)
    there = perceptual_distance(network, painted, noisy(painted, 40))
    torch.testing.assert_close(perceptual_distance(network, noisy(painted, 40), painted), there, rtol=1e-4, atol=1e-6)
    distances = torch.stack([perceptual_distance(network, painted, noisy(painted, amount)) for amount in (5, 20)])
    assert (distances[0] > 0).all()
    assert (distances[1] > distances[0]).all()
    assert (there > distances[1]).all()


@torch.no_grad()
def test_pairs_do_not_see_each_other_and_nothing_is_left_behind(
    network: WorldClassifier | InceptionV3, painted: Tensor
) -> None:
    other = noisy(painted, 20).flip(3)
    together = perceptual_distance(network, painted, other)
    alone = torch.cat([perceptual_distance(network, painted[k : k + 1], other[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert not any(layer._forward_hooks for layer in network.layers)
    assert len(network.layers) >= 4


OF_SETS = ["a red star, flat", "a blue moon, neon", "a red moon, flat", "a blue star, neon"]


class Mean(nn.Module):
    """Reads the mean of each channel, and a class from the first; names no attributes."""

    classes: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def forward(self, images: Tensor) -> Readings:
        features = images.float().mean(dim=(2, 3))
        return Readings(features, {"class": features[:, :2]}, features.new_empty(len(features), 0))


@pytest.fixture
def small() -> Networks:
    def embed(images: Tensor) -> Tensor:
        return nn.functional.normalize(images.float().mean(dim=(2, 3)), dim=1)

    def embed_texts(captions: list[str]) -> Tensor:
        return torch.tensor([[len(text), 0.0, 0.0] for text in captions])

    clip = cast(Any, SimpleNamespace(embed=embed, embed_texts=embed_texts))
    return Networks(inception=cast(Any, Mean()), clip=clip, names={}, device=torch.device("cpu"))


@pytest.fixture
def sets() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(4, 5, 8, 8, 3), dtype=np.uint8)


def _batches(sets: np.ndarray, size: int) -> list[Batch]:
    return [
        Batch(OF_SETS[start : start + size], sets[start : start + size, :0], sets[start : start + size])
        for start in range(0, 4, size)
    ]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_picture_keeps_its_set_and_position(small: Networks, sets: np.ndarray, size: int) -> None:
    found = observe(_batches(sets, size), small)
    means = sets.astype(np.float32).mean(axis=(2, 3))
    np.testing.assert_allclose(found.features, means, rtol=1e-5)
    unit = means / np.linalg.norm(means, axis=2, keepdims=True)
    np.testing.assert_allclose(found.embeddings, unit, rtol=1e-5)
    lengths = np.array([len(text) for text in OF_SETS])
    np.testing.assert_allclose(found.text_image, (100 * unit[:, :, 0] * lengths[:, None]).mean(axis=0), rtol=1e-5)
    torch.testing.assert_close(observe(_batches(sets, size), small, by_clip=False).features, found.features)


def test_positions_can_be_chosen_and_repeated(small: Networks, sets: np.ndarray) -> None:
    found = observe(_batches(sets, 2), small)
    chosen = found.at([3, 0, 0])
    again = observe([Batch(OF_SETS, sets[:, :0], sets[:, [3, 0, 0]])], small)
    for name in ("embeddings", "text_image"):
        torch.testing.assert_close(getattr(chosen, name), getattr(again, name))
    torch.testing.assert_close(chosen.features, again.features)


def test_fid_compares_with_held_out_pictures_of_other_positions(small: Networks, sets: np.ndarray) -> None:
    held_out = observe(_batches(sets, 4), small)
    benchmark = Benchmark(held_out, given=2)
    features = held_out.features
    assert torch.equal(benchmark.reference(1), features[:, [2, 4]].flatten(0, 1))
    after = held_out.at(range(2, 5))
    assert benchmark.distances(after, fid)[1] == fid(features[:, 3], features[:, [2, 4]].flatten(0, 1))


def test_a_judge_without_attributes_gives_no_spread(small: Networks, sets: np.ndarray) -> None:
    benchmark = Benchmark(observe(_batches(sets, 4), small), given=1)
    scores = benchmark.metrics(benchmark.held_out.at(range(1, 5)), small.attributes)
    expected = {"fid", "kid", "inception_score", "clip_text_image", "clip_image_image", "diversity"}
    assert set(scores.by_position) == expected
    assert scores.overall == {}
    assert {len(values) for values in scores.by_position.values()} == {4}


def _plain(*levels: int) -> np.ndarray:
    """Pictures (n, 2, 2, 3) of one grey each."""
    return np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def test_the_likeliest_class_is_read_and_how_likely_it_is() -> None:
    logits = [[0.0, 0.0, np.log(2)], [np.log(3), 0.0], [0.0]]
    heads = {name: torch.tensor([[of]]) for name, of in zip(ATTRIBUTES, logits, strict=True)}
    values, confidences = read_values(heads | {"step": torch.zeros(1, 1, 7)})
    assert values.tolist() == [[[2, 0, 0]]]
    np.testing.assert_allclose(confidences, [[[0.5, 0.75, 1.0]]])


def test_a_picture_is_compared_with_earlier_ones_of_its_set_alone() -> None:
    given = np.stack([_plain(0, 100), _plain(50, 55)])
    drawn = np.stack([_plain(90, 200, 91), _plain(0, 100, 250)])
    np.testing.assert_allclose(nearest_earlier(given, drawn), [[10, 100, 1], [50, 45, 150]])
    np.testing.assert_allclose(nearest_other(drawn), [[1, 109, 1], [100, 100, 150]])


def test_an_equal_picture_is_at_distance_zero_and_all_others_are_as_float64_has_them() -> None:
    random = np.random.default_rng(0)
    given, drawn = (random.integers(0, 256, (3, count, 16, 16, 3), np.uint8) for count in (2, 4))
    drawn[1, 2] = given[1, 0]
    nearest = nearest_earlier(given, drawn)
    assert nearest[1, 2] == 0
    every = np.concatenate([given, drawn], axis=1).astype(np.float64)
    direct = [np.sqrt(((every[0, 4] - every[0, earlier]) ** 2).mean()) for earlier in range(4)]
    assert nearest[0, 2] == pytest.approx(min(direct), rel=1e-14)


def test_about_one_held_out_picture_in_a_hundred_misses() -> None:
    random = np.random.default_rng(0)
    confidences, nearest = random.random((100, 20, 3)), random.random((100, 20))
    thresholds = Thresholds.of_held_out(confidences, nearest)
    nothing_near = thresholds.misses(confidences, np.ones((100, 20)))
    np.testing.assert_allclose(nothing_near.mean(axis=(0, 1)), 0.01)
    assert thresholds.misses(np.ones((100, 20, 3)), nearest).mean() == 0.01


def test_an_unreadable_attribute_misses_alone_and_a_copy_in_all() -> None:
    thresholds = Thresholds(np.array([0.5, 0.6, 0.7]), 10.0)
    confidences = np.array([[[0.9, 0.5, 0.7], [0.9, 0.9, 0.9]]])
    misses = thresholds.misses(confidences, np.array([[10.0, 9.9]]))
    assert misses.tolist() == [[[False, True, False], [True, True, True]]]


def test_an_exact_copy_is_one_even_where_held_out_pictures_are() -> None:
    thresholds = Thresholds.of_held_out(np.ones((1, 5, 3)), np.zeros((1, 5)))
    assert thresholds.misses(np.ones((1, 2, 3)), np.array([[0.0, 1.0]]))[0, :, 0].tolist() == [True, False]
