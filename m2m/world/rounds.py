"""An even choice among what the world can show."""

from collections.abc import Iterator
from random import Random

from m2m.manifest import Split
from m2m.seeds import derive


def rounds(seed: int, split: Split, combinations: int, count: int) -> Iterator[tuple[int, int]]:
    """`count` times a round and an index below `combinations`: each round takes all of them, in an order of its own."""
    for number in range(count):
        turn, position = divmod(number, combinations)
        if not position:
            order = list(range(combinations))
            Random(derive(seed, "combinations", split, turn)).shuffle(order)
        yield turn, order[position]
