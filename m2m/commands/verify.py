"""``m2m verify``: proves that the store holds what a manifest says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from m2m.data.sets import read_shard, shard_problems
from m2m.errors import UserError
from m2m.files import file_digest
from m2m.manifest import Manifest, ShardEntry
from m2m.progress import progress
from m2m.store import Store


def run(manifest: Path, *, store: Store) -> str:
    """Reads every shard from the store, past any cache, and holds it against its entry: length, SHA-256, content.

    Returns:
        how much was found whole, in words.

    Raises:
        UserError: the manifest cannot be read, the store does not answer, or shards are bad: names all of them.
    """
    dataset = Manifest.read(manifest)
    store.check()
    problems: list[str] = []
    seen: dict[str, int] = {}
    with progress(len(dataset.shards), "verify", unit="shards") as advance:
        for shard in dataset.shards:
            problems += [f"{shard.key}: {problem}" for problem in _problems(shard, dataset.set_sizes, store, seen)]
            advance()
    if problems:
        count = len({problem.partition(":")[0] for problem in problems})
        raise UserError("\n  ".join([f"{manifest}: {count} of {len(dataset.shards)} shards are bad:", *problems]))
    size = sum(shard.size for shard in dataset.shards)
    return f"{len(dataset.shards)} shards, {len(seen)} sets, {sum(seen.values())} images, {size} bytes: all whole"


def _problems(shard: ShardEntry, set_sizes: range, store: Store, seen: dict[str, int]) -> list[str]:
    """What is wrong with one shard; adds its sets to `seen`: id -> images."""
    with TemporaryDirectory() as folder:
        tar = Path(folder) / "shard.tar"
        try:
            store.download(shard.key, tar)
            if tar.stat().st_size != shard.size:
                return [f"it has {tar.stat().st_size} bytes; the manifest says {shard.size}"]
            if file_digest(tar) != shard.sha256:
                return ["its content has another SHA-256 than the manifest says"]
            sets = list(read_shard(tar))
        except UserError as error:
            return [str(error).removeprefix(f"shard {tar}: ")]
    again = [f"set {image_set.id} is also in another shard" for image_set in sets if image_set.id in seen]
    seen.update((image_set.id, len(image_set.images)) for image_set in sets)
    return shard_problems(shard, sets, set_sizes) + again
