"""What guidance makes of the two halves of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m2m.diffusion.guidance import guided, guides

SAMPLE = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def predict(rows: Tensor) -> Tensor:
    """Without the condition the sample itself, with it three times that."""
    assert torch.equal(rows, torch.cat([SAMPLE, SAMPLE]))
    return torch.cat([rows[:3], 3 * rows[3:]])


@pytest.mark.parametrize(("scale", "factor"), [(1.5, 4), (2.5, 6)])
def test_it_goes_from_the_one_prediction_through_the_other(scale: float, factor: float) -> None:
    assert guides(scale)
    torch.testing.assert_close(guided(predict, SAMPLE, scale), factor * SAMPLE)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0])
def test_at_one_and_below_only_the_condition_counts(scale: float) -> None:
    assert not guides(scale)
    assert torch.equal(guided(lambda rows: 3 * rows, SAMPLE, scale), 3 * SAMPLE)
