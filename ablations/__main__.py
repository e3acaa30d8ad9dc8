"""``python -m ablations``: trains and measures what `ablations.yaml` lists, one row after the other.

Killed and started again it goes on where it was; a row whose parameters and dataset are those of its result is skipped.
Results lie in ``ablations/results``, one JSON a row, variant and seed; models and pictures below ``work/ablations``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from m2m.files import write_atomically
from m2m.manifest import Manifest
from m2m.params import Task, Variant

HERE = Path(__file__).parent
TABLE, RESULTS = HERE / "ablations.yaml", HERE / "results"
WORK = Path("work/ablations")
GIVEN, ASPECTS = (1, 2, 4), ("kept", "free", "fresh")
COMPARED = (
    r"(baseline/(ideal|mis)/)?(pattern_score|kept|free|fresh)/(\w+/)?given=\d+(/(low|high))?|fid/.*|given|sets|seed"
)
"""The numbers that a row of MIS keeps."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model to train and measure."""

    name: str
    variant: Variant
    seed: int
    params: Mapping[str, Any]
    """All of a parameter file, changed."""
    changes: Mapping[str, Any]
    task: Task | None = None
    """Fine-tuned to it from Stable Diffusion's weights; None: trained on MIS."""

    @property
    def result(self) -> Path:
        slug = self.name.replace(",", "").replace(" ", "-")
        return RESULTS / f"{slug}-{self.variant}-seed-{self.seed}.json"

    @property
    def manifest(self) -> Path:
        return Path(f"data/{self.task or 'mis'}.json")

    def stated(self) -> dict[str, Any]:
        """What a result says of itself, and is known again by."""
        own = {"row": self.name, "variant": self.variant, "task": self.task, "changes": dict(self.changes)}
        return own | {"seed": self.seed, "of": self.digest("train", "finetune", "evaluate")}

    def digest(self, *keys: str) -> str:
        """Of the dataset and of what these parameters say: rows that train alike share a model."""
        said = {key: self.params[key] for key in keys} | {"variant": self.variant, "task": self.task}
        text = json.dumps(_without(said, "start"), sort_keys=True) + Manifest.read(self.manifest).digest
        return hashlib.sha256(text.encode()).hexdigest()

    def commands(self, folder: Path) -> Iterator[list[str]]:
        """What trains it and what measures it; numbers and plots go to a folder."""
        model = WORK / "models" / self.digest("train", "finetune")[:16]
        given = ["--params", str(folder / "params.yaml"), "--variant", self.variant]
        of_task = ["--task", self.task] if self.task else []
        start = ["finetune", *of_task, "--from-scratch"] if self.task else ["train"]
        if not (model / "model_index.json").exists():
            yield [*start, *given, "--out", str(model), "--curve", str(model.with_suffix(".csv"))]
        measured = ["--metrics", str(folder / "headline.json"), "--plots", str(folder / "plots"), "--no-register"]
        yield ["evaluate", *of_task, *given, "--model", str(model), *measured]


def rows(table: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Row]:
    """All rows of a table on a parameter file, each with the parameters that it asks for."""
    for name, asked in table["rows"].items():
        changes = {key: value for key, value in asked.items() if key not in {"only", "seeds"}}
        for seed in asked.get("seeds", table["seeds"]):
            for variant in [asked["only"]] if "only" in asked else get_args(Variant):
                changed = with_changes(params, {"train.common.seed": seed} | table["evaluation"] | changes)
                yield Row(name=name, variant=variant, seed=seed, params=changed, changes=changes)
    for task in table["tasks"]:
        for variant in get_args(Variant):
            yield Row(name=f"from scratch {task}", variant=variant, seed=0, params=params, changes={}, task=task)


def with_changes(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with other values at dotted keys, which must be there."""
    copy: dict[str, Any] = json.loads(json.dumps(params))
    for key, value in changes.items():
        *parents, last = key.split(".")
        block = copy
        for parent in parents:
            block = block[parent]
        if last not in block:
            raise KeyError(f"{key}: params.yaml has no such key")
        block[last] = value
    return copy


def _without(block: Any, key: str) -> Any:
    """Parameters without those of a name that say nothing: of what went before there was none."""
    if not isinstance(block, dict):
        return block
    return {name: _without(value, key) for name, value in block.items() if name != key or value is not None}


def make(row: Row) -> None:
    """Trains and measures a row, and keeps its numbers."""
    folder = WORK / "rows" / row.result.stem
    write_atomically(folder / "params.yaml", yaml.safe_dump(dict(row.params), sort_keys=False).encode())
    for command in row.commands(folder):
        subprocess.run([sys.executable, "-m", "m2m.cli", *command], check=True)
    numbers = json.loads((folder / "plots" / "details.json").read_text())
    if row.task is None:
        numbers = {key: number for key, number in numbers.items() if re.fullmatch(COMPARED, key)}
    numbers["ablation"] = row.stated()
    write_atomically(row.result, (json.dumps(numbers, indent=1, sort_keys=True) + "\n").encode())


def is_made(row: Row) -> bool:
    """There is a result of these very parameters and this dataset."""
    return row.result.exists() and bool(json.loads(row.result.read_text())["ablation"] == row.stated())


def table_of(made: Iterable[Row]) -> str:
    """Markdown: what each row kept and left free, of all that is made."""
    lines = [["row", "model", "seed", *(f"{count} given" for count in GIVEN), *ASPECTS]]
    for row in made:
        numbers = json.loads(row.result.read_text())
        keys = [f"pattern_score/given={count}" for count in GIVEN]
        keys += [f"{aspect}/given={numbers['given']}" for aspect in ASPECTS]
        lines.append([row.name, row.variant, str(row.seed), *(_cell(numbers, key) for key in keys)])
    head, *body = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([head, "|---" * len(lines[0]) + "|\n", *body])


def _cell(numbers: Mapping[str, float], key: str) -> str:
    value, low, high = (
        f"{numbers[name]:.3f}" if name in numbers else "" for name in (key, f"{key}/low", f"{key}/high")
    )
    return f"{value} [{low}, {high}]" if low else value or "–"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ablations", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--only", nargs="+", metavar="ROW", help="names of rows")
    asked = parser.parse_args()
    table, params = (yaml.safe_load(path.read_text()) for path in (TABLE, asked.params))
    listed = list(rows(table, params))
    if unknown := {*(asked.only or ())} - {row.name for row in listed}:
        names = "; ".join(dict.fromkeys(row.name for row in listed))
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {names}")
    wanted = [row for row in listed if asked.only is None or row.name in asked.only]
    left = [row for row in wanted if not is_made(row)]
    print(f"{len(left)} of {len(wanted)} rows to make; results in {RESULTS.relative_to(Path.cwd())}", flush=True)
    began = time.monotonic()
    for done, row in enumerate(left):
        each = (time.monotonic() - began) / done if done else float("nan")
        print(
            f"--- {row.name} ({row.variant}, seed {row.seed}), {each * (len(left) - done) / 60:.0f} min left",
            flush=True,
        )
        make(row)
        shown = [one for one in rows(table, params) if one.task is None and is_made(one)]
        (RESULTS / "table.md").write_text(table_of(shown))


if __name__ == "__main__":
    main()
