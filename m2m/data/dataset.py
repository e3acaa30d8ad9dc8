"""A dataset as it is read: the sets of a split, verified, decoded as far as they are asked for, and in what order.

A shard is fetched and verified once an epoch by each rank whose sets lie in it, mostly one; of its sets that alone is
decoded which is asked for: M2M-Self trains on latents and opens no picture, M2M-DINO opens those that it was dealt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from itertools import accumulate, chain
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m.data.sets import ImageSet, Shard, StoredSet
from m2m.errors import UserError
from m2m.manifest import Block, Manifest, ShardEntry, Split
from m2m.seeds import derive
from m2m.store import Store

CACHE_BYTES = 1 << 30
"""Decoded images and latents that `ImageSets` keeps in memory."""
SHARDS_OPEN = 8
"""Enough for who takes sets in their order."""


class ImageSets:
    """The sets of one split, in the manifest's order. Any number of threads may ask.

    A shard is fetched and verified when one of its sets is asked for.

    Args:
        cache_bytes: how much of what was decoded stays in memory.
        shards_open: how many files stay open, and so on the disk, whatever a cache removes; each with those that add
            images to its sets.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: Split,
        *,
        cache_bytes: int = CACHE_BYTES,
        shards_open: int = SHARDS_OPEN,
    ) -> None:
        self._store, self._shards_open, self._sizes = store, shards_open, manifest.sizes
        self._blocks = tuple(manifest.blocks(split))
        self.counts = tuple(block[-1].count for block in self._blocks)
        """Sets of each shard; one that adds images belongs to that whose sets it adds to."""
        self._ends = list(accumulate(self.counts))
        self._decoded = _Decoded(cache_bytes)
        self._open: OrderedDict[str, Future[Sequence[StoredSet]]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> ImageSet:
        """One set, all of it.

        Raises:
            IndexError: there are not so many.
            UserError: its shard is missing or damaged, or does not hold what the manifest says.
        """
        return self.stored(index).whole()

    def stored(self, index: int) -> StoredSet:
        """One set, of which nothing is decoded yet.

        Raises:
            IndexError: there are not so many.
            UserError: its shard is missing or damaged, or does not hold what the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = bisect_right(self._ends, index)
        return self._sets(self._blocks[position])[index - self._ends[position] + self.counts[position]]

    def _sets(self, block: Block) -> Sequence[StoredSet]:
        key = block[0].key
        with self._lock:
            is_new = key not in self._open
            sets = self._open.setdefault(key, Future())
            self._open.move_to_end(key)
            while len(self._open) > self._shards_open:
                self._open.popitem(last=False)
        if is_new:
            try:
                sets.set_result(self._load(block))
            except BaseException as error:
                with self._lock:
                    self._open.pop(key, None)  # who asks again, tries again
                sets.set_exception(error)
        return sets.result()

    def _load(self, block: Block) -> Sequence[StoredSet]:
        sets = joined([self._load_shard(entry, sizes) for entry, sizes in zip(block, self._sizes(block), strict=True)])
        if len(sets) != (said := block[-1].count):
            raise UserError(f"{block[-1].key}: {len(sets)} sets are in all shards of it; the manifest says {said}")
        return sets

    def _load_shard(self, entry: ShardEntry, sizes: range) -> list[StoredSet]:
        path = self._store.get(entry.key, entry.sha256, entry.size)
        try:
            shard = Shard(path)
        except UserError:
            if path.exists():
                raise
            # Another process made room in the cache between the two.
            shard = Shard(self._store.get(entry.key, entry.sha256, entry.size))
        sets = [shard.open_set(id_, partial(self._decoded.get, entry.key, id_)) for id_ in shard]
        if problems := shard_problems(entry, sets, sizes):
            raise UserError(f"{entry.key}: {problems[0]}")
        return sets


class JoinedSet(StoredSet):
    """A set to which images were added: some lie in one shard, and further ones in others.

    Raises:
        UserError: its parts do not go on from each other.
    """

    def __init__(self, parts: Sequence[StoredSet]) -> None:
        first, self._parts = parts[0], parts
        self.id, self.caption, self.generator, self.first_image = first.id, first.caption, first.generator, 0
        self.count = sum(part.count for part in parts)
        self.extras = {name: [*chain.from_iterable(one.extras.get(name, ()) for one in parts)] for name in first.extras}
        self._owners = [(part, place) for part in parts for place in range(part.count)]
        starts = [*accumulate((part.count for part in parts), initial=0)][:-1]
        described = {(one.caption, one.generator, one.latents_kept, *sorted(one.extras)) for one in parts}
        if [part.first_image for part in parts] != starts or len(described) > 1:
            raise UserError(
                f"set {first.id}: the images that were added to it are not of that set, or do not follow it"
            )

    @property
    def latents_kept(self) -> bool:
        return self._parts[0].latents_kept

    def pictures(self, places: Iterable[int]) -> npt.NDArray[np.uint8]:
        pictures = [part.pictures([place])[0] for part, place in map(self._owners.__getitem__, places)]
        if len({picture.shape for picture in pictures}) > 1:
            raise UserError(f"set {self.id}: the images that were added to it are of another size")
        return np.stack(pictures)

    @property
    def latents(self) -> npt.NDArray[np.float32] | None:
        of_parts = [part.latents for part in self._parts]
        kept = [latents for latents in of_parts if latents is not None]
        return np.concatenate(kept) if len(kept) == len(of_parts) else None


def joined(shards: Sequence[Sequence[StoredSet]]) -> Sequence[StoredSet]:
    """The sets of a block's shards: those that all of them have, each with all of its images.

    Raises:
        UserError: the parts of a set do not go on from each other.
    """
    first, *others = shards
    if not others:
        return first
    added = [{one.id: one for one in sets} for sets in others]
    return [JoinedSet([one, *(of[one.id] for of in added)]) for one in first if all(one.id in of for of in added)]


def shard_problems(shard: ShardEntry, sets: Sequence[ImageSet | StoredSet], set_sizes: range) -> list[str]:
    """In what the sets of a shard differ from what the manifest says of it.

    Args:
        set_sizes: how many images a set may have in it (`Manifest.sizes`).
    """
    problems = []
    expected = " to ".join(map(str, sorted({set_sizes[0], set_sizes[-1]})))
    # Where images are added, another shard of the block may lack sets: who joins them counts those that are left.
    if len(sets) < shard.count or (len(sets) > shard.count and not shard.first_image):
        problems.append(f"it holds {len(sets)} sets; the manifest says {shard.count}")
    if sets and (sets[0].id, sets[-1].id) != (shard.first_set, shard.last_set):
        problems.append(
            f"it holds the sets {sets[0].id} to {sets[-1].id}; the manifest says {shard.first_set} to {shard.last_set}"
        )
    problems += [
        f"set {one.id} begins with image {one.first_image}; the manifest says {shard.first_image}"
        for one in sets
        if one.first_image != shard.first_image
    ]
    return problems + [
        f"set {one.id} has {one.count} images; the manifest says {expected} in each set"
        for one in sets
        if one.count not in set_sizes
    ]


class _Decoded:
    """What was decoded last, as much of it as there is room for."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._arrays: OrderedDict[tuple[str, ...], npt.NDArray[Any]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, id_: str, part: str, decode: Callable[[str], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """A part of a set, decoded unless it is there."""
        place = (key, id_, part)
        with self._lock:
            if (found := self._arrays.get(place)) is not None:
                self._arrays.move_to_end(place)
                return found
        made = decode(part)
        with self._lock:
            if place not in self._arrays:
                self._arrays[place] = made
                self._bytes += made.nbytes
            while self._bytes > self._most:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return made


class TrainingOrder:
    """In which order training takes the sets of shards: every set once an epoch, each epoch in an order of its own.

    Shards come in random order, and the sets of each in random order. That row of sets is cut into as many stretches as
    a step takes sets, its lanes: the sets of a step are one of each lane. So a step mixes many shards, and yet a shard
    is read through by one lane before its next begins: however many ranks share the lanes of a step, a shard is fetched
    once an epoch, and once more by another rank whose stretch begins within it; and each rank has about as many open as
    it has lanes.

    A pure function: any rank at any time, resumed or not, knows any step.

    Args:
        counts: sets of each shard.
        sets_per_step: of all ranks together.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, sets_per_step: int) -> None:
        self._counts, self._seed, self._lanes = np.asarray(counts), seed, sets_per_step
        self._first = np.concatenate([[0], self._counts.cumsum()[:-1]])  # of each shard in the dataset
        self._sets = int(self._counts.sum())
        self._shards = lru_cache(maxsize=2)(self._shards_of)
        self._within = lru_cache(maxsize=4 * sets_per_step)(self._within_of)

    def step(self, step: int) -> list[tuple[int, int]]:
        """The global batch of an optimizer step (from 0): for each set its index, and in which epoch it comes up.

        Batches go on over the end of an epoch.
        """
        places = range(step * self._lanes, (step + 1) * self._lanes)
        return [(self._index(*divmod(place, self._sets)), place // self._sets) for place in places]

    def _index(self, epoch: int, number: int) -> int:
        """The set that comes up as the number-th of an epoch."""
        row, lane = divmod(number, self._lanes)
        length, longer = divmod(self._sets, self._lanes)  # the first lanes have one set more
        place = lane * length + min(lane, longer) + row
        order, ends = self._shards(epoch)
        position = int(np.searchsorted(ends, place, side="right"))
        shard = int(order[position])
        within = place - int(ends[position]) + int(self._counts[shard])
        return int(self._first[shard]) + int(self._within(epoch, shard)[within])

    def _shards_of(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The shards in an epoch's order, and where each ends in it: two of (shards,)."""
        order = np.random.default_rng(derive(self._seed, "epoch", epoch)).permutation(len(self._counts))
        return order, self._counts[order].cumsum()

    def _within_of(self, epoch: int, shard: int) -> npt.NDArray[np.int64]:
        """The order of a shard's sets: (its sets,)."""
        return np.random.default_rng(derive(self._seed, "epoch", epoch, shard)).permutation(int(self._counts[shard]))


def choose_images(*, seed: int, index: int, epoch: int, images: int, set_size: int, ordered: bool) -> tuple[int, ...]:
    """Which images of a set an epoch trains on, `set_size` of its `images`, or all if it has fewer.

    Each epoch makes another choice: where images have an order a run of them, else any, in random order.
    """
    draws = np.random.default_rng(derive(seed, "images", epoch, index))
    if ordered:
        start = int(draws.integers(max(images - set_size, 0) + 1))
        return tuple(range(start, min(start + set_size, images)))
    return tuple(draws.permutation(images)[:set_size].tolist())
