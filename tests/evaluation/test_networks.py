"""The judges, from folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel

from m2m.errors import UserError
from m2m.evaluation.networks import Clip, Networks
from m2m.evaluation.perceptual import perceptual_distance
from m2m.foundation import encoders
from m2m.foundation.text_to_image import learn_tokenizer
from m2m.models.classifier import WorldClassifier
from m2m.params import TransformerFit

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
