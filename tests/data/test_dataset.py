import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from time import sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2m.data import sets as module
from m2m.data.dataset import ImageSets, TrainingOrder, choose_images, shard_problems
from m2m.data.sets import ImageSet, write_shard
from m2m.errors import UserError
from m2m.manifest import Manifest, ShardEntry, Split
from m2m.store import LocalStore

N = 3


def numbered(number: int) -> ImageSet:
    images = np.full((N, 8, 8, 3), number, np.uint8)
    return ImageSet(id=f"set-{number}", caption=str(number), images=images, latents=np.ones((N, 4, 1, 1), np.float32))


def add(store: LocalStore, numbers: range, split: Split, folder: Path) -> ShardEntry:
    entry = write_shard(map(numbered, numbers), folder / "shard.tar", split)
    store.put(entry.key, folder / "shard.tar", entry.sha256)
    return entry


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"caption": "another"}, "the images that were added to it are not of that set, or do not follow it"),
        ({"latents": None}, "the images that were added to it are not of that set"),
        ({"first_image": N + 1}, f"set set-0 begins with image {N + 1}; the manifest says {N}"),
        (
            {"images": np.zeros((2, 8, 8, 3), np.uint8), "latents": np.ones((2, 4, 1, 1), np.float32)},
            "has 2 images; the manifest",
        ),
        ({"id": "set-9"}, "1 sets are in all shards of it; the manifest says 2"),
        ({"images": np.zeros((1, 4, 4, 3), np.uint8)}, "the images that were added to it are of another size"),
    ],
)
def test_images_that_were_added_are_their_set_s_own(
    changes: dict[str, Any], said: str | None, store: LocalStore, tmp_path: Path
) -> None:
    first = add(store, range(2), "train", tmp_path)
    added = [
        replace(
            numbered(n), images=numbered(n).images[:1] + 9, latents=np.full((1, 4, 1, 1), 2, np.float32), first_image=N
        )
        for n in range(2)
    ]
    if first_set := changes.get("id"):
        added[1] = replace(added[1], id=first_set)
    else:
        added[0] = replace(added[0], **changes)
    entry = write_shard(added, tmp_path / "shard.tar", "train")
    store.put(entry.key, tmp_path / "shard.tar", entry.sha256)
    shards = (first, replace(entry, first_image=N))
    grown = Manifest(schema_version=1, kind="mis", made_by={}, images_per_set=N + 1, redrawn=0, shards=shards)
    sets = ImageSets(store, grown, "train")
    assert (len(sets), grown.sets) == (2, {"train": 2})
    if said is None:
        one = sets[1]
        assert one.images.reshape(N + 1, -1)[:, 0].tolist() == [1, 1, 1, 10]
        assert one.latents is not None
        assert one.latents[:, 0, 0, 0].tolist() == [1, 1, 1, 2]
        assert sets.stored(0).pictures([3, 0]).reshape(2, -1)[:, 0].tolist() == [9, 0]
        return
    with pytest.raises(UserError, match=said):
        sets[0]


