from itertools import pairwise

import numpy as np
import pytest

from m2m.world.grammar import COLOURS, PROCEDURES
from m2m.world.pictures import SIZES, Variation
from m2m.world.procedures import PARTS, paint_step

VARIATIONS = [
    Variation(x=x, y=y, size=size, angle=0.0, shade=0.0) for size in SIZES for x in (0.31, 0.69) for y in (0.31, 0.69)
]


@pytest.mark.parametrize("kind", PROCEDURES)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_each_step_changes_the_picture_plainly(kind: str, variation: Variation) -> None:
    for colour in COLOURS:
        pictures = [paint_step(kind, colour, step + 1, variation).astype(int) for step in range(len(PARTS[kind]))]
        for before, after in pairwise(pictures):
            changed = np.abs(after - before).max(axis=-1) > 24
            assert changed.mean() >= 0.03


@pytest.mark.parametrize("kind", PROCEDURES)
def test_the_colour_stays_visible_through_all_steps(kind: str) -> None:
    for colour, rgb in COLOURS.items():
        for step in range(1, len(PARTS[kind]) + 1):
            picture = paint_step(kind, colour, step, VARIATIONS[0]).astype(int)
            assert (np.abs(picture - rgb).max(axis=-1) <= 2).mean() >= 0.05


@pytest.mark.parametrize("kind", PROCEDURES)
def test_a_step_stays_where_it_was_drawn(kind: str) -> None:
    """What no later step paints over is the same in all pictures that follow."""
    pictures = np.stack([paint_step(kind, "red", step + 1, VARIATIONS[3]) for step in range(len(PARTS[kind]))])
    for step in range(1, len(pictures)):
        untouched = (pictures[step] == pictures[step - 1]).all(axis=-1)
        assert untouched.mean() > 0.6


def test_there_is_no_step_outside_the_procedure() -> None:
    for step in (0, len(PARTS["house"]) + 1):
        with pytest.raises(ValueError, match="house"):
            paint_step("house", "red", step, VARIATIONS[0])
