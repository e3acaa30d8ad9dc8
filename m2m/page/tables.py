"""Tables and single figures of the report, from the flat numbers of each variant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m2m.params import Variant

Numbers = Mapping[str, float | int | str]

NAMES: Mapping[Variant, str] = {"self": "M2M-Self", "dino": "M2M-DINO"}
BASELINES = {
    "ideal": "An ideal reader of the given images",
    "name_then_draw": "Named, then drawn by Stable Diffusion",
    "mis": "Held-out MIS sets (ceiling)",
    "copy": "The given images, copied",
    "nearest": "The nearest training set",
    "stable_diffusion": "Stable Diffusion without caption (floor)",
    "shuffled": "Held-out MIS sets, colours exchanged",
}
"""What does not depend on the model, and is the same beside each."""
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A metric, and how it is shown."""

    key: str
    title: str
    digits: int = 2
    factor: float = 1.0
    """100 for shares that are shown in per cent"""
    interval: bool = False
    """in brackets, where there is one"""
    signed: bool = False
    of_ceiling: bool = False
    """as a share of what held-out sets have"""


@dataclass(frozen=True)
class Source:
    """Where a row's numbers are: under `prefix`, the column's key and `suffix`."""

    name: str
    numbers: Numbers
    prefix: str = ""
    suffix: str = ""
    variant: Variant | None = None


QUALITY = (
    Column("fid", "FID ↓"),
    Column("kid", "KID ↓", 3),
    Column("inception_score", "IS"),
    Column("clip_text_image", "CLIP text–image ↑"),
    Column("clip_image_image", "CLIP image–image ↑"),
)
_FIGURES = [f"{one.key}/{part}" for one in QUALITY if one.key != "kid" for part in ("mean", "std")]
PAPER: Mapping[str, Numbers] = {
    "M2M-Self, 9M": dict(zip(_FIGURES, (9.56, 1.21, 26.19, 0.67, 22.71, 0.52, 76.29, 0.02), strict=True)),
    "M2M-DINO, 6M": dict(zip(_FIGURES, (8.88, 0.87, 28.07, 0.58, 23.05, 0.49, 77.41, 0.03), strict=True)),
}
"""Shen et al., 2024, on 10K MIS test sets."""
ASPECTS = {"kept": "Kept", "free": "Free", "fresh": "Fresh"}
OF_CEILING = {
    "diversity/mean": "Distance of features",
    "spread/place": "Spread of place",
    "spread/size": "Spread of size",
    "spread/angle": "Spread of angle",
}
VARIETY = [Column(key, f"{title}, %", 0, 100, of_ceiling=True) for key, title in OF_CEILING.items()]


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


def table(
    sources: Sequence[Source], columns: Sequence[Column], paper: Sequence[Source] = (), *, whole: bool = False
) -> Table:
    """The rows and the columns of which anything is known; a table without rows if nothing is.

    Args:
        whole: all rows and columns, known or not.
    """
    shown = [one for one in columns if whole or any(_cell(source, one) != MISSING for source in sources)]

    def rows(of: Sequence[Source]) -> list[Row]:
        filled = [Row(source.name, [_cell(source, column) for column in shown], source.variant) for source in of]
        return [row for row in filled if whole or any(cell != MISSING for cell in row.cells)]

    return Table([column.title for column in shown], rows(sources), rows(paper))


def variants(
    numbers: Mapping[Variant, Numbers], prefix: str = "", suffix: str = "", about: str = "", *, ours: bool = True
) -> list[Source]:
    """A row of each variant, whose name ends with what it is about; `ours` if it is of its own model's pictures."""
    return [
        Source(f"{NAMES[variant]}{about}", of_variant, prefix, suffix, variant if ours else None)
        for variant, of_variant in numbers.items()
    ]


def everyone(numbers: Mapping[Variant, Numbers], suffix: str = "") -> list[Source]:
    """A row of each variant, and of each baseline."""
    shared = next(iter(numbers.values()))
    baselines = [Source(name, shared, f"baseline/{baseline}/", suffix) for baseline, name in BASELINES.items()]
    return [*variants(numbers, suffix=suffix), *baselines]


def found(numbers: Mapping[Variant, Numbers], pattern: str) -> list[tuple[str, ...]]:
    """The groups of a pattern in the keys that it fits, shorter ones first: 8 before 13."""
    matches = {
        match.groups() for of_variant in numbers.values() for key in of_variant if (match := re.fullmatch(pattern, key))
    }
    return sorted(matches, key=lambda groups: [(len(group), group) for group in groups])


def quality(numbers: Mapping[Variant, Numbers]) -> Table:
    """The paper's metrics of variants and baselines, and the paper's own figures."""
    return table(everyone(numbers), QUALITY, [Source(name, figures) for name, figures in PAPER.items()])


def pattern(numbers: Mapping[Variant, Numbers]) -> Table:
    """What variants and baselines keep and vary; without rows where the class network names no attributes."""
    titles = {"pattern_score": "Pattern score", **ASPECTS}
    columns = [Column(key, f"{title}, %", 1, 100) for key, title in titles.items()]
    return table(everyone(numbers, after_main(numbers)), columns)


def after_main(numbers: Mapping[Variant, Numbers]) -> str:
    """How keys end of what is measured after the main number of given images."""
    return f"/given={next(iter(numbers.values()))['given']}"


def variety(numbers: Mapping[Variant, Numbers]) -> Table:
    """What differs within sets, of variants and baselines."""
    return table(everyone(numbers), VARIETY)


def glance(numbers: Numbers) -> dict[str, str]:
    """What the few figures of a variant say that tell whether it does what it is for, and these figures."""
    given = numbers["given"]
    shares = {
        f"pattern_score/given={given}": f"pattern score after {given} given images; held-out sets reach 100 %",
        f"baseline/ideal/pattern_score/given={given}": "what an ideal reader of these images reaches",
        "relative/diversity": "of the distances within held-out sets",
        "relative/fid_drift": "drift of FID from first to last position, of what exchanging the colours costs",
    }
    if f"pattern_score/given={given}" in numbers:
        del shares["relative/diversity"]  # which takes wrong shapes for variety; the score does not
    return {label: f"{100 * float(numbers[name]):.0f} %" for name, label in shares.items() if name in numbers}


def _cell(source: Source, column: Column) -> str:
    """A value, with its standard deviation over positions or with its interval."""
    numbers, name = source.numbers, f"{column.key}{source.suffix}"
    key = f"{source.prefix}{name}"
    mean = key if key in numbers else f"{key}/mean"
    ceiling = float(numbers.get(f"baseline/mis/{name}", 0)) if column.of_ceiling else 1
    if mean not in numbers or not ceiling:
        return MISSING

    def shown(part: str) -> str:
        value = column.factor * float(numbers[part]) / ceiling
        return f"{value:{'+' if column.signed else '-'}z.{column.digits}f}".replace("-", "−")

    if column.interval and f"{key}/low" in numbers:
        return f"{shown(mean)} [{shown(f'{key}/low')}, {shown(f'{key}/high')}]"
    if mean != key and f"{key}/std" in numbers:  # no spread: one number for all pictures
        return f"{shown(mean)} ± {shown(f'{key}/std')}"
    return shown(mean)
