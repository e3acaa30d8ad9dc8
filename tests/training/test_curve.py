"""The curve: what a point is the mean of, and that nothing that is not finite gets into it."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch

from m2m.training.curve import Curve, NotFiniteError
from m2m.training.ranks import Ranks


def record(curve: Curve, images_seen: int, losses: list[float], norm: float = 1.0) -> None:
    curve.record(images_seen=images_seen, losses=torch.tensor(losses), grad_norm=torch.tensor(norm))


def test_a_point_is_the_mean_since_the_last_one_however_often_the_steps_were_read() -> None:
    often, once = Curve(), Curve()
    for curve in (often, once):
        for step in range(1, 5):
            record(curve, 10 * step, [0.1 * step, 0.3 * step], norm=step)
            if curve is often:
                curve.settle(Ranks())
        curve.settle(Ranks())
        curve.close(images_seen=40, learning_rate=0.5, held_out_loss=2.0)
    assert often == once
    assert often.points[0].loss == pytest.approx(0.5)
    assert often.points[0].grad_norm == 2.5
    assert often.since == []


def test_every_number_of_the_csv_reads_back_the_same() -> None:
    curve = Curve()
    record(curve, 10, [1 / 3, 0.1])
    curve.settle(Ranks())
    point = curve.close(images_seen=10, learning_rate=1e-4 / 3, held_out_loss=2 / 7)
    (row,) = csv.DictReader(io.StringIO(curve.to_csv()))
    assert row == {name: str(value) for name, value in vars(point).items()}
    assert float(row["loss"]) == point.loss


def test_a_loss_that_is_not_finite_names_its_first_step_and_its_sets() -> None:
    curve = Curve()
    record(curve, 10, [1, 2, 3])
    record(curve, 20, [1, math.nan, math.inf], norm=math.nan)
    record(curve, 30, [math.nan] * 3, norm=math.nan)
    with pytest.raises(NotFiniteError) as caught:
        curve.settle(Ranks())
    assert (caught.value.images_seen, caught.value.positions) == (20, (1, 2))


def test_a_gradient_that_is_not_finite_names_all_sets_of_its_step() -> None:
    curve = Curve()
    record(curve, 10, [1, 2, 3], norm=math.inf)
    with pytest.raises(NotFiniteError) as caught:
        curve.settle(Ranks())
    assert (caught.value.images_seen, caught.value.positions) == (10, (0, 1, 2))
