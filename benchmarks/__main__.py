"""``python -m benchmarks``: measures, prints the table, keeps the rows in ``benchmarks/results`` and in MLflow."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch

from benchmarks import counts, datasets, sampling, starting, training
from benchmarks.architectures import random_foundation, resized
from benchmarks.rows import RESULTS, Row, read, table, write
from benchmarks.setting import Setting
from m2m.evaluation.timing import hardware
from m2m.machine import Machine
from m2m.params_file import load_params

FOUNDATION = Path("models/foundation")
PARTS = ("counts", "starting", "sampling", "training", "datasets")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--scale", choices=("tiny", "sd21"), default="tiny", help="networks of the embedded world, or of the paper"
    )
    parser.add_argument("--compile", action="store_true", help="our transformer blocks, by torch.compile")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="what to measure; the rest is kept")
    given = parser.parse_args()
    machine = Machine("bench")
    machine.prepare_torch()
    diffusers.utils.logging.set_verbosity_error()  # it was imported before the machine could silence it
    name, where = f"{given.scale}-{given.device}{'-compiled' * given.compile}", hardware(given.device)
    with (
        machine.tracker().run(f"bench-{name}", stage="bench", tags={}) as run,
        tempfile.TemporaryDirectory() as work,
    ):
        run.params({"scale": given.scale, "device": given.device, "compile": given.compile, "machine": where})
        for part in PARTS:
            if part not in given.only:
                continue
            rows = []
            for row in measure(part, given.device, given.scale, Path(work), compiled=given.compile):
                print(f"{row.name}: {row.ours:g} {row.unit}, other {row.other:g}", flush=True)
                rows.append(row)
            write(rows, file_of(part, name))
            run.metrics({f"{row.name}/{what}": getattr(row, what) for row in rows for what in ("ours", "ratio")})
        kept = [row for part in PARTS if file_of(part, name).exists() for row in read(file_of(part, name))]
        page = RESULTS / f"{name}.md"
        page.write_text(f"{where}\n\n{table(kept)}\n")
        run.artifact(page)
    print(f"\n{page.read_text()}")


def measure(part: str, device: str, scale: str, work: Path, *, compiled: bool) -> Iterator[Row]:
    """The rows of one part, as they come."""
    if part == "counts":
        yield from counts.rows()
        return
    if part == "starting":
        yield from starting.rows(next(tiny(device)))
        return
    params = load_params(Path("profiles") / ("embedded.yaml" if scale == "tiny" else "paper.yaml"))
    common = params.train.common.model_copy(update={"compile_blocks": compiled})
    for setting in tiny(device) if scale == "tiny" else paper(device, work):
        if part == "datasets":
            yield from datasets.rows(replace(setting, steps=params.generate.num_inference_steps))
        else:
            yield from (sampling if part == "sampling" else training).rows(setting, common)
        setting.free()


def tiny(device: str) -> Iterator[Setting]:
    """The committed foundation, and sets as the embedded profile has them."""
    sizes: dict[str, Any] = {"steps": 25, "sets": 4, "sets_per_step": 8, "set_size": 6, "repeats": 3}
    yield Setting(device=device, foundation=FOUNDATION, dtype=torch.float32, **sizes)


def paper(device: str, work: Path) -> Iterator[Setting]:
    """Stable Diffusion 2.1-base and DINOv2-large, drawn once from a seed."""
    sizes: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "steps": 50,
        "sets": 4,
        "sets_per_step": 4,
        "set_size": 4,
        "repeats": 3,
    }
    for sample_size in (64, 32):
        folder = work / f"foundation-{sample_size}"
        if not folder.exists():
            if sample_size == 64:
                random_foundation(folder, FOUNDATION, device=device)
            else:
                resized(work / "foundation-64", folder, sample_size=sample_size)
        yield Setting(device=device, foundation=folder, **sizes)


def file_of(part: str, name: str) -> Path:
    """Counts are the same everywhere; what is timed belongs to a scale and a device."""
    return RESULTS / ("counts.json" if part == "counts" else f"{name}-{part}.json")


if __name__ == "__main__":
    main()
