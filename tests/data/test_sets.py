import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.data.sets import ImageSets, batch_order, shard_problems
from m2m.data.shards import ImageSet, write_shard
from m2m.errors import UserError
from m2m.manifest import Manifest, ShardEntry, Split, shard_key
from m2m.store import LocalStore

N = 3


def image_set(number: int) -> ImageSet:
    images = np.full((N, 8, 8, 3), number, np.uint8)
    return ImageSet(id=f"set-{number}", caption=str(number), images=images, latents=np.ones((N, 4, 1, 1), np.float32))


def add(store: LocalStore, numbers: range, split: Split, folder: Path) -> ShardEntry:
    stats = write_shard(map(image_set, numbers), folder / "shard.tar")
    store.put(shard_key(stats.sha256), folder / "shard.tar", stats.sha256)
    return ShardEntry(key=shard_key(stats.sha256), split=split, **vars(stats))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def manifest(store: LocalStore, tmp_path: Path) -> Manifest:
    """Seven sets for training in three shards, two for the test in one."""
    entries = [add(store, numbers, "train", tmp_path) for numbers in (range(3), range(3, 6), range(6, 7))]
    entries.append(add(store, range(7, 9), "test", tmp_path))
    return Manifest(schema_version=1, kind="mis", made_by={}, images_per_set=N, redrawn=0, shards=tuple(entries))


def test_sets_come_in_the_order_of_the_manifest(store: LocalStore, manifest: Manifest) -> None:
    train, test = ImageSets(store, manifest, "train"), ImageSets(store, manifest, "test")
    assert (len(train), len(test)) == (7, 2)
    assert [one.caption for one in map(train.__getitem__, range(7))] == list("0123456")
    assert [one.id for one in test] == ["set-7", "set-8"]
    assert train[6].images.max() == 6
    for index in (-1, 7):
        with pytest.raises(IndexError):
            train[index]


def test_a_shard_is_read_once_while_there_is_room(
    store: LocalStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key, *rest: fetched.append(key) or get(key, *rest))
    sets = ImageSets(store, manifest, "train")
    assert not fetched
    for index in (0, 5, 1, 6, 2, 4):
        sets[index]
    assert Counter(fetched) == Counter(entry.key for entry in manifest.split("train"))


def test_memory_is_bounded_and_the_oldest_shard_goes(
    store: LocalStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key, *rest: fetched.append(key) or get(key, *rest))
    one_set = image_set(0).images.nbytes + N * 4 * 4
    first, second, third = (entry.key for entry in manifest.split("train"))
    sets = ImageSets(store, manifest, "train", cache_bytes=6 * one_set)
    for index in (0, 3, 0, 6, 0, 3):
        sets[index]
    assert fetched == [first, second, third, second]
    fetched.clear()
    sets = ImageSets(store, manifest, "train", cache_bytes=0)
    for index in (0, 1, 3, 2):
        sets[index]
    assert fetched == [first, second, first]


def test_a_damaged_shard_is_named(store: LocalStore, manifest: Manifest) -> None:
    path = store.get(manifest.shards[1].key, manifest.shards[1].sha256, manifest.shards[1].size)
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    sets = ImageSets(store, manifest, "train")
    assert sets[0].id == "set-0"
    with pytest.raises(UserError, match=manifest.shards[1].key):
        sets[3]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"count": 4}, "it holds 3 sets; the manifest says 4"),
        ({"first_set": "set-1"}, "it holds the sets set-0 to set-2; the manifest says set-1 to set-2"),
        ({"last_set": "x"}, "it holds the sets set-0 to set-2; the manifest says set-0 to x"),
    ],
)
def test_a_shard_holds_what_the_manifest_says(
    change: dict[str, object], problem: str, store: LocalStore, manifest: Manifest
) -> None:
    wrong = manifest.model_copy(update={"shards": (manifest.shards[0].model_copy(update=change),)})
    with pytest.raises(UserError, match=f"{manifest.shards[0].key}: {problem}"):
        ImageSets(store, wrong, "train")[0]


def test_the_number_of_images_and_the_latents_are_checked(manifest: Manifest) -> None:
    sets = [image_set(number) for number in range(3)]
    assert shard_problems(manifest.shards[0], sets, N) == []
    assert shard_problems(manifest.shards[0], sets, N + 1) == [
        f"set set-{number} has 3 images; the manifest says 4 in each set" for number in range(3)
    ]
    latents = sets[1].latents
    assert latents is not None
    latents[1, 2] = np.nan
    assert shard_problems(manifest.shards[0], sets, N) == ["set set-1 has latents that are not finite"]


SIZES = {"sets": 7, "sets_per_step": 3, "set_size": 4, "images_per_set": 6}


def orders(steps: int, seed: int = 0) -> list[tuple[int, tuple[int, ...]]]:
    return [one for step in range(steps) for one in batch_order(seed=seed, step=step, **SIZES)]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**40), sets=st.integers(1, 20), sets_per_step=st.integers(1, 30), data=st.data())
def test_an_epoch_takes_every_set_once(seed: int, sets: int, sets_per_step: int, data: st.DataObject) -> None:
    images_per_set = data.draw(st.integers(1, 8))
    set_size = data.draw(st.integers(1, images_per_set))
    steps = -(-3 * sets // sets_per_step)
    order = [
        one
        for step in range(steps)
        for one in batch_order(
            seed=seed,
            sets=sets,
            sets_per_step=sets_per_step,
            set_size=set_size,
            images_per_set=images_per_set,
            step=step,
        )
    ]
    assert len(order) == steps * sets_per_step
    for epoch in range(3):
        assert sorted(index for index, _ in order[epoch * sets : (epoch + 1) * sets]) == list(range(sets))
    for _, images in order:
        assert len(images) == len(set(images)) == set_size
        assert set(images) <= set(range(images_per_set))


def test_the_batches_never_change() -> None:
    assert orders(2) == [
        *((1, (0, 2, 3, 1)), (5, (3, 0, 5, 1)), (3, (5, 3, 0, 1))),
        *((4, (3, 0, 5, 1)), (2, (0, 3, 1, 4)), (6, (4, 5, 2, 1))),
    ]


def test_a_step_is_known_without_those_before_it() -> None:
    expected = orders(10)
    for step in (9, 0, 5):
        assert batch_order(seed=0, step=step, **SIZES) == expected[3 * step : 3 * step + 3]


def test_epochs_and_seeds_differ() -> None:
    epochs = [[index for index, _ in orders(7)[start : start + 7]] for start in (0, 7, 14)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert orders(7) != orders(7, seed=1)


def test_images_of_a_set_are_chosen_and_ordered_evenly() -> None:
    chosen = Counter(place for _, images in orders(700) for place in enumerate(images))
    assert len(chosen) == 4 * 6
    assert all(abs(count - 2100 / 6) < 5 * (2100 / 6 * 5 / 6) ** 0.5 for count in chosen.values())
    pairs = {(a[1], b[1]) for a, b in itertools.pairwise(sorted(orders(70)))}
    assert len(pairs) > 60


def test_more_images_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="cannot train with 7 images of each set on 7 sets of 6; raise"):
        batch_order(seed=0, step=0, **{**SIZES, "set_size": 7})
    with pytest.raises(UserError, match="on 0 sets"):
        batch_order(seed=0, step=0, **{**SIZES, "sets": 0})
