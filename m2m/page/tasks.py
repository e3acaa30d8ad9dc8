"""The report's galleries, pictures small enough to be part of the page, and its part on the two tasks."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from m2m.contact_sheet import CAPTIONS
from m2m.errors import UserError, made_again
from m2m.page.tables import NAMES, Column, Numbers, Row, Table, cells
from m2m.params import Task, Variant

WIDEST = 1600
"""Pixels; twice what the page shows."""
QUALITY = 88
ROWS_OF_OTHERS = 4
"""Sets shown where more pictures are given: enough to compare, the page stays short."""

CONSISTENCY_GIVEN = 4


@dataclass(frozen=True)
class Gallery:
    """Sets in rows, as a picture in the page's own text."""

    variant: Variant
    name: str
    given: int
    about: str
    """what follows the name above it"""
    captions: list[str]
    source: str
    """a data URI"""
    width: int
    height: int


def galleries(variant: Variant, plots: Path) -> list[Gallery]:
    """The galleries ``given-N.png`` of an evaluation, by number of given pictures.

    Raises:
        UserError: there is none, or one is damaged.
    """
    found = {
        int(match[1]): path
        for path in plots.glob("given-*.png")
        if (match := re.search(r"given-(\d+)\.png", path.name))
    }
    if not found:
        raise UserError(f"{plots}: no galleries in it; the evaluate stage must run first")
    fewest = min(found)
    return [
        _load(variant, given, path, about=f"{given} given", rows=None if given == fewest else ROWS_OF_OTHERS)
        for given, path in sorted(found.items())
    ]


def consistency(variant: Variant, plots: Path) -> list[Gallery]:
    """The figure after the paper's, ``consistency.png``; none where no such pictures were found among the sets.

    Raises:
        UserError: it is damaged.
    """
    path = plots / "consistency.png"
    return [_load(variant, CONSISTENCY_GIVEN, path, about="what is consistent")] if path.exists() else []


def _load(variant: Variant, given: int, path: Path, *, about: str, rows: int | None = None) -> Gallery:
    try:
        with Image.open(path, formats=["PNG"]) as file:
            captions = json.loads(file.info[CAPTIONS])
            picture = file.convert("RGB")
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path}: not a gallery that the evaluate stage wrote ({error}); make it again: {made_again('evaluate')}"
        ) from error
    if rows is not None and rows < len(captions):
        picture = picture.crop((0, 0, picture.width, round(picture.height * rows / len(captions))))
        captions = captions[:rows]
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Gallery(variant, NAMES[variant], given, about, captions, source, picture.width, picture.height)


PERCEPTUAL = Column("perceptual/given=1", "Perceptual distance ↓", 3)
ANGLES = {"000-030": "under 30°", "030-060": "30° to 60°", "060-090": "60° to 90°", "090-180": "over 90°"}


@dataclass(frozen=True)
class TaskTable:
    """What the page shows of the models of a task."""

    title: str
    columns: Sequence[Column]
    baselines: Mapping[str, str]
    """Besides the model that is not fine-tuned; the same for both variants."""
    by_angle: bool = False
    """Whether a table of PSNR by angle stands below."""


TABLES: Mapping[Task, TaskTable] = {
    "nvs": TaskTable(
        "Novel views of an object",
        columns=(
            Column("psnr/given=1", "PSNR, dB ↑"),
            Column("ssim/given=1", "SSIM ↑", 3),
            PERCEPTUAL,
            Column("psnr/given=2", "PSNR, 2 given ↑"),
            Column("ssim/given=2", "SSIM, 2 given ↑", 3),
        ),
        baselines={"nearest": "The nearest given view"},
        by_angle=True,
    ),
    "vpg": TaskTable(
        "The next steps of a procedure",
        columns=(
            Column("step_order", "Shows the next step, %", 1, 100),
            Column("fid", "FID ↓"),
            Column("clip_image_image", "CLIP image–image ↑"),
        ),
        baselines={"true": "The true steps (ceiling)", "repeated": "The last given picture, repeated"},
    ),
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
        title=TABLES[task].title,
        sets=int(next(iter(numbers.values())).tuned["sets"]),
        table=Table([column.title for column in columns], [*_rows(task, columns, numbers)]),
        angles=_angles(numbers) if TABLES[task].by_angle else None,
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
    return [replace(one, title="LPIPS ↓") if published and one == PERCEPTUAL else one for one in TABLES[task].columns]


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
    for baseline, name in TABLES[task].baselines.items():
        yield Row(name, cells(shared, f"baseline/{baseline}/", columns))


def _angles(numbers: Mapping[Variant, TaskNumbers]) -> Table:
    """PSNR by angle from the one given view."""
    shared = next(iter(numbers.values())).tuned
    known = {key: title for key, title in ANGLES.items() if f"psnr/given=1/angle/{key}" in shared}
    columns = [Column(f"psnr/given=1/angle/{key}", title) for key, title in known.items()]
    rows = [Row(NAMES[variant], cells(one.tuned, "", columns), variant) for variant, one in numbers.items()]
    return Table([*known.values()], [*rows, Row("The given view", cells(shared, "baseline/nearest/", columns))])
