"""The parts on the claim and on the tasks: every number has its place, and what is missing leaves no gap."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from m2m.contact_sheet import animation, draw_gallery, to_png
from m2m.errors import UserError
from m2m.page.charts import Charts
from m2m.page.parts import claim_charts, claim_tables, task_part
from m2m.page.tables import MISSING, Table, pattern, quality, variety
from m2m.params import Variant

GIVEN = (1, 2, 4, 8)
OWN = ("", "baseline/independent/", "baseline/painted/")
SHARED = tuple(
    f"baseline/{name}/" for name in ("mis", "copy", "ideal", "stable_diffusion", "nearest", "name_then_draw")
)
ROWS = (
    "M2M-Self",
    "M2M-DINO",
    "An ideal reader of the given images",
    "Named, then drawn by Stable Diffusion",
    "Held-out MIS sets (ceiling)",
    "The given images, copied",
    "The nearest training set",
    "Stable Diffusion without caption (floor)",
)
Numbers = dict[str, float | int | str]


def _all(value: float) -> Numbers:
    """Every key of the claim, as evaluation writes them; the value of all, and an interval of one tenth around it."""
    keys = [f"difference/given={more}-minus-{less}" for more, less in ((4, 1), (8, 4))]
    keys += ["difference/long/position=13-24-minus-1-6/kept", "long/kept/position=13-24", "difference/painted"]
    plain = [f"long/kept/position/{place:02}/given=4" for place in range(1, 25)]
    for given in GIVEN:
        for prefix in (*OWN, *SHARED):
            keys += [f"{prefix}{name}/given={given}" for name in ("pattern_score", "kept", "free", "fresh")]
            for name in ("kept", "free", "fresh"):
                plain += [f"{prefix}{name}/{attribute}/given={given}" for attribute in ("noun", "colour", "style")]
                plain += [f"{prefix}{name}/position/{place:02}/given={given}" for place in range(1, 7)]
        for rival in ("independent", "name_then_draw", "painted"):
            of_rival = ("pattern_score", "kept", "free", "fresh", "pairs")
            keys += [f"difference/{rival}/{name}/given={given}" for name in of_rival]
            keys.append(f"difference/held_out-minus-{rival}/pairs/given={given}")
    for probe in ("a", "b"):
        keys += [f"places/{probe}/{place}" for place in (*range(1, 5), "spread")]
    for probe in ("A", "AB", "ABBBB"):
        for place in range(1, len(probe) + 1):
            for letter in "ab" if len(probe) > 1 else "a":
                shown = [f"probe/{probe}/at={place}/{letter}/{what}" for what in ("noun", "content", "style")]
                keys += [f"{prefix}{key}" for prefix in ("", "baseline/ideal/") for key in shown]
    ends = {"": value, "/low": value - 0.1, "/high": value + 0.1}
    numbers: Numbers = {f"{key}{end}": number for key in keys for end, number in ends.items()}
    sets = {f"places/{probe}/sets": 24 for probe in ("a", "b")}
    return {**numbers, **dict.fromkeys(plain, value), **sets, "given": 4}


@pytest.fixture(scope="module")
def part() -> dict[str, Table]:
    return claim_tables({"self": _all(0.5), "dino": _all(0.75)}, {"released": {"dino": _all(0.25)}})


@pytest.fixture(scope="module")
def charts() -> Charts:
    return claim_charts({"self": _all(0.5), "dino": _all(0.75)})


def _cells(table: Table) -> dict[str, list[str]]:
    return {row.name: list(row.cells) for row in table.rows}


def test_the_score_of_everyone_stands_by_the_number_of_given_images(part: dict[str, Table]) -> None:
    assert part["scores"].headings == [f"{given} given, %" for given in GIVEN]
    assert tuple(_cells(part["scores"])) == (*ROWS, "M2M-DINO, released")
    assert _cells(part["scores"])["M2M-DINO, released"] == ["25.0 [15.0, 35.0]"] * 4
    assert _cells(part["scores"])["M2M-DINO"] == ["75.0 [65.0, 85.0]"] * 4
    assert [row.variant for row in part["scores"].rows][:3] == ["self", "dino", None]


def test_its_parts_stand_by_attribute(part: dict[str, Table]) -> None:
    headings = [
        f"{aspect}{which}, %" for aspect in ("Kept", "Free", "Fresh") for which in ("", ": noun", ": colour", ": style")
    ]
    assert part["attributes"].headings == headings
    assert tuple(_cells(part["attributes"])) == (*ROWS, "M2M-DINO, released")


def test_differences_have_signs_and_intervals(part: dict[str, Table]) -> None:
    assert part["changes"].headings == ["4 given less 1 given", "8 given less 4 given", "Kept at 13–24 less at 1–6"]
    assert _cells(part["changes"]) == {
        "M2M-Self": ["+50.0 [+40.0, +60.0]"] * 3,
        "M2M-DINO": ["+75.0 [+65.0, +85.0]"] * 3,
    }
    negative = claim_tables({"self": _all(-0.5)}, {})
    assert _cells(negative["changes"])["M2M-Self"][0] == "−50.0 [−60.0, −40.0]"


def test_own_rivals_are_of_each_variant(part: dict[str, Table]) -> None:
    independent = _cells(part["independent"])
    assert part["independent"].headings == ["Pattern score", "Kept", "Free", "Fresh", "Pairs that agree"]
    assert len(independent) == 2 * 2 * len(GIVEN)
    assert independent["M2M-DINO, 8 given"] == ["+75.0 [+65.0, +85.0]"] * 5
    assert independent["M2M-Self, what held-out sets would gain, 1 given"][:4] == [MISSING] * 4
    assert len(part["rivals"].rows) == 2 * 2 * len(GIVEN)
    assert "M2M-DINO less the same after painted images, 2 given" in _cells(part["rivals"])


def test_places_and_orders_stand_beside_the_ideal_reader(part: dict[str, Table]) -> None:
    assert part["places"].headings == ["1st, %", "2nd, %", "3rd, %", "4th, %", "Most less least", "Sets"]
    assert {cells[-1] for cells in _cells(part["places"]).values()} == {"24"}
    assert len(part["places"].rows) == 4
    orders = ("A", "AB", "BA", "ABBBB", "BABBB", "BBABB", "BBBAB", "BBBBA")
    assert part["orders"].headings == [f"{order}, %" for order in orders]
    assert len(part["orders"].rows) == 4 * 3
    assert _cells(part["orders"])["M2M-Self, content of A"] == ["50 [40, 60]"] * 8
    assert _cells(part["orders"])["An ideal reader of the given images, style of B"][:2] == [MISSING, "50 [40, 60]"]


def test_charts_show_the_score_and_what_is_kept_far_on(charts: Charts) -> None:
    assert list(charts) == [
        "Pattern score, %",
        "Kept, %",
        "Kept in a longer continuation, %",
    ]
    dots = [re.findall(r"<title>([^<]*)</title>", svg) for svg in charts.values()]
    assert [len(titles) for titles in dots] == [4 * 4, 4 * 6, 2 * 24]
    assert dots[0][-1] == "M2M-DINO, 8: 75"
    assert dots[2][-1] == "M2M-DINO, 24: 75"
    assert 'class="line named"' in charts["Pattern score, %"]


@pytest.mark.parametrize("gone", ["pattern_score", "long/", "probe/", "places/", "difference/", "baseline/", "kept"])
def test_what_is_missing_is_left_out(gone: str) -> None:
    numbers = {key: value for key, value in _all(0.5).items() if gone not in key}
    part, charts = claim_tables({"self": numbers}, {}), claim_charts({"self": numbers})
    left = {
        "pattern_score": not part["scores"].rows and len(charts) == 2,
        "long/": len(charts) == 2 and len(part["changes"].headings) == 2,
        "probe/": not part["orders"].rows and part["places"].rows,
        "places/": not part["places"].rows and part["orders"].rows,
        "difference/": not part["changes"].rows and not part["independent"].rows and not part["rivals"].rows,
        "baseline/": len(part["scores"].rows) == len(part["attributes"].rows) == 1,
        "kept": part["attributes"].headings[0] == "Free, %" and len(charts) == 1,
    }
    assert left[gone]


def test_without_attributes_there_is_no_claim() -> None:
    numbers: Numbers = {"given": 4, "fid/mean": 3.0, "fid/position/01": 3.0}
    assert not any(table.rows for table in claim_tables({"self": numbers}, {}).values())
    assert claim_charts({"self": numbers}) == {}


def test_the_short_table_is_of_the_main_number_of_given_images() -> None:
    table = pattern({"self": _all(0.5) | {"kept/given=4": 0.25}})
    assert table.headings == ["Pattern score, %", "Kept, %", "Free, %", "Fresh, %"]
    assert table.rows[0].cells == ["50.0", "25.0", "50.0", "50.0"]
    assert tuple(row.name for row in table.rows) == ("M2M-Self", *ROWS[2:])


def test_the_papers_figures_stand_under_their_metrics() -> None:
    scores = {f"{name}/{part}": 2.0 for name in ("fid", "kid", "clip_image_image") for part in ("mean", "std")}
    table = quality({"self": scores})
    assert table.headings == ["FID ↓", "KID ↓", "CLIP image–image ↑"]
    assert table.rows[0].cells == ["2.00 ± 2.00", "2.000 ± 2.000", "2.00 ± 2.00"]
    assert table.paper[1].cells == ["8.88 ± 0.87", MISSING, "77.41 ± 0.03"]
    assert "IS" in quality({"self": {"inception_score/mean": 2.0}}).headings


def test_variety_is_shown_as_a_share_of_the_ceilings() -> None:
    numbers = {"diversity/mean": 3.0, "baseline/mis/diversity/mean": 4.0, "baseline/copy/diversity/mean": 1.0}
    table = variety({"self": {**numbers, "spread/place": 0.5, "baseline/mis/spread/place": 0.0}})
    assert table.headings == ["Distance of features, %"]
    assert [row.cells for row in table.rows] == [["75"], ["100"], ["25"]]


VARIANTS: tuple[Variant, ...] = ("self", "dino")


def view_numbers(value: float) -> dict[str, float | int | str]:
    keys = [f"{name}/given={given}" for name in ("psnr", "ssim", "perceptual") for given in (1, 2)]
    keys += [f"psnr/given=1/angle/{part}" for part in ("000-030", "090-180")]
    numbers: dict[str, float | int | str] = {"sets": 64}
    for prefix, shift in (("", 0.0), ("baseline/nearest/", -1.0), ("baseline/untuned/", -2.0)):
        for key in keys:
            known = {key: value + shift} if "angle" in key else {f"{key}/mean": value + shift, f"{key}/std": 0.5}
            if prefix != "baseline/untuned/" or "given=2" not in key:
                numbers |= {prefix + name: number for name, number in known.items()}
    return numbers


def step_numbers(value: float) -> dict[str, float | int | str]:
    numbers: dict[str, float | int | str] = {"sets": 96}
    for prefix, shift in (("", 0.0), ("true/", 0.2), ("untuned/", -0.2), ("repeated/", -0.3)):
        of_lot = {"step_order/mean": value + shift, "step_order/std": 0.1, "fid/mean": 10 * value}
        numbers |= {f"{'baseline/' if prefix else ''}{prefix}{key}": number for key, number in of_lot.items()}
    return numbers


@pytest.fixture
def plots(tmp_path: Path) -> Callable[..., dict[Variant, Path]]:
    """Folders as the evaluation fills them."""

    def fill(*, turntable: bool) -> dict[Variant, Path]:
        folders: dict[Variant, Path] = {}
        for variant in VARIANTS:
            folder = folders[variant] = tmp_path / variant
            folder.mkdir()
            pictures = np.zeros((2, 4, 64, 64, 3), np.uint8)
            gallery = draw_gallery((one[:1], one[1:]) for one in pictures)
            (folder / "given-1.png").write_bytes(to_png(gallery, ["first", "second"]))
            if turntable:
                frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
                (folder / "turntable.gif").write_bytes(animation(frames))
        return folders

    return fill


def numbers_of(
    make: Callable[[float], Any], *scratch: Variant
) -> tuple[dict[Variant, Any], dict[str, dict[Variant, Any]]]:
    """Fine-tuned, and from scratch."""
    tuned = {variant: make(0.5 + place) for place, variant in enumerate(VARIANTS)}
    return tuned, {"the same steps from Stable Diffusion": {variant: make(0.25) for variant in scratch}}


def test_views_have_a_row_a_model_and_what_turns(plots: Callable[..., Any]) -> None:
    folders = plots(turntable=True)
    part = task_part("nvs", *numbers_of(view_numbers, "self", "dino"), folders)
    assert (part["title"], part["sets"]) == ("Novel views of an object", 64)
    assert [(row.name, row.variant) for row in part["table"].rows] == [
        ("M2M-Self, fine-tuned", "self"),
        ("M2M-DINO, fine-tuned", "dino"),
        ("M2M-Self, the same steps from Stable Diffusion", None),
        ("M2M-DINO, the same steps from Stable Diffusion", None),
        ("M2M-Self, not fine-tuned", None),
        ("M2M-DINO, not fine-tuned", None),
        ("The nearest given view", None),
    ]
    cells = {row.name: row.cells for row in part["table"].rows}
    assert all(len(row) == len(part["table"].headings) for row in cells.values())
    assert cells["M2M-Self, fine-tuned"][0] == "0.50 ± 0.50"
    assert cells["M2M-DINO, fine-tuned"][1] == "1.500 ± 0.500"
    assert cells["M2M-DINO, the same steps from Stable Diffusion"][0] == "0.25 ± 0.50"
    assert cells["M2M-DINO, not fine-tuned"][0] == "−0.50 ± 0.50"
    assert cells["M2M-Self, not fine-tuned"][3] == MISSING, "it was not drawn after two"
    assert part["angles"] is not None
    assert part["angles"].headings == ["under 30°", "over 90°"]
    assert [row.cells for row in part["angles"].rows] == [["0.50"] * 2, ["1.50"] * 2, ["−0.50"] * 2]
    for variant, source in part["turntables"].items():
        kind, _, content = source.partition(",")
        assert kind == "data:image/gif;base64"
        assert base64.b64decode(content) == (folders[variant] / "turntable.gif").read_bytes()
    assert set(part["turntables"]) == {gallery.variant for gallery in part["galleries"]} == {"self", "dino"}


def test_the_perceptual_distance_is_called_lpips_only_where_it_is(plots: Callable[..., Any]) -> None:
    folders, (tuned, scratch) = plots(turntable=True), numbers_of(view_numbers, "self")

    def heading(*networks: str) -> str:
        of_rows = (*tuned.values(), *(one for of_way in scratch.values() for one in of_way.values()))
        for one, network in zip(of_rows, networks, strict=True):
            cast(dict[str, str], one)["network/perceptual"] = network
        return task_part("nvs", tuned, scratch, folders)["table"].headings[2]

    assert task_part("nvs", tuned, scratch, folders)["table"].headings[2] == "Perceptual distance ↓"
    published, own = "lpips-alexnet-v0.1@0123", "world-classifier@0123"
    assert heading(own, own, own) == "Perceptual distance ↓"
    assert heading(published, published, own) == "Perceptual distance ↓"
    assert heading(published, published, published) == "LPIPS ↓"


def test_steps_have_a_ceiling_and_a_floor_and_turn_nothing(plots: Callable[..., Any]) -> None:
    part = task_part("vpg", *numbers_of(step_numbers), plots(turntable=False))
    assert part["title"] == "The next steps of a procedure"
    cells = {row.name: row.cells for row in part["table"].rows}
    assert list(cells) == [
        *("M2M-Self, fine-tuned", "M2M-DINO, fine-tuned", "M2M-Self, not fine-tuned", "M2M-DINO, not fine-tuned"),
        *("The true steps (ceiling)", "The last given picture, repeated"),
    ]
    assert cells["M2M-Self, fine-tuned"][0] == "50.0 ± 10.0"
    assert cells["The true steps (ceiling)"][0] == "70.0 ± 10.0"
    assert cells["M2M-Self, fine-tuned"][1:] == ["5.00", MISSING]
    assert part["angles"] is None
    assert part["turntables"] == {}


def test_only_what_somebody_ran_is_compared_from_scratch(plots: Callable[..., Any]) -> None:
    part = task_part("vpg", *numbers_of(step_numbers, "dino"), plots(turntable=False))
    scratch = [row.name for row in part["table"].rows if "from Stable Diffusion" in row.name]
    assert scratch == ["M2M-DINO, the same steps from Stable Diffusion"]


def test_without_galleries_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no galleries in it; the evaluate stage must run first"):
        task_part("vpg", *numbers_of(step_numbers), {"self": tmp_path})
