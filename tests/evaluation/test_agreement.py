"""Agreement with captions, and intervals of its differences."""

import numpy as np
import pytest
import torch

from m2m.errors import UserError
from m2m.evaluation.agreement import agreement, paired_interval

CLASSES = {"noun": ("star", "moon"), "colour": ("red", "blue", "green"), "style": ("flat", "neon")}


def _logits(names: dict[str, list[list[str]]]) -> dict[str, torch.Tensor]:
    """What a network that is sure of `names`, (sets, positions) by attribute, would give."""
    return {
        head: torch.nn.functional.one_hot(
            torch.tensor([[CLASSES[head].index(name) for name in row] for row in rows]), len(CLASSES[head])
        ).float()
        for head, rows in names.items()
    }


def test_agreement_compares_each_reading_with_its_own_caption() -> None:
    hits = agreement(
        _logits(
            {
                "noun": [["star", "moon"], ["moon", "moon"]],
                "colour": [["red", "red"], ["blue", "green"]],
                "style": [["flat", "flat"], ["flat", "neon"]],
            }
        ),
        CLASSES,
        ["a red star, flat", "a neon drawing of a blue moon"],
    )
    assert hits["noun"].tolist() == [[1, 0], [1, 1]]
    assert hits["colour"].tolist() == [[1, 1], [1, 0]]
    assert hits["content"].tolist() == [[1, 0], [1, 0]]
    assert hits["style"].tolist() == [[1, 1], [0, 1]]


def test_a_caption_that_does_not_parse_is_named() -> None:
    with pytest.raises(UserError, match="purplish"):
        agreement(_logits({"noun": [["star"]]}), CLASSES, ["something purplish"])


def test_paired_interval_is_that_of_the_mean_difference_over_sets() -> None:
    random = np.random.default_rng(0)
    first = torch.from_numpy(random.random((400, 5)))
    second = first + 0.1 + torch.from_numpy(random.normal(scale=0.2, size=(400, 1)))
    interval = paired_interval(first, second, resamples=4000, seed=1)
    differences = (second - first).mean(1).numpy()
    half = 1.96 * differences.std() / 20
    assert interval.mean == pytest.approx(differences.mean())
    assert interval.low == pytest.approx(differences.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(differences.mean() + half, abs=0.15 * half)


def test_paired_interval_is_a_function_of_its_seed() -> None:
    first, second = torch.rand(30, 2), torch.rand(30, 2)
    assert paired_interval(first, second, resamples=50, seed=1) == paired_interval(first, second, resamples=50, seed=1)
    assert paired_interval(first, second, resamples=50, seed=1) != paired_interval(first, second, resamples=50, seed=2)
