"""Where every random number of the project comes from: a hash of what it is for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *parts: str | int) -> int:
    """The seed (63 bits) that belongs to `parts` in a run seeded with `seed`.

    It never changes: neither with a library's version nor with what else a run does, or in which order. Different parts
    give independent seeds; ``1`` and ``"1"`` differ.

    >>> derive(0, "noise", 1)
    510586226377633897
    """
    text = json.dumps([seed, *parts], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator seeded for `parts`. Noise drawn from it is the same whatever device it is moved to."""
    import torch

    return torch.Generator("cpu").manual_seed(derive(seed, *parts))


def normal(shape: Sequence[int], *generators: torch.Generator) -> torch.Tensor:
    """Standard normal noise, one tensor of `shape` a generator: (n, *shape), float32, on the CPU.

    Of another type, as torch's default may be, the numbers would be others.
    """
    import torch

    return torch.stack(
        [torch.randn(tuple(shape), generator=one, dtype=torch.float32, device="cpu") for one in generators]
    )


def image_seed(run_seed: int, set_id: str, image_index: int, attempt: int = 0) -> int:
    """The seed of one image of one set, so that any worker draws the same image; `attempt` counts its redraws."""
    return derive(run_seed, "image", set_id, image_index, attempt)


def rounds(seed: int, split: str, combinations: int, count: int) -> Iterator[tuple[int, int]]:
    """`count` times a round and an index below `combinations`: each round takes all of them, in an order of its own."""
    for number in range(count):
        turn, position = divmod(number, combinations)
        if not position:
            order = list(range(combinations))
            Random(derive(seed, "combinations", split, turn)).shuffle(order)
        yield turn, order[position]
