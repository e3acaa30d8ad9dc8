"""The tokenizer: CLIP's byte-pair encoding, learned from the captions of the world."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from transformers import CLIPTokenizer

MAX_TOKENS = 16
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def learn_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in whose vocabulary every word of the captions becomes one token.

    Printable ASCII is its alphabet, so that any other English caption can be encoded too, if in more tokens. The ids
    depend on the words alone, not on how often a corpus repeats them.
    """
    bare = CLIPTokenizer().backend_tokenizer
    normalized = {bare.normalizer.normalize_str(caption) for caption in captions}
    merges = learn_merges({word for text in normalized for word, _ in bare.pre_tokenizer.pre_tokenize_str(text)})
    alphabet = sorted({*string.ascii_letters, *string.digits, *string.punctuation})
    endings = [letter + END_OF_WORD for letter in alphabet]
    vocabulary = dict.fromkeys([*alphabet, *endings, *map("".join, merges), START, END])
    pairs: Any = merges  # annotated as a list of strings, used as a list of pairs
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=pairs,
        model_max_length=MAX_TOKENS,
    )


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al., 2016): joins the commonest neighbours until each word is one token.

    Of equally common pairs the first in alphabetical order is joined. The trainer of the tokenizers library leaves that
    to a hash table, so that its ids, and with them trained embeddings, would differ from process to process.
    """
    merges: list[tuple[str, str]] = []
    split = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))]
    while pairs := Counter(pair for tokens in split for pair in pairwise(tokens)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        for tokens in split:
            _join(tokens, *merges[-1])
    return merges


def _join(tokens: list[str], first: str, second: str) -> None:
    """Joins each such pair in place, from the left."""
    index = 0
    while index < len(tokens) - 1:
        if (tokens[index], tokens[index + 1]) == (first, second):
            tokens[index : index + 2] = [first + second]
        index += 1
