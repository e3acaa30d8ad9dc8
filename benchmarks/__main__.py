"""``python -m benchmarks``: measures, prints the table, keeps the rows in ``benchmarks/results`` and in MLflow."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers.utils.logging

from benchmarks import counts, datasets, sampling, starting, training
from benchmarks.architectures import random_foundation, resized
from benchmarks.rows import RESULTS, Row, read, renewed, table, write
from benchmarks.setting import Setting
from m2m.evaluation.efficiency import hardware
from m2m.params_file import load_params
from m2m.runtime import Machine

FOUNDATION = Path("models/foundation")
PIXELS = (512, 256)
PARTS = ("counts", "starting", "sampling", "training", "datasets", "teacher-forcing")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--scale", choices=("tiny", "sd21"), default="tiny", help="networks of the embedded world, or of the paper"
    )
    parser.add_argument("--compile", action="store_true", help="our transformer blocks, by torch.compile")
    parser.add_argument(
        "--pixels",
        type=int,
        choices=PIXELS,
        nargs="+",
        default=PIXELS,
        help="of a picture's side, at the paper's scale",
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="what to measure; the rest is kept")
    parser.add_argument("--work", type=Path, help="where the random weights stay; else they go when all is measured")
    given = parser.parse_args()
    machine = Machine("bench")
    machine.prepare_torch()
    diffusers.utils.logging.set_verbosity_error()  # it was imported before the machine could silence it
    name, where = f"{given.scale}-{given.device}{'-compiled' * given.compile}", hardware(given.device)
    with (
        machine.tracker().run(f"bench-{name}", stage="bench", tags={}) as run,
        nullcontext(given.work) if given.work else tempfile.TemporaryDirectory() as work,
    ):
        run.params({"scale": given.scale, "device": given.device, "compile": given.compile, "machine": where})
        settings = partial(paper, work=Path(work), pixels=given.pixels) if given.scale == "sd21" else tiny
        for part in PARTS:
            if part not in given.only:
                continue
            rows = []
            for row in measure(part, settings(given.device), given.scale, compiled=given.compile):
                print(f"{row.name}: {row.ours:g} {row.unit}, other {row.other:g}", flush=True)
                rows.append(replace(row, on="" if row.kind == "count" else where))
                write(renewed(file_of(part, name), rows), file_of(part, name))
            run.metrics({f"{row.name}/{what}": getattr(row, what) for row in rows for what in ("ours", "ratio")})
        kept = [row for part in PARTS if file_of(part, name).exists() for row in read(file_of(part, name))]
        page = RESULTS / f"{name}.md"
        timed_on = "; ".join(dict.fromkeys(row.on for row in kept if row.on)) or where
        page.write_text(f"{timed_on}\n\n{table(kept)}\n")
        run.artifact(page)
    print(f"\n{page.read_text()}")


def measure(part: str, settings: Iterator[Setting], scale: str, *, compiled: bool) -> Iterator[Row]:
    """The rows of one part, as they come."""
    if part == "counts":
        yield from counts.rows()
        return
    if part == "starting":
        yield from starting.rows(next(tiny("cpu")))  # processes that start know of no networks
        return
    params = load_params(Path("profiles") / ("embedded.yaml" if scale == "tiny" else "paper.yaml"))
    common = params.train.common.model_copy(update={"compile_blocks": compiled})
    drawing = params.generate.num_inference_steps
    for setting in settings:
        match part:
            case "sampling":
                yield from sampling.rows(setting, common)
            case "training":
                yield from training.rows(setting, common)
            case "datasets":
                yield from datasets.rows(replace(setting, steps=drawing))
            case "teacher-forcing":
                yield from training.teacher_forcing(setting, common)
        setting.free()


def tiny(device: str) -> Iterator[Setting]:
    """The committed foundation, and sets of six."""
    yield Setting(
        device=device,
        foundation=FOUNDATION,
        precision="float32",
        sets_per_step={"self": 8, "dino": 8},
        set_size=6,
        repeats=9,
    )


def paper(device: str, work: Path, pixels: Sequence[int]) -> Iterator[Setting]:
    """Stable Diffusion 2.1-base and DINOv2-large, drawn once from a seed; a step trains on 30 or 32 rows."""
    whole = work / "foundation-512"
    if not whole.exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as draft:  # so that none is half-written
            random_foundation(Path(draft) / whole.name, FOUNDATION, device=device)
            (Path(draft) / whole.name).rename(whole)
    for side in pixels:
        folder = work / f"foundation-{side}"
        if not folder.exists():
            resized(whole, folder, sample_size=side // 8)
        yield Setting(
            device=device,
            foundation=folder,
            precision="bfloat16",
            sets_per_step={"self": 2, "dino": 4},
            set_size=8,
            repeats=2,
        )


def file_of(part: str, name: str) -> Path:
    """Counts are the same everywhere; what is timed belongs to a scale and a device."""
    return RESULTS / ("counts.json" if part == "counts" else f"{name}-{part}.json")


if __name__ == "__main__":
    main()
