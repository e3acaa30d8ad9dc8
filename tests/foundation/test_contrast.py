from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from m2m.foundation import contrast
from m2m.foundation.text_to_image import tokenize
from m2m.foundation.world import Lessons
from m2m.params import TransformerFit

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


def test_equal_captions_count_as_right_for_each_other() -> None:
    logits = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    model: Any = lambda **_: SimpleNamespace(logits_per_image=logits, logits_per_text=logits.T)  # noqa: E731
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    twice, thrice = torch.tensor([[1, 2], [1, 2], [1, 3]]), torch.tensor([[1, 2], [1, 4], [1, 3]])
    batch, draws = torch.arange(3), torch.Generator()
    soft = contrast.contrastive_loss(model, images, twice)(batch, draws).item()
    hard = contrast.contrastive_loss(model, images, thrice)(batch, draws).item()
    half, third = torch.tensor([9.0, 9.0, 0.0]).log_softmax(0)[0], torch.tensor([0.0, 0.0, 9.0]).log_softmax(0)[2]
    assert soft == pytest.approx(-(2 * half + third).item() / 3, rel=1e-5)
    assert soft == pytest.approx(hard, rel=1e-5)  # the two halves are equally likely either way
    other: Any = lambda **_: SimpleNamespace(logits_per_image=logits.roll(1, 0), logits_per_text=logits.T)  # noqa: E731
    assert contrast.contrastive_loss(other, images, twice)(batch, draws).item() > soft + 1


def test_it_learns(
    model: CLIPModel, tokenizer: CLIPTokenizer, lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    loss = contrast.contrastive_loss(model, lessons.images, tokenize(tokenizer, lessons.captions))
    first, last = descend(model, loss, pictures=len(lessons.captions), steps=30)
    assert last < 0.6 * first
