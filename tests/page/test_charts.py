"""Charts as SVG, and their round numbers."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from m2m.page.charts import HEIGHT, WIDTH, Line, line_chart, svg_file, ticks


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
    ET.fromstring(line_chart([Line("a", "self", [(1, 3)])], title="t", x_label="x"))
    ET.fromstring(line_chart([Line("a", "self", [(1, 3), (2, 3)])], title="t", x_label="x"))


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
