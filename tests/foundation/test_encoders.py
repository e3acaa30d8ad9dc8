"""What reads pictures of the world: CLIP, DINOv2, and the class network."""

import colorsys
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer, Dinov2Model

from m2m.foundation import encoders
from m2m.foundation.encoders import (
    CLASSES,
    GEOMETRY_WEIGHT,
    DinoTraining,
    dino_loss,
    hue_rotation,
    look,
    naming_loss,
    quarters,
    read,
)
from m2m.foundation.text_to_image import tokenize
from m2m.foundation.world import Lessons
from m2m.models.classifier import WorldClassifier
from m2m.params import TransformerFit
from m2m.photos import as_signal
from m2m.world.corpus import OPEN
from m2m.world.grammar import CONSTRUCTION, MAX_STEPS, RENDERED, parse

TINY = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=32, layers=1)


@pytest.fixture
def model(tokenizer: CLIPTokenizer) -> CLIPModel:
    torch.manual_seed(0)
    return encoders.build_clip(TINY, tokenizer)


def test_the_folder_gives_model_and_processor_back(
    model: CLIPModel, tokenizer: CLIPTokenizer, lessons: Lessons, tmp_path: Path
) -> None:
    encoders.save_clip(tmp_path, model.eval(), tokenizer)
    loaded, processor = CLIPModel.from_pretrained(tmp_path), CLIPProcessor.from_pretrained(tmp_path)
    inputs = processor(
        text=lessons.captions, images=list(lessons.images), return_tensors="pt", padding="max_length", truncation=True
    )
    torch.testing.assert_close(inputs["pixel_values"], as_signal(lessons.images), atol=1e-5, rtol=0)
    assert torch.equal(inputs["input_ids"], tokenize(tokenizer, lessons.captions))
    with torch.no_grad():
        found = loaded(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        expected = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    assert torch.equal(found.logits_per_image, expected.logits_per_image)


def test_captions_end_where_their_end_token_stands(
    model: CLIPModel, tokenizer: CLIPTokenizer, lessons: Lessons
) -> None:
    long, short = tokenize(tokenizer, lessons.captions), tokenizer(lessons.captions, padding="do_not_pad")["input_ids"]
    with torch.no_grad():
        found = model.eval().get_text_features(input_ids=long).pooler_output
        for row, ids in zip(found, short, strict=True):
            alone = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-4)


def test_a_caption_is_true_of_what_shows_all_that_it_names() -> None:
    shown = torch.tensor([[0, 3, 1, 2], [0, 3, 5, 2], [0, 4, 1, 2], [1, 3, 1, 2]])
    said = torch.tensor(
        [
            [0, 3, 1, 2],  # all of the first picture
            [0, 3, OPEN, OPEN],  # its noun
            [0, OPEN, 1, 2],  # its colour and style
            [1, OPEN, OPEN, OPEN],  # nothing but another kind of picture
            [0, OPEN, 9, OPEN],  # what no picture shows
        ]
    )
    assert encoders.true_of(shown, said).tolist() == [
        [True, True, True, False, False],
        [False, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, False],
    ]


def test_each_caption_is_true_of_its_own_picture(lessons: Lessons) -> None:
    true = encoders.true_of(lessons.shown, lessons.said)
    assert true.diagonal().all()
    captions = list(map(parse, lessons.captions))
    for row, column in product(range(len(captions)), repeat=2):
        if not captions[row].open and captions[row].style not in (RENDERED, CONSTRUCTION):
            said = captions[column]
            told = all(getattr(captions[row], name) == getattr(said, name) for name in said.named)
            assert bool(true[row, column]) == told


def stub(by_image: Tensor, by_text: Tensor) -> Any:
    return lambda **_: SimpleNamespace(logits_per_image=by_image, logits_per_text=by_text)


def test_the_loss_takes_every_true_caption_as_right() -> None:
    draws = torch.Generator().manual_seed(0)
    by_image, by_text = torch.randn(2, 3, 3, generator=draws)
    # The second caption is true of the first two pictures, the others of their own alone.
    shown = torch.tensor([[1, 4, 7], [1, 5, 7], [2, 4, 8]])
    said = torch.tensor([[1, 4, 7], [1, OPEN, 7], [2, OPEN, OPEN]])
    images, tokens = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 1).long()
    loss = encoders.clip_loss(stub(by_image, by_text), images, tokens, shown, said)
    pictures, captions = by_image.log_softmax(dim=1), by_text.log_softmax(dim=1)
    found = loss(torch.arange(3), torch.Generator()).item()
    of_pictures = (pictures[0, :2].mean() + pictures[1, 1] + pictures[2, 2]) / 3
    of_captions = (captions[0, 0] + captions[1, :2].mean() + captions[2, 2]) / 3
    assert found == pytest.approx(-(of_pictures + of_captions).item() / 2, rel=1e-5)


