import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.data.sets import ImageSets, batch_order, choose_images, shard_problems
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
    assert shard_problems(manifest.shards[0], sets, range(N, N + 1)) == []
    assert shard_problems(manifest.shards[0], sets, range(N + 1, N + 2)) == [
        f"set set-{number} has 3 images; the manifest says 4 in each set" for number in range(3)
    ]
    assert shard_problems(manifest.shards[0], sets, range(2, N + 3)) == [], "procedures differ in length"
    assert shard_problems(manifest.shards[0], sets, range(2, N))[0] == (
        "set set-0 has 3 images; the manifest says 2 in each set"
    )
    latents = sets[1].latents
    assert latents is not None
    latents[1, 2] = np.nan
    assert shard_problems(manifest.shards[0], sets, range(N, N + 1)) == ["set set-1 has latents that are not finite"]


SIZES = {"sets": 7, "sets_per_step": 3}


def orders(steps: int, seed: int = 0) -> list[tuple[int, int]]:
    return [one for step in range(steps) for one in batch_order(seed=seed, step=step, **SIZES)]


def choose(index: int, epoch: int, *, seed: int = 0, ordered: bool = False, images: int = 6) -> tuple[int, ...]:
    return choose_images(seed=seed, index=index, epoch=epoch, images=images, set_size=4, ordered=ordered)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**40), sets=st.integers(1, 20), sets_per_step=st.integers(1, 30))
def test_an_epoch_takes_every_set_once(seed: int, sets: int, sets_per_step: int) -> None:
    steps = -(-3 * sets // sets_per_step)
    order = [
        one
        for step in range(steps)
        for one in batch_order(seed=seed, sets=sets, sets_per_step=sets_per_step, step=step)
    ]
    assert len(order) == steps * sets_per_step
    for epoch in range(3):
        of_epoch = order[epoch * sets : (epoch + 1) * sets]
        assert sorted(index for index, _ in of_epoch) == list(range(sets))
        assert {number for _, number in of_epoch} == {epoch}


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    index=st.integers(0, 99),
    epoch=st.integers(0, 99),
    images=st.integers(1, 8),
    set_size=st.integers(1, 8),
    ordered=st.booleans(),
)
def test_images_are_of_the_set_each_once_and_a_run_where_they_have_an_order(
    seed: int, index: int, epoch: int, images: int, set_size: int, ordered: bool
) -> None:
    chosen = choose_images(seed=seed, index=index, epoch=epoch, images=images, set_size=set_size, ordered=ordered)
    assert len(chosen) == len(set(chosen)) == min(set_size, images)
    assert set(chosen) <= set(range(images))
    if ordered:
        assert chosen == tuple(range(chosen[0], chosen[-1] + 1))


def test_the_batches_never_change() -> None:
    assert [(index, choose(index, epoch)) for index, epoch in orders(2)] == [
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
    choices = {tuple(choose(index, epoch, seed=seed) for index in range(7)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(choices) == 4


def test_images_of_a_set_are_chosen_and_ordered_evenly() -> None:
    chosen = Counter(place for index, epoch in orders(700) for place in enumerate(choose(index, epoch)))
    assert len(chosen) == 4 * 6
    assert all(abs(count - 2100 / 6) < 5 * (2100 / 6 * 5 / 6) ** 0.5 for count in chosen.values())
    choices = [choose(index, epoch) for index, epoch in sorted(orders(70))]
    assert len(set(itertools.pairwise(choices))) > 60


def test_every_run_of_an_ordered_set_is_as_likely() -> None:
    starts = Counter(choose(index, epoch, ordered=True)[0] for index, epoch in orders(700))
    assert set(starts) == {0, 1, 2}
    assert all(abs(count - 700) < 5 * (2100 / 3 * 2 / 3) ** 0.5 for count in starts.values())
    assert choose(0, 0, ordered=True, images=3) == (0, 1, 2)


def test_each_image_of_a_set_comes_up_at_each_place_as_often() -> None:
    counts, epochs = np.zeros((6, 4)), 1200
    for epoch in range(epochs):
        chosen = choose_images(seed=0, index=3, epoch=epoch, images=6, set_size=4, ordered=False)
        counts[list(chosen), range(4)] += 1
    np.testing.assert_allclose(counts, epochs / 6, atol=4.5 * (epochs * 1 / 6 * 5 / 6) ** 0.5)
