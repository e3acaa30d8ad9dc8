"""Which pictures do not count."""

import numpy as np
import pytest
import torch

from m2m.evaluation.misses import Thresholds, nearest_earlier, nearest_other, read_values


def _plain(*levels: int) -> np.ndarray:
    """Pictures (n, 2, 2, 3) of one grey each."""
    return np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def test_the_likeliest_class_is_read_and_how_likely_it_is() -> None:
    logits = [torch.tensor([[[0.0, 0.0, np.log(2)]]]), torch.tensor([[[np.log(3), 0.0]]])]
    values, confidences = read_values(logits)
    assert values.tolist() == [[[2, 0]]]
    np.testing.assert_allclose(confidences, [[[0.5, 0.75]]])


def test_a_picture_is_compared_with_earlier_ones_of_its_set_alone() -> None:
    given = np.stack([_plain(0, 100), _plain(50, 55)])
    drawn = np.stack([_plain(90, 200, 91), _plain(0, 100, 250)])
    np.testing.assert_allclose(nearest_earlier(given, drawn), [[10, 100, 1], [50, 45, 150]])
    np.testing.assert_allclose(nearest_other(drawn), [[1, 109, 1], [100, 100, 150]])


def test_an_equal_picture_is_at_distance_zero_and_all_others_are_as_float64_has_them() -> None:
    random = np.random.default_rng(0)
    given, drawn = (random.integers(0, 256, (3, count, 16, 16, 3), np.uint8) for count in (2, 4))
    drawn[1, 2] = given[1, 0]
    nearest = nearest_earlier(given, drawn)
    assert nearest[1, 2] == 0
    every = np.concatenate([given, drawn], axis=1).astype(np.float64)
    direct = [np.sqrt(((every[0, 4] - every[0, earlier]) ** 2).mean()) for earlier in range(4)]
    assert nearest[0, 2] == pytest.approx(min(direct), rel=1e-14)


def test_about_one_held_out_picture_in_a_hundred_misses() -> None:
    random = np.random.default_rng(0)
    confidences, nearest = random.random((100, 20, 3)), random.random((100, 20))
    thresholds = Thresholds.of_held_out(confidences, nearest)
    nothing_near = thresholds.misses(confidences, np.ones((100, 20)))
    np.testing.assert_allclose(nothing_near.mean(axis=(0, 1)), 0.01)
    assert thresholds.misses(np.ones((100, 20, 3)), nearest).mean() == 0.01


def test_an_unreadable_attribute_misses_alone_and_a_copy_in_all() -> None:
    thresholds = Thresholds(np.array([0.5, 0.6, 0.7]), 10.0)
    confidences = np.array([[[0.9, 0.5, 0.7], [0.9, 0.9, 0.9]]])
    misses = thresholds.misses(confidences, np.array([[10.0, 9.9]]))
    assert misses.tolist() == [[[False, True, False], [True, True, True]]]


def test_an_exact_copy_is_one_even_where_held_out_pictures_are() -> None:
    thresholds = Thresholds.of_held_out(np.ones((1, 5, 3)), np.zeros((1, 5)))
    assert thresholds.misses(np.ones((1, 2, 3)), np.array([[0.0, 1.0]]))[0, :, 0].tolist() == [True, False]
