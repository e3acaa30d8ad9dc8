"""Stage ``report``: one page that shows what the pipeline made, beside the paper's figures."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import JsonValue

from m2m.errors import UserError, made_again
from m2m.files import check_digests, write_atomically
from m2m.manifest import Manifest
from m2m.page import charts, parts, tables
from m2m.page.tables import BASELINES, NAMES, Numbers
from m2m.params import EvaluatedTask, ReportParams, Task, Variant

TASK_KEYS = ("sets", "images", "seed", "manifest", "network/inception", "network/clip")
SAMPLING = "sampling"
KEYS = (*TASK_KEYS, "fid/mean", "given")
"""What a file of numbers holds at least."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What training and evaluation left of one variant, to continue image sets or fine-tuned to a task."""

    task: EvaluatedTask
    variant: Variant
    metrics: Path
    """all numbers of the evaluation (JSON)"""
    plots: Path
    """folder with galleries"""
    curve: Path | None = None
    """of training (CSV); of image sets alone"""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """numbers of the same variant made otherwise, by how; the files need not be there"""

    @property
    def stage(self) -> str:
        """What evaluates it."""
        return f"evaluate@{self.variant}" if self.task == "mis" else f"evaluate@{self.variant}-{self.task}"


def run(
    params: ReportParams,
    *,
    items: Sequence[Evaluated],
    sampling: Path,
    manifest: Path,
    out: Path,
    to_come: Collection[str] = (),
) -> None:
    """Writes the page `out`, one file that needs no other; the same inputs give the same bytes.

    Args:
        items: of image sets at least one variant. Baselines are taken from the first: they are the same for all.
        sampling: numbers of the sampling stage (JSON).
        manifest: of the MIS dataset.
        to_come: stages whose results are not there yet, or old; the page says that they are still to come.

    Raises:
        UserError: an input is missing or not what its stage writes, or the disk refuses.
    """
    awaited = [_title(item) for item in items if item.stage in to_come]
    awaited += ["sampling efficiency"] if SAMPLING in to_come else []
    items = [item for item in items if item.stage not in to_come]
    if not items:
        raise UserError("no evaluation is there yet; dvc repro makes them")
    for item in items:
        check_digests(item.plots)
    data = Manifest.read(manifest)
    trained = [item for item in items if item.task == "mis"]
    numbers = {item.variant: _numbers(item.metrics) for item in trained}
    cost = None if SAMPLING in to_come else _numbers(sampling, charts.KEYS, stage=SAMPLING)
    environment = Environment(
        loader=PackageLoader("m2m.page", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.jinja").render(
        title=params.title,
        names=NAMES,
        to_come=awaited,
        sets=_image_sets(numbers, trained) if trained else None,
        training=charts.training_charts({item.variant: item.curve for item in trained if item.curve}),
        sampling=_sampling(cost) if cost else None,
        tasks=[_task(task, items) for task in parts.TABLES if any(one.task == task for one in items)],
        origin=_origin(data, next(iter(numbers.values()), {})),
    )
    write_atomically(out, page.encode())


def _image_sets(numbers: Mapping[Variant, Numbers], items: Sequence[Evaluated]) -> dict[str, Any]:
    shared, plots = next(iter(numbers.values())), {item.variant: item.plots for item in items}
    return {
        "shared": shared,
        "glance": {variant: tables.glance(of_variant) for variant, of_variant in numbers.items()},
        "galleries": parts.galleries(plots),
        "consistency": parts.consistency(plots),
        "claim": parts.claim_tables(numbers, _beside(items, numbers, KEYS)),
        "claim_charts": parts.claim_charts(numbers),
        "bounds": {style: BASELINES[baseline] for baseline, style in parts.BESIDE.items()},
        "quality": tables.quality(numbers),
        "variety": tables.variety(numbers),
        "positions": charts.position_charts(numbers),
        "papers_networks": str(shared["network/inception"]).startswith("inception-v3"),
    }


def _sampling(cost: Numbers) -> dict[str, Any]:
    return {
        "numbers": cost,
        "table": charts.efficiency_table(cost),
        "charts": charts.efficiency_charts(cost),
        "window": charts.window(cost),
    }


def _title(item: Evaluated) -> str:
    about = "image sets" if item.task == "mis" else parts.TABLES[item.task].title.lower()
    return f"{NAMES[item.variant]}, {about}"


def _task(task: Task, items: Sequence[Evaluated]) -> dict[str, Any]:
    own = [item for item in items if item.task == task]
    tuned = {item.variant: _numbers(item.metrics, TASK_KEYS) for item in own}
    return parts.task_part(task, tuned, _beside(own, tuned, TASK_KEYS), {item.variant: item.plots for item in own})


def _beside(
    items: Sequence[Evaluated], numbers: Mapping[Variant, Numbers], needed: Sequence[str]
) -> dict[str, dict[Variant, Numbers]]:
    """By how they were made, those that the same networks judged: others would not compare."""
    found: dict[str, dict[Variant, Numbers]] = {}
    for item in items:
        for way, path in item.beside.items():
            others = _numbers(path, needed, remedy="restore it from git") if path.exists() else {}
            if others and _judges(others) == _judges(numbers[item.variant]):
                found.setdefault(way, {})[item.variant] = others
    return found


def _judges(numbers: Numbers) -> dict[str, object]:
    return {key: value for key, value in numbers.items() if key.startswith("network/")}


def _numbers(path: Path, needed: Sequence[str] = KEYS, *, stage: str = "evaluate", remedy: str = "") -> Numbers:
    remedy = remedy or f"make it again: {made_again(stage)}"
    try:
        numbers = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; the {stage} stage must run first") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(numbers, Mapping) or any(key not in numbers for key in needed):
        raise UserError(f"{path}: not what the {stage} stage writes; {remedy}")
    return numbers


def _origin(data: Manifest, numbers: Numbers) -> dict[str, str]:
    splits = ", ".join(f"{count} {split}" for split, count in data.sets.items())
    evaluated = {
        "Evaluated": "{sets} sets, {images} generated images a variant, seed {seed}",
        "Class network": "{network/inception}",
        "CLIP": "{network/clip}",
    }
    return {
        "Dataset": f"{splits} sets of {data.images_per_set} images; {data.redrawn} images redrawn",
        "Manifest": f"SHA-256 {data.digest}",
        **{_words(key).capitalize(): _flat(value) for key, value in data.made_by.items() if key != "stage"},
        **({name: text.format(**numbers) for name, text in evaluated.items()} if numbers else {}),
    }


def _flat(value: JsonValue) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_flat(part)}" for key, part in value.items())
    return str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
