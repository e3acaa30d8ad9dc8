"""Sets as training takes them, out of shards: by our reader, by `webdataset`, and by MosaicML's `streaming`.

Over S3, too, if ``M2M_STORE`` names a bucket: each turn fetches all of it anew. ``M2M_STREAMING_PYTHON`` names the
interpreter of an environment that holds `streaming`. `python -m benchmarks.loading --pixels 512 --shards 4` prints what
a set takes each reader. On Linux only: what a process has read and held, the kernel says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import get_args
from urllib.parse import urlsplit

import boto3
import numpy as np
from botocore.config import Config

from benchmarks import readers
from benchmarks.rows import Row
from m2m.data.sets import ImageSet, write_shard
from m2m.evaluation.efficiency import in_turn
from m2m.files import file_digest
from m2m.manifest import Manifest
from m2m.params import Variant
from m2m.settings import Settings
from m2m.store import LocalStore, open_store
from m2m.training.loop import FETCHING, SHARDS_AHEAD


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What is read, and how often: shards of the paper's make-up, unless told otherwise, whose images are noise."""

    pixels: int
    shards: int = 3
    sets: int = 64
    """In a shard."""
    images: int = 25
    """Of a set."""
    sets_per_step: int = 4
    repeats: int

    def rows(self, folder: Path) -> Iterator[Row]:
        """Sets a second, and milliseconds of CPU time a set: ours against each of the others."""
        for place, variant, found in self.measured(folder):
            own = found.pop("ours")
            for reader, other in found.items():
                beside = f"/{reader}" * (reader != "webdataset")
                name = f"loading/{self.pixels}px/{variant}{beside}{place}"
                yield Row.of(name, 1 / own["seconds"], 1 / other["seconds"], unit="sets/s", kind="wall")
                yield Row.of(f"{name}/cpu", 1e3 * own["cpu"], 1e3 * other["cpu"], unit="ms", kind="wall")

    def measured(self, folder: Path) -> Iterator[tuple[str, Variant, dict[str, dict[str, float]]]]:
        """Of each place and variant what a set takes each reader, and how much memory it has at most."""
        keys, local, bucket = self._write(folder), str(folder / "store"), Settings.from_environment().store
        with ExitStack() as stack:
            places = {"": (local, [f"{local}/{key}" for key in keys])}
            if bucket.startswith("s3://"):
                uri = f"{bucket}/bench-{token_hex(6)}"
                places["/s3"] = uri, stack.enter_context(uploaded(folder / "store", uri, keys))
            for place, (uri, addresses) in places.items():
                asked: dict[str, object] = {
                    **{"store": uri, "manifest": str(folder / "manifest.json"), "addresses": addresses},
                    **{"sets_per_step": self.sets_per_step, "sets_ahead": SHARDS_AHEAD * self.sets_per_step},
                    **{"fetching": FETCHING, "buffer": self.sets},
                }
                for variant in get_args(Variant):
                    found = self._in_turn({**asked, "pictures": variant == "dino"}, anew=bool(place))
                    yield place, variant, found

    def _write(self, folder: Path) -> list[str]:
        """The sets in shards, with a manifest, and as `streaming` keeps them, if it is there; keys of the shards."""
        draws, size, store, entries = np.random.default_rng(0), self.pixels, LocalStore(folder / "store"), []
        for shard in range(self.shards):
            noise = (
                ImageSet(
                    id=f"set-{shard}-{number:02}",
                    caption="noise",
                    images=draws.integers(256, size=(self.images, size, size, 3), dtype=np.uint8),
                    latents=draws.standard_normal((self.images, 4, size // 8, size // 8), np.float32).astype("<f2"),
                )
                for number in range(self.sets)
            )
            entries.append(write_shard(noise, folder / "noise.tar", "train"))
            store.put(entries[-1].key, folder / "noise.tar", entries[-1].sha256)
        made = {"schema_version": 1, "kind": "mis", "made_by": {}, "images_per_set": self.images, "redrawn": 0}
        Manifest.model_validate({**made, "shards": tuple(entries)}).write(folder / "manifest.json")
        keys = [entry.key for entry in entries]
        if streaming := os.environ.get("M2M_STREAMING_PYTHON"):
            asked = {"shards": [f"{store.uri}/{key}" for key in keys], "folder": f"{store.uri}/mds"}
            subprocess.run([streaming, readers.__file__, "convert", json.dumps(asked)], check=True)
        return keys

    def _in_turn(self, asked: dict[str, object], *, anew: bool) -> dict[str, dict[str, float]]:
        """Medians of each reader."""
        pythons = {"ours": sys.executable, "webdataset": sys.executable}
        if streaming := os.environ.get("M2M_STREAMING_PYTHON"):
            pythons |= dict.fromkeys(("streaming", *["streaming-checked"] * anew), streaming)
        with ExitStack() as stack:
            turns = [partial(self._turn, stack.enter_context(waiting(*one, asked))) for one in pythons.items()]
            measured = in_turn(turns, repeats=self.repeats)
        return {
            name: {what: statistics.median(one[what] for one in found) for what in found[0]}
            for name, found in zip(pythons, measured, strict=True)
        }

    def _turn(self, process: subprocess.Popen[str]) -> dict[str, float]:
        assert process.stdin
        assert process.stdout
        print(file=process.stdin, flush=True)
        found, sets = json.loads(process.stdout.readline()), self.shards * self.sets
        assert found.pop("sets") == sets
        return {what: amount if what == "memory" else amount / sets for what, amount in found.items()}


@contextmanager
def waiting(reader: str, python: str, asked: dict[str, object]) -> Iterator[subprocess.Popen[str]]:
    """A reader that reads when it is told to. It is started as a file: not every environment knows this package."""
    command, here = [python, readers.__file__, reader, json.dumps(asked)], str(Path(__file__).parents[1])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env={**os.environ, "PYTHONPATH": here}) as process:  # type: ignore[call-overload]
        yield process
        process.communicate()


@contextmanager
def uploaded(folder: Path, uri: str, keys: list[str]) -> Iterator[list[str]]:
    """Brings all files of a folder to a bucket for a while; addresses of some of them that ask for no key."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    place, client = urlsplit(uri), boto3.client("s3", config=Config(signature_version="s3v4"))
    store = open_store(uri, cache=folder / "cache")
    try:
        for name in names:
            store.put(name, folder / name, file_digest(folder / name))
        objects = [{"Bucket": place.netloc, "Key": f"{place.path[1:]}/{key}"} for key in keys]
        yield [client.generate_presigned_url("get_object", one, ExpiresIn=24 * 3600) for one in objects]
    finally:
        for name in names:
            store.remove(name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    for name, usual in {"pixels": 512, "shards": 4, "sets": 64, "repeats": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    with tempfile.TemporaryDirectory() as folder:
        for place, variant, found in Loading(**vars(parser.parse_args())).measured(Path(folder)):
            for reader, one in found.items():
                numbers = {what: float(f"{amount:.4g}") for what, amount in one.items()}
                print(f"{variant}{place}", reader, numbers, flush=True)


if __name__ == "__main__":
    main()
