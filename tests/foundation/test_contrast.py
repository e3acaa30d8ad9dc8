from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from m2m.foundation import contrast
from m2m.foundation.text_to_image import tokenize
from m2m.foundation.world import Lessons
from m2m.params import TransformerFit
from m2m.world.corpus import OPEN
from m2m.world.grammar import parse
from m2m.world.vocabulary import CONSTRUCTION, RENDERED

TINY = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=32, layers=1)


@pytest.fixture
def model(tokenizer: CLIPTokenizer) -> CLIPModel:
    torch.manual_seed(0)
    return contrast.build(TINY, tokenizer)


def test_the_folder_gives_model_and_processor_back(
    model: CLIPModel, tokenizer: CLIPTokenizer, lessons: Lessons, tmp_path: Path
) -> None:
    contrast.save(tmp_path, model.eval(), tokenizer)
    loaded, processor = CLIPModel.from_pretrained(tmp_path), CLIPProcessor.from_pretrained(tmp_path)
    inputs = processor(
        text=lessons.captions, images=list(lessons.images), return_tensors="pt", padding="max_length", truncation=True
    )
    torch.testing.assert_close(inputs["pixel_values"], contrast.pixels(lessons.images), atol=1e-5, rtol=0)
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
    assert contrast.true_of(shown, said).tolist() == [
        [True, True, True, False, False],
        [False, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, False],
    ]


def test_each_caption_is_true_of_its_own_picture(lessons: Lessons) -> None:
    true = contrast.true_of(lessons.shown, lessons.said)
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
    loss = contrast.contrastive_loss(stub(by_image, by_text), images, tokens, shown, said)
    pictures, captions = by_image.log_softmax(dim=1), by_text.log_softmax(dim=1)
    found = loss(torch.arange(3), torch.Generator()).item()
    of_pictures = (pictures[0, :2].mean() + pictures[1, 1] + pictures[2, 2]) / 3
    of_captions = (captions[0, 0] + captions[1, :2].mean() + captions[2, 2]) / 3
    assert found == pytest.approx(-(of_pictures + of_captions).item() / 2, rel=1e-5)


def test_the_loss_is_of_the_batch_s_own_traits() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    shown = torch.tensor([[0, 1, 0], [0, 2, 0], [0, 1, 0]])
    images, tokens = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 1).long()
    loss = contrast.contrastive_loss(stub(logits, logits), images, tokens, shown, shown)
    different, equal = (loss(torch.tensor(batch), torch.Generator()).item() for batch in ([0, 1], [2, 0]))
    assert different < 0.001
    assert equal == pytest.approx(4.5, abs=0.01)  # both are right for both: half of each is where nothing was found


def test_where_the_colour_is_open_half_of_the_pictures_are_shown_without(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 256
    images = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    images[:, 0] = 255  # red
    shown = torch.zeros(count, 3).long()
    said = shown.clone()
    said[::2, contrast.COLOUR] = OPEN
    seen, true = [], []

    def model(*, pixel_values: Tensor, **_: Any) -> Any:
        seen.append(pixel_values)
        return SimpleNamespace(logits_per_image=torch.zeros(count, count), logits_per_text=torch.zeros(count, count))

    true_of = contrast.true_of
    monkeypatch.setattr(contrast, "true_of", lambda *traits: true.append(true_of(*traits)) or true[-1])
    loss = contrast.contrastive_loss(model, images, shown[:, :1], shown, said)  # type: ignore[arg-type]
    loss(torch.arange(count), torch.Generator().manual_seed(0))
    grey = (seen[0][:, 0] == seen[0][:, 1]).flatten(1).all(dim=1)
    assert not grey[1::2].any()
    assert 0.4 < grey[::2].float().mean() < 0.6
    assert true[0][:, ::2].all(), "what leaves the colour open is true of all"
    assert torch.equal(true[0][:, 1], ~grey), "what names it is true of those that show it"


def test_it_learns(
    model: CLIPModel, tokenizer: CLIPTokenizer, lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    tokens = tokenize(tokenizer, lessons.captions)
    loss = contrast.contrastive_loss(model, lessons.images, tokens, lessons.shown, lessons.said)
    first, last = descend(model, loss, pictures=len(lessons.captions), steps=30)
    assert last < 0.6 * first
