"""What is made of scores once they are there."""

import pytest

from m2m.evaluation.comparison import relative
from m2m.evaluation.measure import Scores


def test_shares_are_of_the_ceiling_and_drift_in_units_of_shuffled_colours() -> None:
    ours = Scores({"diversity": [2.0, 2.0], "fid": [3.0, 4.0]}, {"spread/place": 0.1})
    ceiling = Scores({"diversity": [4.0, 4.0], "fid": [1.0, 1.0]}, {"spread/place": 0.4})
    assert relative(ours, ceiling, [21.0, 21.0]) == pytest.approx(
        {"relative/diversity": 0.5, "relative/spread/place": 0.25, "relative/fid_drift": 0.05}
    )


def test_what_has_no_ceiling_or_unit_is_left_out() -> None:
    ours = Scores({"diversity": [1.0], "fid": [3.0]}, {"spread/place": 0.1})
    ceiling = Scores({"diversity": [1.0], "fid": [3.0]}, {"spread/place": 0.0})
    assert relative(ours, ceiling, [2.0]) == {"relative/diversity": 1.0}
