"""The report's parts: on the paper's claim, galleries of pictures small enough to be part of the page, the two tasks.

On the claim: is what given images share kept, and is all else free?
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from m2m.contact_sheet import CAPTIONS
from m2m.errors import UserError, made_again
from m2m.page.charts import Charts, Line, at_positions, chart, points, variant_lines
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
from m2m.params import Task, Variant
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


def claim_tables(
    numbers: Mapping[Variant, Numbers], beside: Mapping[str, Mapping[Variant, Numbers]]
) -> dict[str, Table]:
    """All tables of the claim; without rows where nothing is known, as where the class network names no attributes.

    Args:
        beside: of models that were made otherwise, by how.
    """
    suffix = after_main(numbers)
    counts = [count for (count,) in found(numbers, r"(?:baseline/\w+/)?pattern_score/given=(\d+)")]
    parts = ("", *(f"/{attribute}" for attribute in ATTRIBUTES))
    by_attribute = [
        Column(f"{aspect}{part}", f"{title}{part.replace('/', ': ')}, %", 1, 100)
        for aspect, title in ASPECTS.items()
        for part in parts
    ]
    differences = [_share(key, title, signed=True) for key, title in DIFFERENCES.items()]
    independent = [
        *_differences(numbers, "independent", ""),
        # What there is to be won at most, for each variant: its independent pictures are its own.
        *_differences(numbers, "held_out-minus-independent", ", what held-out sets would gain", ours=False),
    ]
    rivals = [
        *_differences(numbers, "name_then_draw", " less named, then drawn"),
        *_differences(numbers, "painted", " less the same after painted images"),
    ]
    by_place = [_share(place, f"{title}, %") for place, title in PLACES.items()]
    places = [one for probe, about in PROBES.items() for one in variants(numbers, f"places/{probe}/", about=about)]
    return {
        "scores": table(
            [*everyone(numbers), *_made_otherwise(beside)],
            [_share(f"pattern_score/given={one}", f"{one} given, %") for one in counts],
        ),
        "attributes": table([*everyone(numbers, suffix), *_made_otherwise(beside, suffix)], by_attribute),
        "changes": table(variants(numbers, "difference/"), _changes(numbers)),
        "independent": table(independent, differences),
        "rivals": table(rivals, differences),
        "places": table(places, [*by_place, _share("spread", "Most less least"), Column("sets", "Sets", 0)]),
        "orders": _orders(numbers),
    }


def _made_otherwise(beside: Mapping[str, Mapping[Variant, Numbers]], suffix: str = "") -> list[Source]:
    return [
        source
        for way, of_way in beside.items()
        for source in variants(of_way, suffix=suffix, about=f", {way}", ours=False)
    ]


def claim_charts(numbers: Mapping[Variant, Numbers]) -> Charts:
    """Those of which there are points: the score by given images, what is kept by position, and far on."""
    shared, kept, score = next(iter(numbers.values())), at_positions(numbers, "kept"), r"pattern_score/given=(\d+)"

    def lines(key: str) -> list[Line]:
        beside = {baseline: points(shared, f"baseline/{baseline}/{key}", 100) for baseline in BESIDE}
        bounds = [Line(BASELINES[baseline], BESIDE[baseline], of_baseline) for baseline, of_baseline in beside.items()]
        return [*bounds, *variant_lines(numbers, key, 100)]

    far = variant_lines(numbers, r"long/kept/position/(\d+)/given=\d+", 100)
    return {
        **chart("Pattern score, %", lines(score), by="given images"),
        **chart("Kept, %", lines(kept), by="position"),
        **chart("Kept in a longer continuation, %", far, by="position"),
    }


def _share(key: str, title: str, digits: int = 1, *, signed: bool = False) -> Column:
    return Column(key, title, digits, 100, interval=True, signed=signed)


def _changes(numbers: Mapping[Variant, Numbers]) -> list[Column]:
    """With more given images, and with the length of a continuation."""
    columns = {
        f"given={more}-minus-{less}": f"{more} given less {less} given"
        for more, less in found(numbers, r"difference/given=(\d+)-minus-(\d+)")
    }
    for late, early in found(numbers, r"difference/long/position=(\d+-\d+)-minus-(\d+-\d+)/kept"):
        title = f"Kept at {late} less at {early}".replace("-", "–")
        columns[f"long/position={late}-minus-{early}/kept"] = title
    return [_share(key, title, signed=True) for key, title in columns.items()]


def _differences(numbers: Mapping[Variant, Numbers], rival: str, about: str, *, ours: bool = True) -> list[Source]:
    return [
        replace(one, name=f"{one.name}, {count} given", suffix=f"/given={count}")
        for one in variants(numbers, f"difference/{rival}/", about=about, ours=ours)
        for (count,) in found(numbers, rf"difference/{rival}/\w+/given=(\d+)")
    ]


def _orders(numbers: Mapping[Variant, Numbers]) -> Table:
    """What is drawn after pictures of B among which A has each place, beside what the ideal reader expects."""
    shared = next(iter(numbers.values()))
    columns = []
    for probe, place in found(numbers, r"probe/(A|AB+)/at=(\d+)/.*"):
        order = "B" * (int(place) - 1) + "A" + "B" * (len(probe) - int(place))
        columns.append(_share(f"{probe}/at={place}", f"{order}, %", 0))
    sources = []
    for key, what in SHOWN.items():
        sources += variants(numbers, "probe/", f"/{key}", f", {what}")
        sources.append(Source(f"{BASELINES['ideal']}, {what}", shared, "baseline/ideal/probe/", f"/{key}"))
    return table(sources, columns)


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
    given: int
    about: str
    """what follows the variant's name above it"""
    captions: list[str]
    source: str
    """a data URI"""
    width: int
    height: int


