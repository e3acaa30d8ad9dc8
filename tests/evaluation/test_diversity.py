"""Diversity within sets."""

import itertools

import numpy as np
import pytest
import torch

from m2m.evaluation.diversity import feature_diversity, spreads


def test_diversity_is_the_mean_pairwise_distance_within_a_set() -> None:
    features = np.random.default_rng(0).normal(size=(7, 4, 5))
    pairs = [
        np.linalg.norm(features[s, a] - features[s, b])
        for s in range(7)
        for a, b in itertools.combinations(range(4), 2)
    ]
    assert feature_diversity(torch.from_numpy(features)).mean().item() == pytest.approx(np.mean(pairs))


def test_diversity_of_a_position_is_its_distance_to_the_others() -> None:
    features = torch.zeros(3, 4, 2)
    features[:, 2, 0] = 6.0
    assert feature_diversity(features).tolist() == [2, 2, 6, 2]


def test_copies_have_no_diversity_and_no_spread() -> None:
    assert feature_diversity(torch.rand(5, 1, 8).expand(5, 4, 8)).tolist() == [0] * 4
    assert set(spreads(torch.rand(5, 1, 5).expand(5, 4, 5)).values()) == {0}


@pytest.mark.parametrize("positions", [2, 10])
def test_spreads_estimate_the_deviation_whatever_the_number_of_positions(positions: int) -> None:
    random = np.random.default_rng(1)
    angle = random.uniform(0, 2 * np.pi, size=(4000, positions))
    place = random.normal(scale=0.1, size=(4000, positions, 2)) + random.random((4000, 1, 2))
    size = random.normal(scale=0.05, size=(4000, positions, 1))
    geometry = np.concatenate([place, size, np.sin(angle)[..., None], np.cos(angle)[..., None]], axis=2)
    found = spreads(torch.from_numpy(geometry))
    assert found["place"] == pytest.approx(np.sqrt(2) * 0.1, rel=0.03)
    assert found["size"] == pytest.approx(0.05, rel=0.03)
    assert found["angle"] == pytest.approx(1.0, rel=0.03)
