"""The state of training: its clock, its averages, its curve.

It comes back to the bit, and at no moment of a save is there less than one good checkpoint.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from m2m.training.ranks import Ranks
from m2m.training.state import (
    Curve,
    Ema,
    NotFiniteError,
    Point,
    TrainState,
    is_due,
    learning_rate,
)


def rate(images_seen: float, **changes: object) -> float:
    values = {"peak": 1e-3, "warmup_images": 100, "images": 1100, "schedule": "cosine", **changes}
    return learning_rate(images_seen, **values)  # type: ignore[arg-type]


def test_it_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    assert rate(50) == pytest.approx(0.5e-3)
    assert rate(100) == pytest.approx(1e-3)
    assert rate(600) == pytest.approx(0.5e-3)
    assert rate(1100) == pytest.approx(0)
    assert rate(5000) == pytest.approx(0)


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    assert rate(50, schedule="constant") == pytest.approx(0.5e-3)
    assert rate(100, schedule="constant") == rate(10**9, schedule="constant") == 1e-3


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert rate(0, warmup_images=0) == 1e-3


def test_a_warm_up_longer_than_the_run_is_all_there_is() -> None:
    assert rate(1100, warmup_images=2200) == pytest.approx(0.5e-3)


@pytest.mark.parametrize("step", [1, 7, 10, 25])
def test_something_due_comes_once_an_interval_at_any_step_size(step: int) -> None:
    clock = range(0, 1000, step)
    due = [before + step for before in clock if is_due(100, before=before, after=before + step)]
    assert [images // 100 for images in due] == list(range(1, (clock[-1] + step) // 100 + 1))


def set_weights(network: nn.Linear, value: float) -> None:
    with torch.no_grad():
        network.weight.fill_(value)
        network.bias.fill_(-value)


def test_it_is_the_weighted_mean_that_the_warmed_up_decay_says() -> None:
    network = nn.Linear(2, 2)
    set_weights(network, 8.0)
    ema = Ema(network, decay=0.5)
    expected = 8.0
    for update, value in enumerate([1.0, 2.0, -3.0, 4.0, 0.5, 6.0, 7.0, 0.0, 9.0, 1.0, 5.0]):
        set_weights(network, value)
        ema.update()
        kept = min(0.5, (1 + update) / (10 + update))  # 0.1, 0.18, ... and from the ninth on 0.5
        expected = kept * expected + (1 - kept) * value
    averages = ema.tensors
    assert averages["weight"].flatten().tolist() == pytest.approx([expected] * 4, rel=1e-6)
    assert averages["bias"].tolist() == pytest.approx([-expected] * 2, rel=1e-6)
    assert ema.updates == 11


def test_while_applied_the_network_carries_the_averages_and_then_its_own_weights_again() -> None:
    network = nn.Linear(3, 3)
    ema = Ema(network, decay=0.9)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for average in ema.tensors.values():
            average.add_(1)
    with ema.applied():
        assert all(torch.equal(tensor, own[name] + 1) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(average, own[name] + 1) for name, average in ema.tensors.items())


def test_an_optimizer_goes_on_with_the_network_after_an_exchange() -> None:
    network = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    ema = Ema(network, decay=0.9)
    with ema.applied():
        pass
    before = network.weight.detach().clone()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, before)
    assert torch.equal(ema.tensors["weight"], before)


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


def new_state(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    return TrainState(network=network, optimizers=(optimizer,), ema=Ema(network, decay=0.9))


def advance(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(state.images_seen))
        (state.network(inputs) - inputs.roll(1, 1)).square().mean().backward()
        state.step()
        state.images_seen += 16


def same(one: TrainState, other: TrainState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        and one.counters() == other.counters()
    )


def test_a_state_that_was_saved_and_loaded_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = new_state()
    advance(whole, 5)
    whole.curve = Curve(points=[Point(16, 1 / 3, 0.1, 1e-5, 0.7)], since=[(0.1, 0.2), (1 / 7, 1e-9)])
    whole.save(tmp_path / "state")

    resumed = new_state(seed=1)
    resumed.load(tmp_path / "state")
    assert same(whole, resumed)
    assert len(whole.tensors()) == 4 + 4 + 3 * 4  # weights, averages, and step and two moments a parameter
    advance(whole, 3)
    advance(resumed, 3)
    assert same(whole, resumed)
