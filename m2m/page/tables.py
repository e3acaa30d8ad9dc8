"""Tables and single figures of the report, from the flat numbers of each variant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m2m.params import Variant

Numbers = Mapping[str, float | int | str]

NAMES: Mapping[Variant, str] = {"self": "M2M-Self", "dino": "M2M-DINO"}
BASELINES = {
    "mis": "Held-out MIS sets (ceiling)",
    "ideal": "An ideal reader of the given images",
    "name_then_draw": "Named, then drawn by Stable Diffusion",
    "independent": "Each drawn after the given images alone",
    "painted": "After the given images, painted anew",
    "nearest": "The nearest training set",
    "copy": "The given images, copied",
    "stable_diffusion": "Stable Diffusion without caption (floor)",
    "shuffled": "Held-out MIS sets, colours exchanged",
}
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A metric, and how it is shown."""

    key: str
    title: str
    digits: int = 2
    factor: float = 1.0
    """100 for shares that are shown in per cent"""


QUALITY = (
    Column("fid", "FID ↓"),
    Column("inception_score", "IS ↑"),
    Column("clip_text_image", "CLIP text–image ↑"),
    Column("clip_image_image", "CLIP image–image ↑"),
)
PAPER = {
    "M2M-Self, 9M": ("9.56 ± 1.21", "26.19 ± 0.67", "22.71 ± 0.52", "76.29 ± 0.02"),
    "M2M-DINO, 6M": ("8.88 ± 0.87", "28.07 ± 0.58", "23.05 ± 0.49", "77.41 ± 0.03"),
}
"""Shen et al., 2024, on 10K MIS test sets, in the order of `QUALITY`."""
PATTERN = {"pattern_score": "Pattern score, %", "kept": "Kept, %", "free": "Free, %", "fresh": "Fresh, %"}
VARIETY = (
    Column("diversity", "Distance of features"),
    Column("spread/place", "Spread of place", 3),
    Column("spread/size", "Spread of size", 3),
    Column("spread/angle", "Spread of angle", 3),
)


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    name: str
    cells: Sequence[str]
    variant: Variant | None = None
    """whose row it is; None for baselines and the paper's"""


@dataclass(frozen=True)
class Table:
    """Rows under headings; the paper's, if it has any, stand apart."""

    headings: Sequence[str]
    rows: Sequence[Row]
    paper: Sequence[Row] = ()


@dataclass(frozen=True)
class Fact:
    """A single figure and what it says."""

    label: str
    value: str


def quality(numbers: Mapping[Variant, Numbers]) -> Table:
    """The paper's metrics of variants and baselines, and the paper's own figures."""
    table = _compare(QUALITY, numbers)
    return Table(table.headings, table.rows, [Row(name, cells) for name, cells in PAPER.items()])


def pattern(numbers: Mapping[Variant, Numbers]) -> Table:
    """What variants and baselines keep and vary; no columns where the class network names no attributes."""
    given = next(iter(numbers.values()))["given"]
    return _compare([Column(f"{key}/given={given}", title, 1, 100) for key, title in PATTERN.items()], numbers)


def variety(numbers: Mapping[Variant, Numbers]) -> Table:
    """What differs within sets, of variants and baselines."""
    return _compare(VARIETY, numbers)


def given(numbers: Mapping[Variant, Numbers]) -> Table | None:
    """The pattern score by number of given images, and its parts; None where there is none."""
    found = [re.fullmatch(r"pattern_score/given=(\d+)", key) for key in next(iter(numbers.values()))]
    counts = sorted(int(match[1]) for match in found if match)
    rows = [
        Row(
            f"{NAMES[variant]}, {count} given",
            [
                *_with_interval(of_variant, f"pattern_score/given={count}"),
                *(_cell(of_variant, "", Column(f"{key}/given={count}", "", 1, 100)) for key in list(PATTERN)[1:]),
                _cell(of_variant, "baseline/ideal/", Column(f"pattern_score/given={count}", "", 1, 100)),
            ],
            variant,
        )
        for variant, of_variant in numbers.items()
        for count in counts
    ]
    score, *parts = PATTERN.values()
    return Table([score, "95 %", *parts, "Ideal reader, %"], rows) if counts else None


def glance(numbers: Numbers) -> list[Fact]:
    """The few figures of a variant that tell whether it does what it is for."""
    given = numbers["given"]
    shares = {
        f"pattern_score/given={given}": f"pattern score after {given} given images; held-out sets reach 100 %",
        f"baseline/ideal/pattern_score/given={given}": "what an ideal reader of these images reaches",
        "relative/diversity": "of the variety of held-out sets",
        "relative/fid_drift": "drift of FID from first to last position, of what exchanging the colours costs",
    }
    facts = []
    for name, label in shares.items():
        if (share := numbers.get(name)) is not None:
            facts.append(Fact(label, f"{100 * float(share):.0f} %"))
    return facts


def _compare(columns: Sequence[Column], numbers: Mapping[Variant, Numbers]) -> Table:
    shared = next(iter(numbers.values()))
    columns = [column for column in columns if _cell(shared, "", column) != MISSING]
    rows = [
        Row(NAMES[variant], [_cell(of_variant, "", column) for column in columns], variant)
        for variant, of_variant in numbers.items()
    ]
    for baseline, name in BASELINES.items():
        cells = [_cell(shared, f"baseline/{baseline}/", column) for column in columns]
        if any(cell != MISSING for cell in cells):
            rows.append(Row(name, cells))
    return Table([column.title for column in columns], rows)


def cells(numbers: Numbers, prefix: str, columns: Sequence[Column]) -> list[str]:
    """What a row shows, of the numbers whose keys begin with `prefix`."""
    return [_cell(numbers, prefix, column) for column in columns]


def _cell(numbers: Numbers, prefix: str, column: Column) -> str:
    key = prefix + column.key
    if key in numbers:
        return f"{column.factor * float(numbers[key]):.{column.digits}f}"
    if f"{key}/mean" not in numbers:
        return MISSING
    parts = [part for part in ("mean", "std") if f"{key}/{part}" in numbers]  # no spread: one number for all pictures
    return " ± ".join(f"{column.factor * float(numbers[f'{key}/{part}']):.{column.digits}f}" for part in parts)


def _with_interval(numbers: Numbers, key: str) -> tuple[str, str]:
    """A share in per cent, and its interval."""
    value, low, high = (100 * float(numbers[f"{key}{end}"]) for end in ("", "/low", "/high"))
    return f"{value:.1f}", f"[{low:.1f}, {high:.1f}]"
