"""The judges, from folders, and our own distance: none between equal pictures, larger the more they differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from m2m.errors import UserError
from m2m.evaluation.networks import Clip, Networks, perceptual_distance
from m2m.evaluation.published import InceptionV3
from m2m.foundation import encoders
from m2m.foundation.text_to_image import learn_tokenizer
from m2m.models.classifier import WorldClassifier
from m2m.params import TransformerFit
from m2m.world.grammar import parse
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
    metric = clip.score()
    metric.update(clip.embed(pictures)[:, None, None], CAPTIONS)
    model = CLIPModel.from_pretrained(foundation / "clip").eval()
    with torch.no_grad():
        cosines = [
            model(
                **clip.processor.tokenizer(caption, return_tensors="pt"), pixel_values=picture[None].float() / 127.5 - 1
            ).logits_per_image.item()
            / model.logit_scale.exp().item()
            for caption, picture in zip(CAPTIONS, pictures, strict=True)
        ]
    assert metric.score.item() / 3 == pytest.approx(100 * np.mean(cosines), rel=1e-3)


def test_long_captions_keep_their_end_token(foundation: Path, pictures: torch.Tensor) -> None:
    clip = Clip.from_pretrained(foundation / "clip")
    tokens = clip.prepare(text=[LONG], return_tensors="pt", padding=True)["input_ids"][0]
    assert len(tokens) == 16
    assert tokens[-1] == clip.processor.tokenizer.eos_token_id
    clip.score().update(
        clip.embed(pictures[:1])[:, None, None], [LONG]
    )  # torchmetrics warns where it has to cut itself


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
