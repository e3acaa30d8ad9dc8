"""One reader of image sets in a process of its own: ours, `webdataset`, or MosaicML's `streaming`.

Told what to read, it reads all sets once for each line of its input, and answers with what that took. So memory and CPU
time are one reader's alone; and `streaming`, which asks for older versions of what m2m stands on, has an environment of
its own: m2m is imported for ours alone.
"""

from __future__ import annotations

import io
import json
import re
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

TRAINED_ON = 9
"""Of a set's images."""


def ours(cache: Path, wanted: Mapping[str, Any]) -> Iterator[Any]:
    """In the order of training, which has shards fetched by some threads some steps ahead."""
    from m2m.data.dataset import ImageSets, TrainingOrder
    from m2m.manifest import Manifest
    from m2m.store import open_store

    sets = ImageSets(open_store(wanted["store"], cache=cache), Manifest.read(Path(wanted["manifest"])), "train")
    order = TrainingOrder(sets.counts, seed=0, sets_per_step=wanted["sets_per_step"])
    steps = range(len(sets) // wanted["sets_per_step"])
    indices, ahead = [index for step in steps for index, _ in order.step(step)], wanted["sets_ahead"]

    def read() -> Iterator[Any]:
        with ThreadPoolExecutor(wanted["fetching"]) as shards:
            for index in indices[:ahead]:
                shards.submit(sets.stored, index)
            for index, later in zip_longest(indices, indices[ahead:]):
                if later is not None:
                    shards.submit(sets.stored, later)
                yield sets.stored(index)

    return read()


def webdataset(_: Path, wanted: Mapping[str, Any]) -> Iterator[Any]:
    """Out of files or off a server, shuffled in a buffer; it keeps nothing, and checks nothing."""
    from webdataset import WebDataset

    return map(Encoded, WebDataset(wanted["addresses"], shardshuffle=100).shuffle(wanted["buffer"]))


def streaming(cache: Path, wanted: Mapping[str, Any], validate_hash: str | None = None) -> Iterator[Any]:
    """Shuffled as it does by itself."""
    imported, folder = streaming_alone(), f"{wanted['store']}/mds"
    imported.base.util.clean_stale_shared_memory()  # of the turn before, which had the same folder
    place = {"remote": folder, "local": str(cache)} if "://" in folder else {"local": folder}
    asked = {"shuffle": True, "batch_size": wanted["sets_per_step"], "validate_hash": validate_hash}
    return map(Encoded, imported.StreamingDataset(**place, **asked))


def streaming_checked(cache: Path, wanted: Mapping[str, Any]) -> Iterator[Any]:
    """What it fetches, it checks; of what is there already, it never does."""
    return streaming(cache, wanted, "sha256")


def convert(shards: Sequence[str], folder: str) -> None:
    """The sets of shards as `streaming` keeps them: a sample a set, the same members, as many sets in a file."""
    with tarfile.open(shards[0]) as tar:
        columns = dict.fromkeys((name.partition(".")[2] for name in tar.getnames()), "bytes")
    size = max(Path(shard).stat().st_size for shard in shards)
    with streaming_alone().MDSWriter(out=folder, columns=columns, hashes=["sha256"], size_limit=size) as writer:
        for shard in shards:
            with tarfile.open(shard) as tar:
                for _, members in groupby(tar, lambda member: member.name.partition(".")[0]):
                    writer.write({one.name.partition(".")[2]: tar.extractfile(one).read() for one in members})  # type: ignore[union-attr]


def streaming_alone() -> Any:
    """`streaming` without its ready-made datasets, whose imports ask for a torchvision of the same build as torch."""
    for name in ("streaming.multimodal", "streaming.text", "streaming.vision"):
        sys.modules.setdefault(name, ModuleType(name))
    import streaming

    return streaming


@dataclass(frozen=True)
class Encoded:
    """A set's members; asked as a `StoredSet` is."""

    members: Mapping[str, bytes]

    @property
    def count(self) -> int:
        return sum(name.endswith(".png") for name in self.members)

    @property
    def latents(self) -> Any:
        return np.load(io.BytesIO(self.members["latents.npy"]))

    def pictures(self, places: Sequence[int]) -> Any:
        return np.stack([np.array(Image.open(io.BytesIO(self.members[f"{place:03}.png"]))) for place in places])


def turn(reader: Any, wanted: Mapping[str, Any]) -> dict[str, float]:
    """Reads all sets once, with nothing fetched before, and decodes what is trained on."""
    draws, number = np.random.default_rng(0), 0
    with tempfile.TemporaryDirectory() as cache:
        sets, before = reader(Path(cache), wanted), used()
        for one in sets:
            chosen = draws.permutation(one.count)[:TRAINED_ON]
            one.latents[chosen]
            if wanted["pictures"]:
                one.pictures(chosen[:-1])
            number += 1
        after = used()
    most = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return {"sets": number, "memory": 1024 * int(most[1]) if most else 0} | {
        what: after[what] - before[what] for what in after
    }


def used() -> dict[str, float]:
    """So far: seconds, those of CPU time with children's, and bytes read from files and pipes."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in spent)
    return {"seconds": time.perf_counter(), "cpu": cpu, "bytes": int(Path("/proc/self/io").read_text().split()[1])}


READERS = {"ours": ours, "webdataset": webdataset, "streaming": streaming, "streaming-checked": streaming_checked}

if __name__ == "__main__":
    name, told = sys.argv[1], json.loads(sys.argv[2])
    if name == "convert":
        convert(**told)
    else:
        for _ in sys.stdin:
            print(json.dumps(turn(READERS[name], told)), flush=True)
