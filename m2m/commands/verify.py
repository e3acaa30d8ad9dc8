"""``m2m verify``: proves that the store holds what a manifest says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from m2m.data.dataset import shard_problems
from m2m.data.sets import read_shard
from m2m.errors import UserError
from m2m.files import file_digest
from m2m.manifest import Manifest, ShardEntry, grouped
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
        for block in grouped(dataset.shards):
            in_block = list[dict[str, tuple[str, str | None]]]()
            for shard, sizes in zip(block, dataset.sizes(block), strict=True):
                sets, found = _look(shard, sizes, store, seen)
                found += [
                    f"set {id_} is another one than in {block[0].key}"
                    for id_, about in sets.items()
                    if in_block and about != in_block[0].get(id_, about)
                ]
                problems += [f"{shard.key}: {problem}" for problem in found]
                in_block.append(sets)
                advance()
            everywhere = set(in_block[0]).intersection(*in_block[1:])
            if len(block) > 1 and all(in_block) and len(everywhere) != block[-1].count:
                said = f"{len(everywhere)} sets are in all shards of it; the manifest says {block[-1].count}"
                problems.append(f"{block[-1].key}: {said}")
    if problems:
        count = len({problem.partition(":")[0] for problem in problems})
        raise UserError("\n  ".join([f"{manifest}: {count} of {len(dataset.shards)} shards are bad:", *problems]))
    size, number = sum(shard.size for shard in dataset.shards), sum(dataset.sets.values())
    return f"{len(dataset.shards)} shards, {number} sets, {sum(seen.values())} images, {size} bytes: all whole"


def _look(
    shard: ShardEntry, set_sizes: range, store: Store, seen: dict[str, int]
) -> tuple[dict[str, tuple[str, str | None]], list[str]]:
    """By id caption and model of a shard's sets, and what is wrong with it; adds its images to those `seen` of each."""
    with TemporaryDirectory() as folder:
        tar = Path(folder) / "shard.tar"
        try:
            store.download(shard.key, tar)
            if tar.stat().st_size != shard.size:
                return {}, [f"it has {tar.stat().st_size} bytes; the manifest says {shard.size}"]
            if file_digest(tar) != shard.sha256:
                return {}, ["its content has another SHA-256 than the manifest says"]
            sets = list(read_shard(tar))
        except UserError as error:
            return {}, [str(error).removeprefix(f"shard {tar}: ")]
    again = [f"set {one.id} is also in another shard" for one in sets if one.first_image < seen.get(one.id, 0)]
    seen.update((one.id, seen.get(one.id, 0) + one.count) for one in sets)
    return {one.id: (one.caption, one.generator) for one in sets}, shard_problems(shard, sets, set_sizes) + again
