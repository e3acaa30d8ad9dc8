"""The report's part on sampling efficiency, from the flat numbers of the sampling stage."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from m2m.page.efficiency import efficiency_part, figure
from m2m.page.tables import MISSING

ABOUT = {"images": 4, "repeats": 3, "solver": "ddim", "num_inference_steps": 50, "spread": 0.1, "device": "fast"}
BASE = {
    **{"seconds/stable-diffusion": 0.25, "reading_seconds/stable-diffusion": 0.001},
    **{"decoding_seconds/stable-diffusion": 0.01, "gflop/stable-diffusion": 1608.4},
}


def numbers(*, window: int = 4) -> dict[str, float | int | str]:
    found: dict[str, float | int | str] = {**ABOUT, **BASE}
    for variant, slope in (("self", 0.02), ("dino", 0.01)):
        for given in (1, 2, 8):
            case, read = f"{variant}/given={given}", min(given, window)
            found |= {f"seconds/{case}": 0.2 + slope * read, f"ratio/{case}": (0.2 + slope * read) / 0.25}
            found |= {f"gflop/{case}": 1600.0 + read, f"gflop_ratio/{case}": 1.0, f"window/{case}": read}
            found |= {f"reading_seconds/{case}": 0.0123 * given}
    return found


def test_a_row_for_each_number_of_given_images_beside_stable_diffusions() -> None:
    part = efficiency_part(numbers())
    rows = {row.name: row for row in part.table.rows}
    assert list(rows) == [
        "Stable Diffusion, a caption",
        *(f"M2M-Self, {given} given" for given in (1, 2, 8)),
        *(f"M2M-DINO, {given} given" for given in (1, 2, 8)),
    ]
    assert all(len(row.cells) == len(part.table.headings) for row in rows.values())
    assert rows["Stable Diffusion, a caption"].cells == [MISSING, "0.250", MISSING, "1608", MISSING, "0.00100"]
    assert rows["M2M-Self, 2 given"].cells == ["2", "0.240", "0.960", "1602", "1.00", "0.0246"]
    assert rows["M2M-DINO, 8 given"].cells == ["4", "0.240", "0.960", "1604", "1.00", "0.0984"]


def test_it_says_how_far_the_models_look_where_more_were_given() -> None:
    assert efficiency_part(numbers(window=4)).window == 4
    assert efficiency_part(numbers(window=8)).window is None


def test_time_and_operations_are_three_curves_each() -> None:
    charts = efficiency_part(numbers()).charts
    assert len(charts) == 2
    for chart in charts:
        lines = [element for element in ET.fromstring(chart.svg) if element.tag == "polyline"]
        assert [line.attrib["class"] for line in lines] == ["line bound", "line self", "line dino"]
        base = [point.split(",") for point in lines[0].attrib["points"].split()]
        assert len(base) == 3
        assert len({down for _, down in base}) == 1, "a caption costs the same everywhere"


def test_the_figure_is_a_file_of_its_own_with_a_legend() -> None:
    svg = ET.fromstring(figure(numbers()))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:3] == ["Stable Diffusion", "M2M-Self", "M2M-DINO"]
    assert "0" in texts, "heights compare"
    assert "given images" in texts


def test_one_variant_alone_is_shown_as_well() -> None:
    alone = {key: value for key, value in numbers().items() if "/dino/" not in key}
    assert len(efficiency_part(alone).table.rows) == 4
    assert figure(alone).count(b"<polyline") == 2