@pytest.fixture
def fetched(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are asked of the store, as they are."""
    keys: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key, *rest: keys.append(key) or get(key, *rest))
    return keys


def test_a_shard_is_read_once_while_there_is_room(store: LocalStore, manifest: Manifest, fetched: list[str]) -> None:
    sets = ImageSets(store, manifest, "train")
    assert not fetched
    for index in (0, 5, 1, 6, 2, 4):
        sets[index]
    assert Counter(fetched) == Counter(entry.key for entry in manifest.split("train"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the members that are decoded, as they are."""
    names: list[str] = []
    for function in ("_decode_image", "_decode_latents"):
        decode = getattr(module, function)
        monkeypatch.setattr(module, function, lambda name, *a, f=decode, **o: names.append(name) or f(name, *a, **o))
    return names


def test_only_what_is_asked_for_is_decoded(store: LocalStore, manifest: Manifest, decoded: list[str]) -> None:
    sets = ImageSets(store, manifest, "train")
    one = sets.stored(4)
    assert (one.id, one.caption, one.count, decoded) == ("set-4", "4", N, [])
    assert one.pictures([2, 0]).shape == (2, 8, 8, 3)
    assert decoded == ["set-4.002.png", "set-4.000.png"]
    assert one.latents is not None
    assert one.latents.shape == (N, 4, 1, 1)
    assert decoded[2:] == ["set-4.latents.npy"], "once, and then it is kept"
    whole = sets[4]
    assert decoded[3:] == ["set-4.001.png"]
    np.testing.assert_array_equal(whole.pictures([1, 2]), one.pictures([1, 2]))


def test_what_is_decoded_is_bounded_in_bytes_and_the_oldest_goes(
    store: LocalStore, manifest: Manifest, decoded: list[str]
) -> None:
    one_picture = 8 * 8 * 3
    sets = ImageSets(store, manifest, "train", cache_bytes=2 * one_picture)
    for index in (0, 1, 0, 2, 0, 1):
        sets.stored(index).pictures([0])
    assert decoded == [f"set-{index}.000.png" for index in (0, 1, 2, 1)]
    decoded.clear()
    nothing = ImageSets(store, manifest, "train", cache_bytes=0)
    for _ in range(2):
        nothing.stored(0).pictures([0])
    assert decoded == ["set-0.000.png"] * 2


def test_files_are_closed_when_many_are_open_and_may_be_removed_meanwhile(
    store: LocalStore, manifest: Manifest, fetched: list[str]
) -> None:
    sets = ImageSets(store, manifest, "train", shards_open=2)
    first = sets.stored(0)
    for index in (3, 6, 4, 1):
        sets.stored(index)
    keys = [entry.key for entry in manifest.split("train")]
    assert fetched == [keys[0], keys[1], keys[2], keys[0]]
    for entry in manifest.shards:
        store.get(entry.key, entry.sha256, entry.size).unlink()
    assert first.pictures(range(N)).max() == 0


def test_a_file_that_goes_before_it_is_opened_is_fetched_again(
    store: LocalStore, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, get = ImageSets(store, manifest, "train"), store.get
    paths = iter([tmp_path / "gone.tar"])
    monkeypatch.setattr(store, "get", lambda *entry: next(paths, None) or get(*entry))
    assert sets.stored(0).id == "set-0"


def test_threads_that_ask_at_once_fetch_a_shard_once(
    store: LocalStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get, all_are_here = store.get, Barrier(4)

    def slow(key: str, *rest: Any) -> Path:
        fetched.append(key)
        sleep(0.05)
        return get(key, *rest)

    def ask(index: int) -> str:
        all_are_here.wait()
        return sets.stored(index).id

    monkeypatch.setattr(store, "get", slow)
    sets = ImageSets(store, manifest, "train")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, (0, 1, 2, 3))) == ["set-0", "set-1", "set-2", "set-3"]
    assert len(fetched) == 2


def test_what_failed_is_tried_again(store: LocalStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    sets, get = ImageSets(store, manifest, "train"), store.get
    monkeypatch.setattr(store, "get", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sets.stored(0)
    monkeypatch.setattr(store, "get", get)
    assert sets.stored(0).id == "set-0"


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
    wrong = manifest.model_copy(update={"shards": (replace(manifest.shards[0], **change),)})
    with pytest.raises(UserError, match=f"{manifest.shards[0].key}: {problem}"):
        ImageSets(store, wrong, "train")[0]


def test_the_number_of_images_and_the_latents_are_checked(manifest: Manifest) -> None:
    sets = [numbered(number) for number in range(3)]
    assert shard_problems(manifest.shards[0], sets, range(N, N + 1)) == []
    assert shard_problems(manifest.shards[0], sets, range(N + 1, N + 2)) == [
        f"set set-{number} has 3 images; the manifest says 4 in each set" for number in range(3)
    ]
    assert shard_problems(manifest.shards[0], sets, range(2, N + 3)) == [], "procedures differ in length"
    assert shard_problems(manifest.shards[0], sets, range(2, N))[0] == (
        "set set-0 has 3 images; the manifest says 2 in each set"
    )


def test_latents_that_are_not_finite_are_refused(store: LocalStore, tmp_path: Path) -> None:
    latents = np.ones((N, 4, 1, 1), np.float32)
    latents[1, 2] = np.nan
    entry = write_shard([replace(numbered(0), latents=latents)], tmp_path / "shard.tar", "train")
    store.put(entry.key, tmp_path / "shard.tar", entry.sha256)
    manifest = Manifest(schema_version=1, kind="mis", made_by={}, images_per_set=N, redrawn=0, shards=(entry,))
    with pytest.raises(UserError, match=r"set-0\.latents\.npy is not finite"):
        ImageSets(store, manifest, "train")[0]


COUNTS = (3, 3, 1)
PER_STEP = 3


def orders(steps: int, seed: int = 0) -> list[tuple[int, int]]:
    order = TrainingOrder(COUNTS, seed=seed, sets_per_step=PER_STEP)
    return [one for step in range(steps) for one in order.step(step)]


def choose(index: int, epoch: int, *, seed: int = 0, ordered: bool = False, images: int = 6) -> tuple[int, ...]:
    return choose_images(seed=seed, index=index, epoch=epoch, images=images, set_size=4, ordered=ordered)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    sets_per_step=st.integers(1, 30),
)
def test_an_epoch_takes_every_set_once(seed: int, counts: list[int], sets_per_step: int) -> None:
    sets, order = sum(counts), TrainingOrder(counts, seed=seed, sets_per_step=sets_per_step)
    steps = -(-3 * sets // sets_per_step)
    taken = [one for step in range(steps) for one in order.step(step)]
    assert len(taken) == steps * sets_per_step
    for epoch in range(3):
        of_epoch = taken[epoch * sets : (epoch + 1) * sets]
        assert sorted(index for index, _ in of_epoch) == list(range(sets))
        assert {number for _, number in of_epoch} == {epoch}


@pytest.mark.parametrize("ranks", [1, 4, 16])
def test_each_shard_is_read_through_by_one_rank_and_few_are_open(ranks: int) -> None:
    """300 shards of 8 sets, 16 sets a step: a rank with 16 / ranks lanes never needs more shards at once."""
    counts, per_step = [8] * 300, 16
    order, share = TrainingOrder(counts, seed=0, sets_per_step=per_step), per_step // ranks
    shards = [[index // 8 for index, _ in order.step(step)] for step in range(sum(counts) // per_step)]
    fetches = 0
    for rank in range(ranks):
        read = [{*step[rank * share : (rank + 1) * share]} for step in shards]
        fetches += len(set.union(*read))
        spans: dict[int, list[int]] = {}
        for step, of_step in enumerate(read):
            for shard in of_step:
                spans.setdefault(shard, []).append(step)
        # At any moment those are open that were begun and are not through.
        most = max(sum(steps[0] <= now <= steps[-1] for steps in spans.values()) for now in range(len(shards)))
        assert most <= 2 * share
    assert fetches <= len(counts) + per_step
    mixed = [len({*step}) for step in shards]
    assert min(mixed) >= per_step - 2, "the sets of a step are of many shards"


def test_it_is_random_at_both_levels() -> None:
    order = TrainingOrder([10] * 50, seed=3, sets_per_step=5)
    lane = [order.step(step)[0][0] for step in range(100)]  # the first lane: ten shards, one after the other
    shards, within = [index // 10 for index in lane], [index % 10 for index in lane]
    assert len({*shards}) == 10
    assert sorted(set(shards), key=shards.index) != sorted({*shards})
    assert [sorted(within[start : start + 10]) for start in range(0, 100, 10)] == [list(range(10))] * 10
    assert len({tuple(within[start : start + 10]) for start in range(0, 100, 10)}) == 10


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
        *((5, (3, 0, 5, 1)), (6, (4, 5, 2, 1)), (0, (4, 2, 3, 0))),
        *((3, (5, 3, 0, 1)), (2, (0, 3, 1, 4)), (1, (0, 2, 3, 1))),
    ]


def test_a_step_is_known_without_those_before_it() -> None:
    expected = orders(10)
    for step in (9, 0, 5):
        fresh = TrainingOrder(COUNTS, seed=0, sets_per_step=PER_STEP)
        assert fresh.step(step) == expected[3 * step : 3 * step + 3]


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
