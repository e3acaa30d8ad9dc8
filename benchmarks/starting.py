"""How long one waits before anything happens."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.setting import Setting
from m2m.data.captions import CC12M, CaptionRow, read_captions, survey_captions, write_captions
from m2m.data.dataset import ImageSets, TrainingOrder
from m2m.data.shards import PlannedSet, Records, ShardJob, shard_jobs
from m2m.manifest import Manifest, ShardEntry, shard_key
from m2m.runtime import Runtime
from m2m.settings import TELEMETRY_OFF
from m2m.store import LocalStore

BIN = Path(sys.executable).parent
SHARDS, SETS, SIZE = (1_000, 10_000, 100_000), 64, 700_000_000
"""How many shards there are, the sets of each and its bytes: the paper's are 187,500."""


def rows(setting: Setting) -> Iterator[Row]:
    """Seconds of whole processes, against Python's own start. A pipeline is timed only where it is up to date."""
    nothing = (sys.executable, "-c", "pass")
    works = {"import": (sys.executable, "-c", "import m2m"), "help": (sys.executable, "-m", "m2m.cli", "--help")}
    if _call(str(BIN / "dvc"), "status", "--quiet").returncode == 0:
        works["repro"] = (str(BIN / "dvc"), "repro")
    else:
        print("start/repro is left out: the pipeline is not up to date; make repro first", file=sys.stderr)
    for name, command in works.items():
        ours, other = setting.seconds(lambda command=command: _call(*command), lambda: _call(*nothing))  # type: ignore[misc]
        yield Row.of(f"start/{name}", ours, other, unit="s", kind="wall")
    yield from by_shards()


def by_shards() -> Iterator[Row]:
    """CPU seconds for 1,000 shards of many, against those where there are no more: 1 is linear."""
    few: dict[str, float] = {}
    for shards in SHARDS:
        with tempfile.TemporaryDirectory() as folder:
            for name, seconds in _starts(shards, Path(folder)):
                each = 1000 * seconds / shards
                yield Row.of(f"start/{name}/{shards}", each, few.setdefault(name, each), unit="CPU s", kind="wall")


class _Listed(LocalStore):
    """Says that it holds what it was told of."""

    keys: dict[str, int]

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        return (one for one in self.keys.items() if one[0].startswith(prefix))


def _starts(shards: int, folder: Path) -> Iterator[tuple[str, float]]:
    """What training does before its first step, and what `generate` does that finds all of its shards made."""
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(shards)]
    entries = tuple(
        ShardEntry(key=shard_key(name), sha256=name, size=SIZE, first_set="a", last_set="b", count=SETS, split="train")
        for name in names
    )
    Manifest(schema_version=1, kind="mis", made_by={}, images_per_set=25, redrawn=0, shards=entries).write(
        folder / "mis.json"
    )
    store, captions = _Listed(folder / "store"), folder / "captions.parquet"
    began = time.process_time()
    manifest = Manifest.read(folder / "mis.json")
    order = TrainingOrder(ImageSets(store, manifest, "train").counts, seed=0, sets_per_step=SETS)
    assert manifest.digest
    assert order.step(shards // 2)
    yield "training", time.process_time() - began

    rows = (
        CaptionRow(f"cc12m-{n:09}", f"a photo of number {n}, in some more words", "train") for n in range(shards * SETS)
    )
    write_captions(captions, rows, CC12M)
    runtime = Runtime(store=store, work=folder)

    def jobs() -> Iterator[ShardJob]:
        planned = (PlannedSet(id=row.id, caption=row.text, count=25) for row in read_captions(captions, "train"))
        sets = {"train": planned, "validation": (), "test": ()}
        return shard_jobs(sets, depends=[], sets_per_shard=SETS, runtime=runtime)  # type: ignore[arg-type]

    store.keys = {shard_key(name): SIZE for name in names}
    store.keys |= {f"records/generate/{job.name}.{name}.{SIZE}.0": 1 for job, name in zip(jobs(), names, strict=True)}
    began = time.process_time()
    survey_captions(captions)
    records = Records(store, "generate")
    assert all(records.of(job) for job in jobs())
    yield "resumed-generation", time.process_time() - began


def _call(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **TELEMETRY_OFF})
