"""The report's charts as inline SVG: metrics by position, and the curves of training.

They take their colours from the page, so that light and dark both suit them.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from m2m.errors import UserError, made_again
from m2m.page.tables import NAMES, Column, Numbers, after_main
from m2m.params import Variant

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 34
TICKS = 4
POINTS_WITH_DOTS = 30
LEGEND = 24
"""Height of a legend, in a file of its own."""
STYLE = """
text { font-family: system-ui, sans-serif; font-size: 10.5px; fill: #6d6860; }
.grid { stroke: #e3dfd6; } .line { fill: none; stroke: currentColor; stroke-width: 2; } .dot { fill: currentColor; }
.self { color: #3f55c8; } .dino { color: #0d8a70; } .bound { color: #6d6860; } .line.bound { stroke-dasharray: 4 4; }
.name { fill: currentColor; }
"""
"""The page's own colours by daylight."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    style: str
    """a class of the page's style sheet: its colour, its dashes"""
    points: Sequence[tuple[float, float]]
    """at least one, in order"""


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, from_zero: bool = False) -> Markup:
    """An SVG element with one vertical axis; points of short lines tell their values to whoever hovers over them.

    Args:
        from_zero: the axis begins at zero, so that heights compare.
    """
    values = [y for line in lines for _, y in line.points]
    places = [x for line in lines for x, _ in line.points]
    rows = ticks(0 if from_zero else min(values), max(values))
    columns = [tick for tick in ticks(min(places), max(places)) if min(places) <= tick <= max(places)]
    x0, x1 = min(places), max(places)
    y0, y1 = rows[0], rows[-1]

    def across(x: float) -> float:
        return LEFT + (x - x0) / ((x1 - x0) or 1) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y0) / ((y1 - y0) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for row in rows:
        y = down(row)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_short(row)}</text>')
    for column in columns:
        x = across(column)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 19}" text-anchor="middle">{_short(column)}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    for line in lines:
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line {escape(line.style)}" points="{path}"/>')
        if len(line.points) <= POINTS_WITH_DOTS:
            parts += [
                f'<circle class="dot {escape(line.style)}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.6">'
                f"<title>{escape(line.name)}, {_short(x)}: {y:.4g}</title></circle>"
                for x, y in line.points
            ]
    return Markup("".join([*parts, "</svg>"]))


def svg_file(lines: Sequence[Line], *, title: str, x_label: str, from_zero: bool = False) -> bytes:
    """The chart with its colours and a legend, as a file that needs no page."""
    chart = line_chart(lines, title=title, x_label=x_label, from_zero=from_zero)
    names = "".join(
        f'<text class="name {escape(line.style)}" x="{LEFT + place * (WIDTH - LEFT) / len(lines):.1f}" y="14">'
        f"{escape(line.name)}</text>"
        for place, line in enumerate(lines)
    )
    height = HEIGHT + LEGEND
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * height}" '
        f'viewBox="0 0 {WIDTH} {height}"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{names}'
        f'<svg y="{LEGEND}" width="{WIDTH}" height="{HEIGHT}">{chart}</svg></svg>\n'
    ).encode()


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers around and between two others, the outer ones included.

    >>> ticks(0.13, 0.94)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low or abs(high) or 1.0
    rough = span / TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step for factor in (1, 2, 5, 10) if (step := factor * magnitude) >= rough * 0.75)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


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
