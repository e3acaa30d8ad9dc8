"""The report's part on the paper's claim: is what given images share kept, and is all else free?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m2m.page.charts import Chart, Line, at_positions, chart, points, variant_lines
from m2m.page.tables import (
    ASPECTS,
    BASELINES,
    Column,
    Numbers,
    Source,
    Table,
    after_main,
    everyone,
    found,
    table,
    variants,
)
from m2m.params import Variant
from m2m.world.grammar import ATTRIBUTES

BESIDE = {"ideal": "bound", "name_then_draw": "named"}
"""Baselines in charts, and their lines' style."""
DIFFERENCES = {"pattern_score": "Pattern score", **ASPECTS, "pairs": "Pairs that agree"}
PLACES = {"1": "1st", "2": "2nd", "3": "3rd", "4": "4th"}
PROBES = {
    "a": ", repeats what one of four happens to show",
    "b": ", keeps what three of four share, by the other's place",
}
SHOWN = {f"{letter}/{what}": f"{what} of {letter.upper()}" for letter in "ba" for what in ("content", "style")}


@dataclass(frozen=True)
class ClaimPart:
    """All that the page shows of it; tables without rows and missing charts are left out."""

    scores: Table
    attributes: Table
    changes: Table
    """with more given images, and with the length of a continuation"""
    charts: Sequence[Chart]
    independent: Table
    rivals: Table
    places: Table
    orders: Table


def claim_part(numbers: Mapping[Variant, Numbers]) -> ClaimPart:
    """What there is to show of the claim; nothing where the class network names no attributes."""
    counts = [count for (count,) in found(numbers, r"(?:baseline/\w+/)?pattern_score/given=(\d+)")]
    by_attribute = [
        Column(f"{aspect}{which}", f"{title}{of}, %", 1, 100)
        for aspect, title in ASPECTS.items()
        for which, of in [("", ""), *((f"/{attribute}", f": {attribute}") for attribute in ATTRIBUTES)]
    ]
    return ClaimPart(
        scores=table(
            everyone(numbers), [_share(f"pattern_score/given={count}", f"{count} given, %") for count in counts]
        ),
        attributes=table(everyone(numbers, after_main(numbers)), by_attribute),
        changes=table(variants(numbers, "difference/"), _changes(numbers)),
        charts=_charts(numbers),
        independent=table(
            [*_differences(numbers, "independent", ""), *_held_out(numbers, "independent")], _DIFFERENCES
        ),
        rivals=table(
            [
                *_differences(numbers, "name_then_draw", " less named, then drawn"),
                *_differences(numbers, "painted", " less the same after painted images"),
            ],
            _DIFFERENCES,
        ),
        places=table(
            [
                source
                for probe, about in PROBES.items()
                for source in variants(numbers, f"places/{probe}/", about=about)
            ],
            [
                *(_share(place, f"{title}, %") for place, title in PLACES.items()),
                _share("spread", "Most less least"),
                Column("sets", "Sets", 0),
            ],
        ),
        orders=_orders(numbers),
    )


def _share(key: str, title: str) -> Column:
    return Column(key, title, 1, 100, interval=True)


def _change(key: str, title: str) -> Column:
    return Column(key, title, 1, 100, interval=True, signed=True)


_DIFFERENCES = [_change(key, title) for key, title in DIFFERENCES.items()]


def _changes(numbers: Mapping[Variant, Numbers]) -> list[Column]:
    scores = found(numbers, r"difference/given=(\d+)-minus-(\d+)")
    drift = found(numbers, r"difference/long/position=(\d+-\d+)-minus-(\d+-\d+)/kept")
    return [
        *(_change(f"given={more}-minus-{less}", f"{more} given less {less} given") for more, less in scores),
        *(
            _change(
                f"long/position={late}-minus-{early}/kept",
                f"Kept at {late.replace('-', '–')} less at {early.replace('-', '–')}",
            )
            for late, early in drift
        ),
    ]


def _charts(numbers: Mapping[Variant, Numbers]) -> list[Chart]:
    kept = at_positions(numbers, "kept")
    score = r"pattern_score/given=(\d+)"
    return [
        *chart("Pattern score, %", [*_beside(numbers, score), *variant_lines(numbers, score, 100)], by="given images"),
        *chart("Kept, %", [*_beside(numbers, kept), *variant_lines(numbers, kept, 100)], by="position"),
        *chart(
            "Kept in a longer continuation, %",
            variant_lines(numbers, r"long/kept/position/(\d+)/given=\d+", 100),
            by="position",
        ),
    ]


def _beside(numbers: Mapping[Variant, Numbers], key: str) -> list[Line]:
    shared = next(iter(numbers.values()))
    return [
        Line(BASELINES[baseline], style, points(shared, f"baseline/{baseline}/{key}", 100))
        for baseline, style in BESIDE.items()
    ]


def _differences(numbers: Mapping[Variant, Numbers], rival: str, about: str) -> list[Source]:
    return [
        Source(f"{one.name}, {count} given", one.numbers, one.prefix, f"/given={count}", one.variant)
        for one in variants(numbers, f"difference/{rival}/", about=about)
        for (count,) in found(numbers, rf"difference/{rival}/\w+/given=(\d+)")
    ]


def _held_out(numbers: Mapping[Variant, Numbers], rival: str) -> list[Source]:
    """What there is to be won at most, for each variant: its independent pictures are its own."""
    return [
        Source(one.name, one.numbers, one.prefix, one.suffix)
        for one in _differences(numbers, f"held_out-minus-{rival}", ", what held-out sets would gain")
    ]


def _orders(numbers: Mapping[Variant, Numbers]) -> Table:
    """What is drawn after pictures of B among which A has each place, beside what the ideal reader expects."""
    shared = next(iter(numbers.values()))
    columns = [
        Column(
            f"{probe}/at={place}",
            f"{'B' * (int(place) - 1)}A{'B' * (len(probe) - int(place))}, %",
            0,
            100,
            interval=True,
        )
        for probe, place in found(numbers, r"probe/(A|AB+)/at=(\d+)/.*")
    ]
    sources = []
    for key, what in SHOWN.items():
        sources += variants(numbers, "probe/", f"/{key}", f", {what}")
        sources.append(Source(f"{BASELINES['ideal']}, {what}", shared, "baseline/ideal/probe/", f"/{key}"))
    return table(sources, columns)
