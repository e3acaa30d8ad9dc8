"""The report's part on the two tasks: what fine-tuning reaches, beside what it must beat."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2m.page.galleries import Gallery, galleries
from m2m.page.tables import NAMES, Column, Numbers, Row, Table, cells
from m2m.params import Task, Variant

PERCEPTUAL = Column("perceptual/given=1", "Perceptual distance ↓", 3)
VIEWS = (
    Column("psnr/given=1", "PSNR, dB ↑"),
    Column("ssim/given=1", "SSIM ↑", 3),
    PERCEPTUAL,
    Column("psnr/given=2", "PSNR, 2 given ↑"),
    Column("ssim/given=2", "SSIM, 2 given ↑", 3),
)
ANGLES = {"000-030": "under 30°", "030-060": "30° to 60°", "060-090": "60° to 90°", "090-180": "over 90°"}
STEPS = (
    Column("step_order", "Shows the next step, %", 1, 100),
    Column("fid", "FID ↓"),
    Column("clip_image_image", "CLIP image–image ↑"),
)
COLUMNS: Mapping[Task, Sequence[Column]] = {"nvs": VIEWS, "vpg": STEPS}
TITLES: Mapping[Task, str] = {"nvs": "Novel views of an object", "vpg": "The next steps of a procedure"}
BASELINES: Mapping[Task, Mapping[str, str]] = {
    "nvs": {"nearest": "The nearest given view"},
    "vpg": {"true": "The true steps (ceiling)", "repeated": "The last given picture, repeated"},
}


@dataclass(frozen=True)
class TaskNumbers:
    """Of one variant, fine-tuned to one task."""

    tuned: Numbers
    from_scratch: Numbers | None
    """The same steps on the same data from Stable Diffusion's weights; None if nobody has run it."""


@dataclass(frozen=True)
class TaskPart:
    """All that the page shows of one task."""

    title: str
    sets: int
    table: Table
    angles: Table | None
    galleries: Sequence[Gallery]
    turntables: Mapping[Variant, str]
    """Data URIs of what turns; views only."""


def task_part(task: Task, numbers: Mapping[Variant, TaskNumbers], plots: Mapping[Variant, Path]) -> TaskPart:
    """What there is to show of a task.

    Args:
        plots: the folders that evaluation filled.

    Raises:
        UserError: a gallery is missing or damaged.
    """
    columns = _columns(task, numbers)
    shown = [gallery for variant, folder in plots.items() for gallery in galleries(variant, folder)]
    return TaskPart(
        title=TITLES[task],
        sets=int(next(iter(numbers.values())).tuned["sets"]),
        table=Table([column.title for column in columns], [*_rows(task, columns, numbers)]),
        angles=_angles(numbers) if task == "nvs" else None,
        galleries=sorted(shown, key=lambda gallery: gallery.given),
        turntables={
            variant: f"data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}"
            for variant, folder in plots.items()
            if (path := folder / "turntable.gif").exists()
        },
    )


def _columns(task: Task, numbers: Mapping[Variant, TaskNumbers]) -> Sequence[Column]:
    """What is measured of a task; the perceptual distance is called LPIPS only where all rows have it from LPIPS."""
    of_rows = [one for of_variant in numbers.values() for one in (of_variant.tuned, of_variant.from_scratch) if one]
    published = all(str(one.get("network/perceptual", "")).startswith("lpips") for one in of_rows)
    return [replace(one, title="LPIPS ↓") if published and one == PERCEPTUAL else one for one in COLUMNS[task]]


def _rows(task: Task, columns: Sequence[Column], numbers: Mapping[Variant, TaskNumbers]) -> Iterator[Row]:
    for variant, of_variant in numbers.items():
        yield Row(f"{NAMES[variant]}, fine-tuned", cells(of_variant.tuned, "", columns), variant)
    for variant, of_variant in numbers.items():
        if of_variant.from_scratch is not None:
            yield Row(
                f"{NAMES[variant]}, the same steps from Stable Diffusion", cells(of_variant.from_scratch, "", columns)
            )
    for variant, of_variant in numbers.items():
        yield Row(f"{NAMES[variant]}, not fine-tuned", cells(of_variant.tuned, "baseline/untuned/", columns))
    shared = next(iter(numbers.values())).tuned
    for baseline, name in BASELINES[task].items():
        yield Row(name, cells(shared, f"baseline/{baseline}/", columns))


def _angles(numbers: Mapping[Variant, TaskNumbers]) -> Table:
    """PSNR by angle from the one given view."""
    shared = next(iter(numbers.values())).tuned
    known = {key: title for key, title in ANGLES.items() if f"psnr/given=1/angle/{key}" in shared}
    columns = [Column(f"psnr/given=1/angle/{key}", title) for key, title in known.items()]
    rows = [Row(NAMES[variant], cells(one.tuned, "", columns), variant) for variant, one in numbers.items()]
    return Table([*known.values()], [*rows, Row("The given view", cells(shared, "baseline/nearest/", columns))])
