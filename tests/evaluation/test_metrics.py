"""The paper's metrics and diversity within sets against computations of their own, and what is made of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from m2m.evaluation.metrics import (
    Metrics,
    clip_image_image,
    feature_diversity,
    fid,
    inception_score,
    joint_logits,
    kid,
    relative,
    spreads,
)


def _features(n: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(width, width))
    return torch.from_numpy(random.normal(size=(n, width)) @ mixing + shift).float()


def test_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    sample, reference = _features(300, 16, 1), _features(500, 16, 2, shift=0.3)
    a, b = sample.double().numpy(), reference.double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert fid(sample, reference) == pytest.approx(expected, rel=1e-9)


def test_fid_of_features_far_from_the_origin_keeps_its_digits() -> None:
    sample, reference = _features(200, 8, 1), _features(200, 8, 2)
    assert fid(sample + 1000, reference + 1000) == pytest.approx(fid(sample, reference), rel=1e-3)


def test_fid_of_equal_lots_is_zero() -> None:
    sample = _features(200, 8, 3)
    assert fid(sample, sample) == pytest.approx(0, abs=1e-4)


def test_inception_score_is_exp_of_the_mean_divergence() -> None:
    logits = _features(150, 12, 4)
    p = torch.softmax(logits.double(), dim=1).numpy()
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(axis=1).mean())
    assert inception_score(logits) == pytest.approx(expected, rel=1e-9)


def test_inception_score_survives_classes_that_nothing_shows() -> None:
    logits = torch.full((6, 40), -100.0)
    logits[torch.arange(6), torch.arange(6) % 3] = 100.0
    assert inception_score(logits) == pytest.approx(3.0)


def test_inception_score_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    inception_score(_features(20, 4, 5))
    assert torch.equal(torch.rand(3), expected)


def test_joint_logits_are_products_of_probabilities() -> None:
    first, second = _features(5, 3, 6), _features(5, 4, 7)
    joint = joint_logits([first, second]).exp()
    expected = torch.einsum("na,nb->nab", first.double().softmax(1), second.double().softmax(1)).flatten(1)
    torch.testing.assert_close(joint, expected)
    torch.testing.assert_close(joint.sum(1), torch.ones(5, dtype=torch.float64))


def test_clip_image_image_is_the_mean_cosine_to_the_given_pictures() -> None:
    random = np.random.default_rng(8)
    drawn, given = random.normal(size=(6, 3, 5)), random.normal(size=(6, 2, 5))
    expected = [
        np.mean(
            [
                100 * drawn[s, p] @ given[s, g] / np.linalg.norm(drawn[s, p]) / np.linalg.norm(given[s, g])
                for s in range(6)
                for g in range(2)
            ]
        )
        for p in range(3)
    ]
    unit = [torch.nn.functional.normalize(torch.from_numpy(values), dim=-1) for values in (drawn, given)]
    np.testing.assert_allclose(clip_image_image(*unit).numpy(), expected)


def test_kid_is_unbiased_at_any_number_of_pictures() -> None:
    random = np.random.default_rng(0)
    lots = [torch.from_numpy(random.normal(size=(40, 8))) for _ in range(60)]
    apart = [kid(one, other) for one, other in zip(lots[::2], lots[1::2], strict=True)]
    assert abs(np.mean(apart)) < 3 * np.std(apart) / np.sqrt(len(apart))
    assert kid(lots[0] + 1, lots[1]) > 10 * np.std(apart)


def test_inception_score_has_ten_splits_where_there_is_enough_for_them() -> None:
    logits = torch.zeros(500, 3).double()
    logits[torch.arange(500), torch.arange(500) % 3] = 50.0
    assert inception_score(logits) < 3, "splits of fifty do not hold three classes equally often"
    assert inception_score(logits[:498]) == pytest.approx(3)


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


def test_shares_are_of_the_ceiling_and_drift_in_units_of_shuffled_colours() -> None:
    ours = Metrics({"diversity": [2.0, 2.0], "fid": [3.0, 4.0]}, {"spread/place": 0.1})
    ceiling = Metrics({"diversity": [4.0, 4.0], "fid": [1.0, 1.0]}, {"spread/place": 0.4})
    assert relative(ours, ceiling, [21.0, 21.0]) == pytest.approx(
        {"relative/diversity": 0.5, "relative/spread/place": 0.25, "relative/fid_drift": 0.05}
    )


def test_what_has_no_ceiling_or_unit_is_left_out() -> None:
    ours = Metrics({"diversity": [1.0], "fid": [3.0]}, {"spread/place": 0.1})
    ceiling = Metrics({"diversity": [1.0], "fid": [3.0]}, {"spread/place": 0.0})
    assert relative(ours, ceiling, [2.0]) == {"relative/diversity": 1.0}
