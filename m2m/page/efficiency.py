"""The report's part on sampling efficiency: the paper's figure, and the table beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from m2m.page.charts import Chart, Line, line_chart, svg_file
from m2m.page.tables import MISSING, NAMES, Numbers, Row, Table
from m2m.params import Variant

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
CHARTS: Mapping[str, str] = {"seconds": "Seconds an image", "gflop": "GFLOP a guided denoising step"}
X_LABEL = "given images"
KEYS = (
    *(f"{part}/{BASE}" for part in ("seconds", "reading_seconds", "decoding_seconds", "gflop")),
    *("images", "repeats", "solver", "num_inference_steps", "spread", "device", "pixels"),
)
"""What the numbers hold at least."""


@dataclass(frozen=True)
class EfficiencyPart:
    """All that the page shows of it."""

    numbers: Numbers
    table: Table
    charts: Sequence[Chart]
    window: int | None
    """Images that the models look at, at most; None where they looked at all that were given."""


def efficiency_part(numbers: Numbers) -> EfficiencyPart:
    """What there is to show of the numbers that the sampling stage wrote."""
    rows = [Row(f"{BASE_NAME}, a caption", _cells(numbers, BASE))]
    windows = []
    for variant in get_args(Variant):
        for given in _given(numbers, variant):
            case = f"{variant}/given={given}"
            rows.append(Row(f"{NAMES[variant]}, {given} given", _cells(numbers, case), variant))
            if (window := int(numbers[f"window/{case}"])) < given:
                windows.append(window)
    charts = [
        Chart(title, line_chart(_lines(numbers, part), title=title, x_label=X_LABEL, from_zero=True))
        for part, title in CHARTS.items()
    ]
    return EfficiencyPart(numbers, Table([*COLUMNS.values()], rows), charts, max(windows, default=None))


def figure(numbers: Numbers) -> bytes:
    """The paper's figure, seconds an image by number of given ones, as an SVG file."""
    return svg_file(_lines(numbers, "seconds"), title=CHARTS["seconds"], x_label=X_LABEL, from_zero=True)


def _lines(numbers: Numbers, part: str) -> list[Line]:
    """Of Stable Diffusion, which is given no image, and of each variant."""
    drawn = {variant: [*_given(numbers, variant)] for variant in get_args(Variant)}
    everywhere = sorted({given for of_variant in drawn.values() for given in of_variant})
    base = float(numbers[f"{part}/{BASE}"])
    return [Line(BASE_NAME, "bound", [(given, base) for given in everywhere])] + [
        Line(NAMES[variant], variant, [(n, float(numbers[f"{part}/{variant}/given={n}"])) for n in of_variant])
        for variant, of_variant in drawn.items()
        if of_variant
    ]


def _given(numbers: Numbers, variant: Variant) -> Iterator[int]:
    found = (re.fullmatch(rf"seconds/{variant}/given=(\d+)", key) for key in numbers)
    yield from sorted(int(match[1]) for match in found if match)


def _cells(numbers: Numbers, case: str) -> list[str]:
    return [_cell(numbers.get(f"{column}/{case}")) for column in COLUMNS]


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return MISSING
    return str(value) if isinstance(value, int) else f"{float(value):{'.0f' if float(value) >= 100 else '#.3g'}}"
