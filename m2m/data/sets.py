"""The sets of a dataset, verified as they are read, and the order in which training takes them."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from m2m.data.shards import ImageSet, read_shard
from m2m.errors import UserError
from m2m.manifest import Manifest, ShardEntry, Split
from m2m.seeds import derive
from m2m.store import Store

CACHE_BYTES = 1 << 30
"""Decoded images and latents that `ImageSets` keeps in memory."""


class ImageSets:
    """The sets of one split, in the manifest's order.

    A shard is fetched, verified and decoded when one of its sets is asked for.

    Args:
        cache_bytes: how much of what was decoded stays in memory; the shard that was used last always does.
    """

    def __init__(self, store: Store, manifest: Manifest, split: Split, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._set_sizes = manifest.set_sizes
        self._shards = manifest.split(split)
        self._ends = list(accumulate(shard.count for shard in self._shards))
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, list[ImageSet]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> ImageSet:
        """One set.

        Raises:
            IndexError: there are not so many.
            UserError: its shard is missing or damaged, or does not hold what the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = bisect_right(self._ends, index)
        shard = self._shards[position]
        return self._sets(shard)[index - self._ends[position] + shard.count]

    def _sets(self, shard: ShardEntry) -> list[ImageSet]:
        if shard.key in self._cache:
            self._cache.move_to_end(shard.key)
            return self._cache[shard.key]
        sets = list(read_shard(self._store.get(shard.key, shard.sha256, shard.size)))
        if problems := shard_problems(shard, sets, self._set_sizes):
            raise UserError(f"{shard.key}: {problems[0]}")
        self._cache[shard.key] = sets
        while len(self._cache) > 1 and sum(map(_size, self._cache.values())) > self._cache_bytes:
            self._cache.popitem(last=False)
        return sets


def shard_problems(shard: ShardEntry, sets: Sequence[ImageSet], set_sizes: range) -> list[str]:
    """In what the sets of a shard differ from what the manifest says of it.

    Args:
        set_sizes: how many images a set may have (`Manifest.set_sizes`).
    """
    problems = []
    expected = " to ".join(map(str, sorted({set_sizes[0], set_sizes[-1]})))
    if len(sets) != shard.count:
        problems.append(f"it holds {len(sets)} sets; the manifest says {shard.count}")
    if sets and (sets[0].id, sets[-1].id) != (shard.first_set, shard.last_set):
        problems.append(
            f"it holds the sets {sets[0].id} to {sets[-1].id}; the manifest says {shard.first_set} to {shard.last_set}"
        )
    for image_set in sets:
        if len(image_set.images) not in set_sizes:
            problems.append(
                f"set {image_set.id} has {len(image_set.images)} images; the manifest says {expected} in each set"
            )
        if image_set.latents is not None and not np.isfinite(image_set.latents).all():
            problems.append(f"set {image_set.id} has latents that are not finite")
    return problems


def batch_order(*, seed: int, sets: int, sets_per_step: int, step: int) -> list[tuple[int, int]]:
    """The global batch of optimizer step `step` (from 0): for each set its index, and in which epoch it comes up.

    An epoch takes every set once, in an order of its own; batches go on over its end.

    A pure function, so that any rank at any time, resumed or not, knows any batch.
    """
    batch = []
    for position in range(step * sets_per_step, (step + 1) * sets_per_step):
        epoch, place = divmod(position, sets)
        batch.append((int(_epoch_order(seed, epoch, sets)[place]), epoch))
    return batch


def choose_images(*, seed: int, index: int, epoch: int, images: int, set_size: int, ordered: bool) -> tuple[int, ...]:
    """Which images of a set an epoch trains on, `set_size` of its `images`, or all if it has fewer.

    Each epoch makes another choice: where images have an order a run of them, else any, in random order.
    """
    draws = np.random.default_rng(derive(seed, "images", epoch, index))
    if ordered:
        start = int(draws.integers(max(images - set_size, 0) + 1))
        return tuple(range(start, min(start + set_size, images)))
    return tuple(draws.permutation(images)[:set_size].tolist())


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, sets: int) -> npt.NDArray[np.int64]:
    """The order of the sets in one epoch. (sets,)"""
    return np.random.default_rng(derive(seed, "epoch", epoch)).permutation(sets)


def _size(sets: list[ImageSet]) -> int:
    return sum(s.images.nbytes + (0 if s.latents is None else s.latents.nbytes) for s in sets)
