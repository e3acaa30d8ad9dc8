"""Charts as SVG, their round numbers, and the part on sampling efficiency, from the flat numbers of its stage."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from m2m.page.charts import (
    HEIGHT,
    WIDTH,
    Line,
    efficiency_charts,
    efficiency_table,
    figure,
    line_chart,
    svg_file,
    ticks,
    window,
)
from m2m.page.tables import MISSING


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.13, 0.94), (9.2, 9.4), (-3, 7), (1e-6, 2e-6), (5, 5), (0, 0), (120, 99_000), (0.999, 1.001)],
)
def test_ticks_are_few_round_and_around(low: float, high: float) -> None:
    found = ticks(low, high)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1.0}
    assert 2 <= len(found) <= 8
    assert found[0] <= low
    assert found[-1] >= high
    assert f"{found[1] - found[0]:.0e}"[0] in "125"


def test_lines_run_from_left_to_right_and_up_with_their_values() -> None:
    svg = ET.fromstring(line_chart([Line("a", "self", [(1, 10), (2, 30), (3, 20)])], title="t", x_label="x"))
    [line] = [element for element in svg if element.tag == "polyline"]
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    across, down = zip(*points, strict=True)
    assert list(across) == sorted(across)
    assert down[1] < down[2] < down[0]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)


def test_points_tell_their_values() -> None:
    svg = ET.fromstring(line_chart([Line("a & b", "dino", [(1, 0.25), (2, 0.5)])], title="<t>", x_label="x"))
    assert [title.text for title in svg.iter("title")] == ["a & b, 1: 0.25", "a & b, 2: 0.5"]
    assert svg.attrib["aria-label"] == "<t>"


def test_long_lines_have_no_dots() -> None:
    svg = ET.fromstring(line_chart([Line("a", "self", [(i, i) for i in range(100)])], title="t", x_label="x"))
    assert not list(svg.iter("circle"))


def test_one_point_and_equal_values_are_drawn() -> None:
    for points in ([(1, 3)], [(1, 3), (2, 3)]):
        svg = ET.fromstring(line_chart([Line("a", "self", points)], title="t", x_label="x"))
        places = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
        assert len(places) == len(points)
        assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)


def test_an_axis_from_zero_makes_heights_compare() -> None:
    lines = [Line("a", "self", [(1, 20), (2, 10)])]
    svg = ET.fromstring(line_chart(lines, title="t", x_label="x", from_zero=True))
    bottom = max(float(line.attrib["y1"]) for line in svg.iter("line"))
    first, second = (bottom - float(dot.attrib["cy"]) for dot in svg.iter("circle"))
    assert first / second == pytest.approx(2, abs=0.01)


def test_a_file_of_its_own_has_its_colours_and_a_legend() -> None:
    content = svg_file([Line("a & b", "self", [(1, 2)]), Line("c", "dino", [(1, 3)])], title="<t>", x_label="x")
    svg, space = ET.fromstring(content), "{http://www.w3.org/2000/svg}"
    assert [text.text for text in svg.findall(f"{space}text")] == ["a & b", "c"]
    assert svg.findtext(f"{space}title") == "<t>"
    assert ".dino { color:" in (svg.findtext(f"{space}style") or "")


ABOUT = {"images": 4, "repeats": 3, "solver": "ddim", "num_inference_steps": 50, "spread": 0.1, "device": "fast"}
BASE = {
    **{"seconds/stable-diffusion": 0.25, "reading_seconds/stable-diffusion": 0.001},
    **{"decoding_seconds/stable-diffusion": 0.01, "gflop/stable-diffusion": 1608.4},
}


def numbers(*, most: int = 4) -> dict[str, float | int | str]:
    found: dict[str, float | int | str] = {**ABOUT, **BASE}
    for variant, slope in (("self", 0.02), ("dino", 0.01)):
        for given in (1, 2, 8):
            case, read = f"{variant}/given={given}", min(given, most)
            found |= {f"seconds/{case}": 0.2 + slope * read, f"ratio/{case}": (0.2 + slope * read) / 0.25}
            found |= {f"gflop/{case}": 1600.0 + read, f"gflop_ratio/{case}": 1.0, f"window/{case}": read}
            found |= {f"reading_seconds/{case}": 0.0123 * given}
    return found


def test_a_row_for_each_number_of_given_images_beside_stable_diffusions() -> None:
    table = efficiency_table(numbers())
    rows = {row.name: row for row in table.rows}
    assert list(rows) == [
        "Stable Diffusion, a caption",
        *(f"M2M-Self, {given} given" for given in (1, 2, 8)),
        *(f"M2M-DINO, {given} given" for given in (1, 2, 8)),
    ]
    assert all(len(row.cells) == len(table.headings) for row in rows.values())
    assert rows["Stable Diffusion, a caption"].cells == [MISSING, "0.250", MISSING, "1608", MISSING, "0.00100"]
    assert rows["M2M-Self, 2 given"].cells == ["2", "0.240", "0.960", "1602", "1.00", "0.0246"]
    assert rows["M2M-DINO, 8 given"].cells == ["4", "0.240", "0.960", "1604", "1.00", "0.0984"]


def test_it_says_how_far_the_models_look_where_more_were_given() -> None:
    assert window(numbers(most=4)) == 4
    assert window(numbers(most=8)) is None


def test_time_and_operations_are_three_curves_each() -> None:
    charts = efficiency_charts(numbers())
    assert len(charts) == 2
    for svg in charts.values():
        lines = [element for element in ET.fromstring(svg) if element.tag == "polyline"]
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
    assert len(efficiency_table(alone).rows) == 4
    assert figure(alone).count(b"<polyline") == 2
