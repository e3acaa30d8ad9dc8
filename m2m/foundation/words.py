"""The tokenizer: CLIP's byte-pair encoding, learned from the captions of the world."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

MAX_TOKENS = 16
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def learn_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in whose vocabulary every word of the captions becomes one token.

    Printable ASCII is its alphabet, so that any other English caption can be encoded too, if in more tokens.
    """
    bare = CLIPTokenizer()
    learner = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer = bare.backend_tokenizer.normalizer
    learner.pre_tokenizer = bare.backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        special_tokens=[],
        initial_alphabet=[*string.ascii_letters, *string.digits, *string.punctuation],
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    # Sorted and unique: the merges depend on the words alone, not on how often a corpus repeats them.
    learner.train_from_iterator(sorted(set(captions)), trainer)
    model = json.loads(learner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    alphabet = [letter for letter in tokens if len(letter) == 1]
    endings = [letter + END_OF_WORD for letter in alphabet]
    vocabulary = list(dict.fromkeys([*tokens, *endings, START, END]))
    merges: Any = [tuple(pair) for pair in model["merges"]]  # pairs, although its annotation says strings
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
