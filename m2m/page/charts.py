"""The report's charts as inline SVG: metrics by position, the curves of training, and what an image costs.

They take their colours from the page, so that light and dark both suit them. The paper's figure on sampling efficiency
is a file of its own as well.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from markupsafe import Markup, escape

from m2m.errors import UserError, made_again
from m2m.page.tables import MISSING, NAMES, Column, Numbers, Row, Table, after_main, found
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
    every = [point for line in lines for point in line.points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    rows = ticks(0 if from_zero else min(ys), max(ys))
    x0, x1, y0, y1 = min(xs), max(xs), rows[0], rows[-1]
    columns = [tick for tick in ticks(x0, x1) if x0 <= tick <= x1]

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


Charts = dict[str, Markup]
"""Drawn ones, by heading."""


def chart(title: str, lines: Sequence[Line], *, by: str) -> Charts:
    """One chart of the lines that have points; none if no variant's has."""
    drawn = [line for line in lines if line.points]
    if not any(line.style in NAMES for line in drawn):
        return {}
    return {title: line_chart(drawn, title=f"{title} by {by}", x_label=by)}


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


def position_charts(numbers: Mapping[Variant, Numbers]) -> Charts:
    """Each metric by generated position, of all variants and of held-out sets."""
    shared = next(iter(numbers.values()))
    charts: Charts = {}
    for column in BY_POSITION:
        key = at_positions(numbers, column.key)
        ceiling = Line("held-out MIS sets", "bound", points(shared, f"baseline/mis/{key}", column.factor))
        charts |= chart(column.title, [ceiling, *variant_lines(numbers, key, column.factor)], by="position")
    return charts


def training_charts(curves: Mapping[Variant, Path]) -> Charts:
    """Each loss over the images seen, of all variants.

    Raises:
        UserError: a curve is missing or not what training writes.
    """
    tables, charts = {variant: _read(path) for variant, path in curves.items()}, Charts()
    for key, title in CURVES.items():
        points_of = {variant: [(row["images_seen"], row[key]) for row in rows] for variant, rows in tables.items()}
        lines = [Line(NAMES[variant], variant, of_variant) for variant, of_variant in points_of.items()]
        charts |= chart(title, lines, by="images seen")
    return charts


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


BASE = "stable-diffusion"
BASE_NAME = "Stable Diffusion"
COLUMNS: Mapping[str, str] = {
    "window": "In the window",
    "seconds": "Seconds an image",
    "ratio": f"× {BASE_NAME}",
    "gflop": "GFLOP a step",
    "gflop_ratio": f"× {BASE_NAME}",
    "reading_seconds": "Seconds of reading",
}
COSTS: Mapping[str, str] = {"seconds": "Seconds an image", "gflop": "GFLOP a guided denoising step"}
X_LABEL = "given images"
KEYS = (
    *(f"{part}/{BASE}" for part in ("seconds", "reading_seconds", "decoding_seconds", "gflop")),
    *("images", "repeats", "solver", "num_inference_steps", "spread", "device", "pixels"),
)
"""What the numbers of the sampling stage hold at least."""


def efficiency_table(numbers: Numbers) -> Table:
    """Of the numbers that the sampling stage wrote."""
    rows = [Row(f"{BASE_NAME}, a caption", _cells(numbers, BASE))]
    for variant, counts in _given(numbers).items():
        cells = {given: _cells(numbers, f"{variant}/given={given}") for given in counts}
        rows += [Row(f"{NAMES[variant]}, {given} given", of_row, variant) for given, of_row in cells.items()]
    return Table([*COLUMNS.values()], rows)


def efficiency_charts(numbers: Numbers) -> Charts:
    """Time and operations by number of given images."""
    lines = {part: _cost_lines(numbers, part) for part in COSTS}
    options: dict[str, Any] = {"x_label": X_LABEL, "from_zero": True}
    return {title: line_chart(lines[part], title=title, **options) for part, title in COSTS.items()}


def window(numbers: Numbers) -> int | None:
    """Images that the models look at, at most; None where they looked at all that were given."""
    seen = [(given, numbers[f"window/{name}/given={given}"]) for name, of in _given(numbers).items() for given in of]
    return max((int(count) for given, count in seen if int(count) < given), default=None)


def figure(numbers: Numbers) -> bytes:
    """The paper's figure, seconds an image by number of given ones, as an SVG file."""
    return svg_file(_cost_lines(numbers, "seconds"), title=COSTS["seconds"], x_label=X_LABEL, from_zero=True)


def _cost_lines(numbers: Numbers, part: str) -> list[Line]:
    """Of Stable Diffusion, which is given no image, and of each variant."""
    drawn = {variant: points(numbers, rf"{part}/{variant}/given=(\d+)", 1) for variant in _given(numbers)}
    everywhere = sorted({given for of_variant in drawn.values() for given, _ in of_variant})
    base = Line(BASE_NAME, "bound", [(given, float(numbers[f"{part}/{BASE}"])) for given in everywhere])
    return [base, *(Line(NAMES[variant], variant, of_variant) for variant, of_variant in drawn.items())]


def _given(numbers: Numbers) -> dict[Variant, list[int]]:
    """Of each variant that was measured, after how many images."""
    counts = {one: found({one: numbers}, rf"seconds/{one}/given=(\d+)") for one in get_args(Variant)}
    return {variant: [int(count) for (count,) in of_variant] for variant, of_variant in counts.items() if of_variant}


def _cells(numbers: Numbers, case: str) -> list[str]:
    values = (numbers.get(f"{column}/{case}", MISSING) for column in COLUMNS)
    return [f"{one:{'.0f' if one >= 100 else '#.3g'}}" if isinstance(one, float) else str(one) for one in values]
