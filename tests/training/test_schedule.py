"""The learning rate follows the images seen and nothing else."""

from __future__ import annotations

import pytest

from m2m.training.schedule import is_due, learning_rate


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
