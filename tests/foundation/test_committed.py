"""What the foundation that comes with the repository promises, measured on combinations that it never saw."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from m2m.foundation import classify, contrast, quality, text_to_image, vae
from m2m.foundation.words import learn_tokenizer
from m2m.foundation.world import Lessons
from m2m.models.classifier import WorldClassifier
from m2m.world.corpus import make_corpus
from m2m.world.grammar import picture_captions, procedure_captions, view_captions

FOLDER = Path(__file__).parents[2] / "models" / "foundation"
pytestmark = pytest.mark.skipif(not FOLDER.joinpath("inception").is_dir(), reason="no foundation has been made")
SEED = 20  # of pictures that served no decision


@pytest.fixture(scope="module")
def unseen() -> Lessons:
    return Lessons.of(make_corpus(pictures=144, views=0, steps=48, seed=SEED, split="test"))


@pytest.fixture(scope="module")
def classifier() -> WorldClassifier:
    return WorldClassifier.from_pretrained(FOLDER / "inception")


def test_it_is_small_and_holds_no_pickle_and_no_path_of_a_machine() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(path.stat().st_size for path in files) <= 40e6
    for path in files:
        if path.suffix == ".json":
            content = path.read_text()
            assert '"/' not in content.replace('"/"', "").replace('"/</w>"', ""), path
            json.loads(content)


@torch.no_grad()
def test_the_autoencoder_restores_unseen_pictures(unseen: Lessons) -> None:
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(FOLDER / "stable-diffusion", subfolder="vae")
    means, _ = vae.encode(network, unseen.images)
    assert (means * network.config.scaling_factor).std().item() == pytest.approx(1, abs=0.15)
    restored = torch.cat(list(vae.decode(network, means)))
    assert vae.psnr(restored, unseen.images) >= 26


def test_the_class_network_reads_unseen_pictures(classifier: WorldClassifier, unseen: Lessons) -> None:
    right = classify.right(classifier, unseen.images, unseen.labels)
    assert (right["noun"] & right["colour"]).float().mean() >= 0.97
    assert right["style"].float().mean() >= 0.97
    assert right["step"].float().mean() >= 0.97


@torch.no_grad()
def test_the_class_network_measures_places(classifier: WorldClassifier, unseen: Lessons) -> None:
    found = classifier(unseen.images[unseen.placed]).geometry
    error = (found - unseen.geometry[unseen.placed]).abs()
    assert error[:, :3].mean() < 0.03  # place and size, of the picture's side


def test_what_the_small_stable_diffusion_draws_for_unseen_captions_is_what_they_say(
    classifier: WorldClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(quality, "DRAWINGS", 64)
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER / "stable-diffusion")
    images, labels = quality.drawings(pipeline, SEED)
    right = classify.right(classifier, images, labels)
    assert (right["noun"] & right["colour"]).float().mean() >= 0.9
    assert right["style"].float().mean() >= 0.9
    assert len(images.unique(dim=0)) == len(images)


@torch.no_grad()
def test_clip_tells_unseen_captions_apart(unseen: Lessons) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(FOLDER / "clip"), CLIPTokenizer.from_pretrained(FOLDER / "clip")
    captions = list(dict.fromkeys(unseen.captions))
    inputs = {"input_ids": text_to_image.tokenize(tokenizer, captions), "pixel_values": contrast.pixels(unseen.images)}
    logits = model(**inputs).logits_per_image
    own = logits[range(len(unseen.captions)), [captions.index(caption) for caption in unseen.captions]]
    above = (own[:, None] > logits).float().sum(dim=1) / (len(captions) - 1)
    assert above.median() >= 0.95


def test_both_tokenizers_are_the_one_that_the_words_of_the_world_give() -> None:
    """Trained embeddings stand at the ids of their words: a tokenizer learned anew must find them there."""
    from transformers import CLIPTokenizer

    captions = [
        caption.text(template)
        for caption in (
            *picture_captions("train"),
            *view_captions("train"),
            *chain(*procedure_captions("train")),
        )
        for template in range(caption.templates)
    ]
    learned = learn_tokenizer(captions)
    for folder in ("clip", "stable-diffusion/tokenizer"):
        loaded = CLIPTokenizer.from_pretrained(FOLDER / folder)
        assert loaded.get_vocab() == learned.get_vocab()
        assert loaded(captions[::50])["input_ids"] == learned(captions[::50])["input_ids"]
