"""The report's charts: metrics by position, and the curves of training."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from markupsafe import Markup

from m2m.errors import UserError
from m2m.page.line_chart import Line, line_chart
from m2m.page.tables import NAMES, Column, Numbers
from m2m.params import Variant

BY_POSITION = (
    Column("fid", "FID (lower is better)"),
    Column("kept", "Kept of what is shared, %", factor=100),
    Column("free", "Free in the rest, %", factor=100),
    Column("clip_image_image", "CLIP image–image"),
    Column("clip_text_image", "CLIP text–image"),
    Column("diversity", "Distance to the others of the set"),
)
CURVES = {"loss": "Training loss", "held_out_loss": "Loss on validation sets"}


@dataclass(frozen=True)
class Chart:
    """A drawn chart and its heading."""

    title: str
    svg: Markup


def position_charts(numbers: Mapping[Variant, Numbers]) -> list[Chart]:
    """Each metric by generated position, of all variants and of held-out sets."""
    charts = []
    for column in BY_POSITION:
        ceiling = _points(next(iter(numbers.values())), f"baseline/mis/{column.key}", column.factor)
        if ceiling:
            lines = [Line("held-out MIS sets", "bound", ceiling)] + [
                Line(NAMES[variant], variant, _points(of_variant, column.key, column.factor))
                for variant, of_variant in numbers.items()
            ]
            charts.append(
                Chart(column.title, line_chart(lines, title=f"{column.title} by position", x_label="position"))
            )
    return charts


def training_charts(curves: Mapping[Variant, Path]) -> list[Chart]:
    """Each loss over the images seen, of all variants.

    Raises:
        UserError: a curve is missing or not what training writes.
    """
    tables = {variant: _read(path) for variant, path in curves.items()}
    return [
        Chart(
            title,
            line_chart(
                [
                    Line(NAMES[variant], variant, [(row["images_seen"], row[key]) for row in rows])
                    for variant, rows in tables.items()
                ],
                title=f"{title} by images seen",
                x_label="images seen",
            ),
        )
        for key, title in CURVES.items()
    ]


def _points(numbers: Numbers, key: str, factor: float) -> list[tuple[float, float]]:
    after = f"/given={numbers['given']}"  # what is measured after several numbers of given images says after which
    end = after if f"{key}/position/01{after}" in numbers else ""
    found = takewhile(lambda position: f"{key}/position/{position:02}{end}" in numbers, count(1))
    return [(position, factor * float(numbers[f"{key}/position/{position:02}{end}"])) for position in found]


def _read(path: Path) -> Sequence[Mapping[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(row[key]) for key in ("images_seen", *CURVES)} for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"cannot read the curve {path}: {error.strerror}; the train stage must run first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a curve that the train stage wrote ({error}); run it again") from error
    if not rows:
        raise UserError(f"{path}: a curve without points; lower train.common.log_every")
    return rows