def test_the_loss_is_of_the_batch_s_own_traits() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    shown = torch.tensor([[0, 1, 0], [0, 2, 0], [0, 1, 0]])
    images, tokens = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 1).long()
    loss = encoders.clip_loss(stub(logits, logits), images, tokens, shown, shown)
    different, equal = (loss(torch.tensor(batch), torch.Generator()).item() for batch in ([0, 1], [2, 0]))
    assert different < 0.001
    assert equal == pytest.approx(4.5, abs=0.01)  # both are right for both: half of each is where nothing was found


def test_where_the_colour_is_open_half_of_the_pictures_are_shown_without(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 256
    images = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    images[:, 0] = 255  # red
    shown = torch.zeros(count, 3).long()
    said = shown.clone()
    said[::2, encoders.COLOUR] = OPEN
    seen, true = [], []

    def model(*, pixel_values: Tensor, **_: Any) -> Any:
        seen.append(pixel_values)
        return SimpleNamespace(logits_per_image=torch.zeros(count, count), logits_per_text=torch.zeros(count, count))

    true_of = encoders.true_of
    monkeypatch.setattr(encoders, "true_of", lambda *traits: true.append(true_of(*traits)) or true[-1])
    loss = encoders.clip_loss(model, images, shown[:, :1], shown, said)  # type: ignore[arg-type]
    loss(torch.arange(count), torch.Generator().manual_seed(0))
    grey = (seen[0][:, 0] == seen[0][:, 1]).flatten(1).all(dim=1)
    assert not grey[1::2].any()
    assert 0.4 < grey[::2].float().mean() < 0.6
    assert true[0][:, ::2].all(), "what leaves the colour open is true of all"
    assert torch.equal(true[0][:, 1], ~grey), "what names it is true of those that show it"


def test_clip_learns(
    model: CLIPModel, tokenizer: CLIPTokenizer, lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    tokens = tokenize(tokenizer, lessons.captions)
    loss = encoders.clip_loss(model, lessons.images, tokens, lessons.shown, lessons.said)
    first, last = descend(model, loss, pictures=len(lessons.captions), steps=30)
    assert last < 0.6 * first


@pytest.fixture
def network() -> DinoTraining:
    torch.manual_seed(0)
    return DinoTraining(TINY)


def test_a_look_is_a_function_of_its_draws(lessons: Lessons) -> None:
    first, same = (look(lessons.images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, same)
    assert first.shape == lessons.images.shape
    draws = torch.Generator().manual_seed(1)
    look(lessons.images, draws)
    assert not torch.equal(look(lessons.images, draws), first)


def test_a_look_changes_colours_and_leaves_shapes_where_they_are() -> None:
    picture = torch.full((300, 3, 64, 64), 90, dtype=torch.uint8)
    picture[:, 0, 28:36, 20:52] = 200  # a red bar on grey
    shown = look(picture, torch.Generator().manual_seed(0))
    bar, ground = shown[:, :, 28:36, 20:52].flatten(2), shown[:, :, :28].flatten(2)
    assert bar.std(dim=2).max() < 1e-4
    assert ground.std(dim=2).max() < 1e-4
    seen = (bar[:, :, 0] - ground[:, :, 0]).norm(dim=1)
    assert (seen > 0.05).all()
    assert seen.max() > 2 * seen.min()  # contrast
    brightest = bar[:, :, 0].argmax(dim=1).bincount(minlength=3)
    assert (brightest > 30).all()  # of 300: red, green and blue
    colourless = (bar[:, :, 0] - ground[:, :, 0]) * torch.tensor(encoders.STD)
    grey = (colourless.std(dim=1) < 1e-4).double().mean().item()
    assert grey == pytest.approx(encoders.COLOURLESS, abs=0.08)  # three standard deviations


def test_hues_are_rotated_about_grey() -> None:
    angles = torch.tensor([0.0, 2 * math.pi / 3, 1.0])
    turned = hue_rotation(angles)
    torch.testing.assert_close(turned @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).expand(3, 3, 3))
    torch.testing.assert_close(turned[0], torch.eye(3))
    red = turned[1] @ torch.tensor([1.0, 0, 0])
    assert sorted(red.round().tolist()) == [0, 0, 1]
    assert colorsys.rgb_to_hsv(*red.clamp(0, 1).tolist())[0] in (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_pixels_are_what_the_saved_processor_gives(network: DinoTraining, lessons: Lessons, tmp_path: Path) -> None:
    encoders.save_dino(tmp_path, network.encoder.eval())
    processor = BitImageProcessorPil.from_pretrained(tmp_path)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in lessons.images]
    found = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, encoders.imagenet_pixels(lessons.images), atol=1e-5, rtol=0)
    loaded = Dinov2Model.from_pretrained(tmp_path)
    with torch.no_grad():
        tokens = loaded(found).last_hidden_state
        assert tokens.shape == (len(pictures), 65, 32)
        torch.testing.assert_close(tokens, network.encoder(found).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_textbooks(network: DinoTraining, lessons: Lessons) -> None:
    looks = torch.stack([lessons.images[:6], lessons.images[6:12]])
    batch = torch.tensor([0, 3, 4])
    found = dino_loss(network, looks)(batch, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    shown = torch.cat([look(looks[0, batch], draws), look(looks[1, batch], draws)])
    views, colours = network(shown)
    terms = []
    for i in range(6):
        other = (i + 3) % 6
        exponents = [math.exp(F.cosine_similarity(views[i], views[j], dim=0).item() / 0.1) for j in range(6)]
        terms.append(-math.log(exponents[other] / (sum(exponents) - exponents[i])))
    patch = shown[1, :, 8:16, 24:32]  # row 1, column 3
    quarter = patch[:, 4:, :4].mean(dim=(1, 2))  # its lower left
    torch.testing.assert_close(quarters(shown)[1, 11].view(3, 4)[:, 2], quarter)
    error = (colours - quarters(shown)).square().mean().item()
    assert found.item() == pytest.approx(sum(terms) / 6 + error, rel=1e-4)


def test_it_learns_which_looks_belong_together(
    network: DinoTraining, lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    looks = torch.stack([lessons.images[:8], lessons.images[:8]])
    loss = dino_loss(network, looks)
    first, last = descend(
        network, lambda batch, _: loss(batch, torch.Generator().manual_seed(0)), pictures=8, steps=40, rate=1e-2
    )
    assert last < 0.5 * first
    assert len(encoders.matrices(network)) == 6  # queries, keys, values, output and two of the perceptron


def test_lessons_say_what_their_captions_say(lessons: Lessons) -> None:
    assert lessons.images.shape == (len(lessons.captions), 3, 64, 64)
    for row, text in enumerate(lessons.captions):
        caption = parse(text)
        for head, word in (("noun", caption.noun), ("colour", caption.colour), ("style", caption.style)):
            assert word in (None, CLASSES[head][lessons.labels[head][row]])
        assert CLASSES["step"][lessons.labels["step"][row]] == str(caption.step or 0)
        assert bool(lessons.placed[row]) == (caption.step is None)
    assert any(parse(text).open for text in lessons.captions), "what a caption leaves open is labelled as well"
    assert len(CLASSES["step"]) == MAX_STEPS + 1


def loss_of(lessons: Lessons, network: Any, **changed: Tensor) -> float:
    known = {"labels": lessons.labels, "geometry": lessons.geometry, "placed": lessons.placed, **changed}
    loss = naming_loss(network, lessons.images, **known)
    return float(loss(torch.arange(len(lessons.captions)), torch.Generator().manual_seed(0)))


def test_the_loss_is_that_of_all_heads_and_of_the_places_that_are_known(lessons: Lessons) -> None:
    n = len(lessons.captions)
    draws = torch.Generator().manual_seed(1)
    logits = {head: torch.randn(n, len(names), generator=draws) for head, names in CLASSES.items()}
    geometry = torch.rand(n, 5, generator=draws)
    network = lambda _: SimpleNamespace(logits=logits, geometry=geometry)  # noqa: E731
    named = 0.0
    for head, names in CLASSES.items():
        smooth = F.one_hot(lessons.labels[head], len(names)) * 0.98 + 0.02 / len(names)
        named += -(smooth * logits[head].log_softmax(dim=1)).sum(dim=1).mean().item()
    placed = lessons.placed
    measured = (geometry - lessons.geometry)[placed].square().mean().item()
    assert loss_of(lessons, network) == pytest.approx(named + GEOMETRY_WEIGHT * measured, rel=1e-5)
    nowhere = torch.zeros_like(placed)
    assert loss_of(lessons, network, placed=nowhere) == pytest.approx(named, rel=1e-5)


def test_pictures_are_shown_with_noise_within_their_range(lessons: Lessons) -> None:
    seen = []

    def network(images: Tensor) -> Any:
        seen.append(images)
        n = len(images)
        logits = {head: torch.zeros(n, len(names)) for head, names in CLASSES.items()}
        return SimpleNamespace(logits=logits, geometry=torch.zeros(n, 5))

    loss_of(lessons, network)
    (shown,) = seen
    assert shown.min() >= 0
    assert shown.max() <= 255
    spread = (shown - lessons.images).flatten(1).std(dim=1)
    assert spread.max() < 6.5
    assert spread.max() > 2 * spread.min()  # from nearly none to much


def test_it_learns_and_what_it_reads_right_is_counted(
    lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    torch.manual_seed(0)
    network = WorldClassifier(CLASSES, widths=(16, 16, 32, 32))
    loss = naming_loss(network, lessons.images, lessons.labels, lessons.geometry, lessons.placed)
    first, last = descend(network, loss, pictures=len(lessons.captions), steps=60, rate=5e-3)
    assert last < 0.4 * first
    found = read(network, lessons.images, CLASSES, batch_size=5)
    assert found.keys() == CLASSES.keys()
    assert all(classes.shape == (len(lessons.captions),) for classes in found.values())
    for head, label in lessons.labels.items():
        assert (found[head] == label).float().mean() > 0.8
        assert torch.equal(found[head], read(network, lessons.images, [head])[head])
