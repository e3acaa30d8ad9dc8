"""Sets that lie in no shard, as training takes them."""

from __future__ import annotations

from collections.abc import Iterable

from m2m.data.sets import ImageSet


class InMemory(list[ImageSet]):
    """All of one shard, unless `counts` is set."""

    def __init__(self, sets: Iterable[ImageSet]) -> None:
        super().__init__(sets)
        self.counts: tuple[int, ...] = (len(self),)

    def stored(self, index: int) -> ImageSet:
        return self[index]
