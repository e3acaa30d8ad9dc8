import json
from pathlib import Path
from typing import get_args

import pytest
from transformers import CLIPTokenizer

from m2m.foundation.words import MAX_TOKENS, learn_tokenizer
from m2m.manifest import Split
from m2m.world.grammar import KINDS, captions_naming, procedure_captions, view_captions


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
def tokenizer(captions: list[str]) -> CLIPTokenizer:
    return learn_tokenizer(captions)


def words(caption: str) -> list[str]:
    """Punctuation marks are words of their own."""
    return caption.replace(",", " ,").replace(":", " :").split()


def test_every_word_is_one_token_and_every_caption_fits(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    encoded = tokenizer(captions, truncation=False)["input_ids"]
    assert [len(ids) for ids in encoded] == [len(words(caption)) + 2 for caption in captions]
    assert max(map(len, encoded)) <= MAX_TOKENS == tokenizer.model_max_length


def test_captions_come_back(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    encoded = tokenizer(captions)["input_ids"]
    decoded = tokenizer.batch_decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert [text.split() for text in decoded] == [words(caption) for caption in captions]
    assert {ids[0] for ids in encoded} == {tokenizer.bos_token_id}
    assert {ids[-1] for ids in encoded} == {tokenizer.eos_token_id}


def test_other_english_is_encoded_too(tokenizer: CLIPTokenizer) -> None:
    text = "Two photographs of Zürich's old town? 100% grey!"
    ids = tokenizer(text.replace("ü", "u"), truncation=False)["input_ids"]
    back = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert back.replace(" ", "") == text.replace("ü", "u").replace(" ", "").lower()


def test_it_depends_on_the_words_alone(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    again = learn_tokenizer([*reversed(captions), *captions[:50]])
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(captions[::97])["input_ids"] == tokenizer(captions[::97])["input_ids"]


def test_it_is_padded_and_saved_as_clip_does(tokenizer: CLIPTokenizer, captions: list[str], tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    options = {"padding": "max_length", "truncation": True}
    assert loaded(captions[::97], **options)["input_ids"] == tokenizer(captions[::97], **options)["input_ids"]
    assert loaded.model_max_length == MAX_TOKENS
    (ids,) = loaded([""], **options)["input_ids"]
    assert ids == [loaded.bos_token_id] + [loaded.eos_token_id] * (MAX_TOKENS - 1)
    assert len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]) == len(loaded) < 600