def galleries(plots: Mapping[Variant, Path]) -> list[Gallery]:
    """The galleries ``given-N.png`` in the folders that evaluations filled, by number of given pictures.

    Raises:
        UserError: there is none in a folder, or one is damaged.
    """
    shown = []
    for variant, folder in plots.items():
        matches = ((re.fullmatch(r"given-(\d+)\.png", path.name), path) for path in folder.glob("given-*.png"))
        paths = {int(match[1]): path for match, path in matches if match}
        if not paths:
            raise UserError(f"{folder}: no galleries in it; the evaluate stage must run first")
        for given, path in paths.items():
            rows = None if given == min(paths) else ROWS_OF_OTHERS
            shown.append(_load(variant, given, path, about=f"{given} given", rows=rows))
    return sorted(shown, key=lambda gallery: gallery.given)


def consistency(plots: Mapping[Variant, Path]) -> list[Gallery]:
    """The figures after the paper's, ``consistency.png``; none where no such pictures were found among the sets.

    Raises:
        UserError: one is damaged.
    """
    paths = {variant: folder / "consistency.png" for variant, folder in plots.items()}
    return [
        _load(variant, CONSISTENCY_GIVEN, path, about="what is consistent")
        for variant, path in paths.items()
        if path.exists()
    ]


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
    return Gallery(variant, given, about, captions, _uri("webp", buffer.getvalue()), picture.width, picture.height)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


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


def task_part(
    task: Task,
    tuned: Mapping[Variant, Numbers],
    beside: Mapping[str, Mapping[Variant, Numbers]],
    plots: Mapping[Variant, Path],
) -> dict[str, Any]:
    """What the page shows of a task: title, sets, table, PSNR by angle, galleries, and data URIs of what turns.

    Args:
        tuned: of the fine-tuned models.
        beside: of models that were made otherwise, by how.
        plots: the folders that evaluation filled.

    Raises:
        UserError: a gallery is missing or damaged.
    """
    shared, about = next(iter(tuned.values())), TABLES[task]
    # The perceptual distance is called LPIPS only where all rows have it from LPIPS.
    others = [numbers for of_way in beside.values() for numbers in of_way.values()]
    judges = [str(one.get("network/perceptual", "")) for one in (*tuned.values(), *others)]
    published = all(judge.startswith("lpips") for judge in judges)
    columns = [replace(one, title="LPIPS ↓") if published and one == PERCEPTUAL else one for one in about.columns]
    rows = [
        *variants(tuned, about=", fine-tuned"),
        *_made_otherwise(beside),
        *variants(tuned, "baseline/untuned/", about=", not fine-tuned", ours=False),
        *(Source(name, shared, f"baseline/{baseline}/") for baseline, name in about.baselines.items()),
    ]
    by_angle = [Column(f"psnr/given=1/angle/{key}", title) for key, title in ANGLES.items()]
    turning = {variant: folder / "turntable.gif" for variant, folder in plots.items()}
    by_variant = [*variants(tuned), Source("The given view", shared, "baseline/nearest/")]
    return {
        "title": about.title,
        "sets": shared["sets"],
        "table": table(rows, columns, whole=True),
        "angles": table(by_variant, by_angle) if about.by_angle else None,
        "galleries": galleries(plots),
        "turntables": {variant: _uri("gif", path.read_bytes()) for variant, path in turning.items() if path.exists()},
    }
