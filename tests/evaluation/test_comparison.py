"""What is made of scores once they are there."""

import pytest
import torch

from m2m.evaluation.comparison import by_given, relative
from m2m.evaluation.measure import Scores


def _scores(**by_position: list[float]) -> Scores:
    return Scores(by_position=by_position, overall={})


def test_shares_are_of_the_ceiling_and_drift_in_units_of_shuffled_colours() -> None:
    ours = _scores(content_agreement=[0.8, 0.6], style_agreement=[0.9, 0.9], diversity=[2.0, 2.0], fid=[3.0, 4.0])
    ceiling = _scores(content_agreement=[1.0, 1.0], style_agreement=[1.0, 0.8], diversity=[4.0, 4.0], fid=[1.0, 1.0])
    assert relative(ours, ceiling, [21.0, 21.0]) == pytest.approx(
        {
            "relative/content_agreement": 0.7,
            "relative/style_agreement": 1.0,
            "relative/diversity": 0.5,
            "relative/fid_drift": 0.05,
        }
    )


def test_what_has_no_ceiling_or_unit_is_left_out() -> None:
    ours = _scores(content_agreement=[0.0], diversity=[1.0], fid=[3.0])
    ceiling = _scores(content_agreement=[0.0], diversity=[1.0], fid=[3.0])
    assert relative(ours, ceiling, [2.0]) == {"relative/diversity": 1.0}


def test_numbers_of_given_pictures_are_compared_at_the_places_that_all_generate() -> None:
    one = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])  # places 2 to 5 of two sets
    three = torch.tensor([[1.0, 1.0], [1.0, 0.0]])  # places 4 and 5
    numbers = by_given({1: {"style": one}, 3: {"style": three}}, baseline=1, resamples=10, seed=0)
    assert numbers["style_agreement/given=1/mean"] == 0.75
    assert numbers["style_agreement/given=3/mean"] == 0.75
    pair = "paired/style_agreement/given=3-minus-1"
    assert [numbers[f"{pair}/{end}"] for end in ("low", "mean", "high")] == [0, 0, 0]


def test_the_sign_of_a_difference_favours_more_given_pictures() -> None:
    worse, better = torch.zeros(5, 2), torch.ones(5, 2)
    numbers = by_given({1: {"noun": worse}, 2: {"noun": better}}, baseline=1, resamples=10, seed=0)
    assert numbers["paired/noun_agreement/given=2-minus-1/low"] == 1
