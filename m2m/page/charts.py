"""The report's charts: metrics by position, and the curves of training."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from m2m.errors import UserError, made_again
from m2m.page.line_chart import Line, line_chart
from m2m.page.tables import NAMES, Column, Numbers, after_main
from m2m.params import Variant

BY_POSITION = (
    Column("fid", "FID (lower is better)"),
    Column("kid", "KID (lower is better)"),
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


def chart(title: str, lines: Sequence[Line], *, by: str) -> list[Chart]:
    """One chart of the lines that have points; none if no variant's has."""
    drawn = [line for line in lines if line.points]
    if not any(line.style in NAMES for line in drawn):
        return []
    return [Chart(title, line_chart(drawn, title=f"{title} by {by}", x_label=by))]


def variant_lines(numbers: Mapping[Variant, Numbers], key: str, factor: float) -> list[Line]:
    """A line of each variant, its points from the keys that fit `key`, whose one group is a point's place."""
    return [Line(NAMES[variant], variant, points(of_variant, key, factor)) for variant, of_variant in numbers.items()]


def points(numbers: Numbers, key: str, factor: float) -> list[tuple[float, float]]:
    """What is measured at each place, in order."""
    matches = ((re.fullmatch(key, name), value) for name, value in numbers.items())
    return sorted((float(match[1]), factor * float(value)) for match, value in matches if match)


def at_positions(numbers: Mapping[Variant, Numbers], key: str) -> str:
    """What keys of a metric by position look like.

    Some end with the number of given pictures after which it was measured; of several, the main one counts.
    """
    return rf"{key}/position/(\d+)(?:{after_main(numbers)})?"


def position_charts(numbers: Mapping[Variant, Numbers]) -> list[Chart]:
    """Each metric by generated position, of all variants and of held-out sets."""
    shared = next(iter(numbers.values()))
    charts = []
    for column in BY_POSITION:
        key = at_positions(numbers, column.key)
        ceiling = Line("held-out MIS sets", "bound", points(shared, f"baseline/mis/{key}", column.factor))
        charts += chart(column.title, [ceiling, *variant_lines(numbers, key, column.factor)], by="position")
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


def _read(path: Path) -> Sequence[Mapping[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(row[key]) for key in ("images_seen", *CURVES)} for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"cannot read the curve {path}: {error.strerror}; the train stage must run first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a curve that the train stage wrote ({error}); make it again: {made_again('train')}"
        ) from error
    if not rows:
        raise UserError(f"{path}: a curve without points; lower train.common.log_every")
    return rows
