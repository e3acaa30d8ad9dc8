from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2m.commands import verify
from m2m.data.sets import ImageSet, write_shard
from m2m.errors import UserError
from m2m.files import file_digest
from m2m.manifest import Manifest, ShardEntry, shard_key
from m2m.store import LocalStore, Store, open_store


def image_set(number: int, images: int = 2) -> ImageSet:
    pictures = np.random.default_rng(number).integers(256, size=(images, 8, 8, 3), dtype=np.uint8)
    return ImageSet(id=f"set-{number}", caption="", images=pictures, latents=np.zeros((images, 4, 1, 1), np.float32))


def add(store: Store, sets: list[ImageSet], folder: Path) -> ShardEntry:
    entry = write_shard(sets, folder / "shard.tar", "train")
    store.put(entry.key, folder / "shard.tar", entry.sha256)
    return entry


def write_manifest(path: Path, *shards: ShardEntry) -> Path:
    fields: dict[str, Any] = {"schema_version": 1, "kind": "mis", "made_by": {}, "images_per_set": 2, "redrawn": 0}
    Manifest(**fields, shards=shards).write(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def shards(store: LocalStore, tmp_path: Path) -> list[ShardEntry]:
    return [add(store, [image_set(n), image_set(n + 1)], tmp_path) for n in (0, 2, 4)]


def test_a_whole_store_is_proved(store: LocalStore, shards: list[ShardEntry], tmp_path: Path) -> None:
    report = verify.run(write_manifest(tmp_path / "mis.json", *shards), store=store)
    size = sum((tmp_path / "store" / shard.key).stat().st_size for shard in shards)
    assert report == f"3 shards, 6 sets, 12 images, {size} bytes: all whole"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "is not in the store"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "it has 1000 bytes; the manifest says"),
        (flip, "its content has another SHA-256 than the manifest says"),
    ],
)
def test_every_bad_shard_is_named(
    damage: Callable[[Path], None], problem: str, store: LocalStore, shards: list[ShardEntry], tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "mis.json", *shards)
    for shard in (shards[0], shards[2]):
        damage(tmp_path / "store" / shard.key)
    with pytest.raises(UserError, match=r"mis\.json: 2 of 3 shards are bad") as caught:
        verify.run(manifest, store=store)
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip().split(":")[0] for line in lines] == [shards[0].key, shards[2].key]
    assert all(problem in line for line in lines)


def test_contents_are_held_against_their_entries(store: LocalStore, tmp_path: Path) -> None:
    """What a store holds faithfully may still be other than the manifest says."""
    right = add(store, [image_set(0), image_set(1)], tmp_path)
    fewer = replace(add(store, [image_set(2)], tmp_path), count=2)
    other = replace(add(store, [image_set(3)], tmp_path), first_set="set-9")
    larger = add(store, [image_set(4, images=3)], tmp_path)
    again = add(store, [image_set(1), image_set(5)], tmp_path)
    (tmp_path / "shard.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="4 of 5 shards are bad") as caught:
        verify.run(write_manifest(tmp_path / "mis.json", right, fewer, other, larger, again), store=store)
    assert [line.strip().partition(": ")[::2] for line in str(caught.value).splitlines()[1:]] == [
        (fewer.key, "it holds 1 sets; the manifest says 2"),
        (other.key, "it holds the sets set-3 to set-3; the manifest says set-9 to set-3"),
        (larger.key, "set set-4 has 3 images; the manifest says 2 in each set"),
        (again.key, "set set-1 is also in another shard"),
    ]


def test_what_is_no_shard_is_named(store: LocalStore, shards: list[ShardEntry], tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"no tar")
    store.put(shard_key(file_digest(path)), path, file_digest(path))
    entry = replace(shards[0], key=shard_key(file_digest(path)), sha256=file_digest(path), size=6)
    with pytest.raises(UserError, match=f"{entry.key}: cannot be read"):
        verify.run(write_manifest(tmp_path / "mis.json", entry), store=store)


def test_a_good_copy_in_the_cache_does_not_hide_a_bad_object(s3_server: Any, tmp_path: Path) -> None:
    store = open_store(s3_server.uri, cache=tmp_path / "cache")
    shard = add(store, [image_set(0), image_set(1)], tmp_path)
    manifest = write_manifest(tmp_path / "mis.json", shard)
    store.get(shard.key, shard.sha256, shard.size)
    assert verify.run(manifest, store=store).startswith("1 shards, ")
    s3_server.write(shard.key, b"something else")
    with pytest.raises(UserError, match=f"{shard.key}: it has 14 bytes"):
        verify.run(manifest, store=store)


def test_a_manifest_or_store_that_is_not_there_is_named(
    store: LocalStore, shards: list[ShardEntry], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"cannot read manifest .*nothing\.json"):
        verify.run(tmp_path / "nothing.json", store=store)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="its folder is a file"):
        verify.run(write_manifest(tmp_path / "mis.json", *shards), store=LocalStore(tmp_path / "file"))
