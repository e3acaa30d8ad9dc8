"""One lot of pictures, seen by small judges; which of them do not count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2m.evaluation.metrics import Benchmark, fid
from m2m.evaluation.networks import Networks
from m2m.evaluation.observations import (
    Batch,
    Thresholds,
    nearest_earlier,
    nearest_other,
    observe,
    read_values,
)
from m2m.models.classifier import Readings

CAPTIONS = ["a red star, flat", "a blue moon, neon", "a red moon, flat", "a blue star, neon"]


class Mean(nn.Module):
    """Reads the mean of each channel, and a class from the first; names no attributes."""

    classes: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def forward(self, images: Tensor) -> Readings:
        features = images.float().mean(dim=(2, 3))
        return Readings(features, {"class": features[:, :2]}, features.new_empty(len(features), 0))


class Score:
    """Sums what it is given: the first number of the embeddings and the length of the captions."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def to(self, _: torch.device) -> Score:
        return self

    def update(self, embeddings: Tensor, captions: list[str]) -> None:
        assert embeddings.shape[1:] == (1, 1, 3)
        self.values += [one[0, 0, 0].item() + len(text) for one, text in zip(embeddings, captions, strict=True)]

    def compute(self) -> Tensor:
        return torch.tensor(self.values).mean()


@pytest.fixture
def networks() -> Networks:
    def embed(images: Tensor) -> Tensor:
        return nn.functional.normalize(images.float().mean(dim=(2, 3)), dim=1)

    clip = cast(Any, SimpleNamespace(embed=embed, score=Score))
    return Networks(inception=cast(Any, Mean()), clip=clip, names={}, device=torch.device("cpu"))


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(4, 5, 8, 8, 3), dtype=np.uint8)


def _batches(pictures: np.ndarray, size: int) -> list[Batch]:
    return [
        Batch(CAPTIONS[start : start + size], pictures[start : start + size, :0], pictures[start : start + size])
        for start in range(0, 4, size)
    ]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_picture_keeps_its_set_and_position(networks: Networks, pictures: np.ndarray, size: int) -> None:
    found = observe(_batches(pictures, size), networks)
    means = pictures.astype(np.float32).mean(axis=(2, 3))
    np.testing.assert_allclose(found.features, means, rtol=1e-5)
    unit = means / np.linalg.norm(means, axis=2, keepdims=True)
    np.testing.assert_allclose(found.embeddings, unit, rtol=1e-5)
    lengths = np.mean([len(text) for text in CAPTIONS])
    np.testing.assert_allclose(found.text_image, unit[:, :, 0].mean(axis=0) + lengths, rtol=1e-5)
    torch.testing.assert_close(observe(_batches(pictures, size), networks, by_clip=False).features, found.features)


def test_positions_can_be_chosen_and_repeated(networks: Networks, pictures: np.ndarray) -> None:
    found = observe(_batches(pictures, 2), networks)
    chosen = found.at([3, 0, 0])
    again = observe([Batch(CAPTIONS, pictures[:, :0], pictures[:, [3, 0, 0]])], networks)
    for name in ("embeddings", "text_image"):
        torch.testing.assert_close(getattr(chosen, name), getattr(again, name))
    torch.testing.assert_close(chosen.features, again.features)


def test_fid_compares_with_held_out_pictures_of_other_positions(networks: Networks, pictures: np.ndarray) -> None:
    held_out = observe(_batches(pictures, 4), networks)
    benchmark = Benchmark(held_out, given=2)
    features = held_out.features
    assert torch.equal(benchmark.reference(1), features[:, [2, 4]].flatten(0, 1))
    after = held_out.at(range(2, 5))
    assert benchmark.fid(after)[1] == fid(features[:, 3], features[:, [2, 4]].flatten(0, 1))


def test_a_judge_without_attributes_gives_no_spread(networks: Networks, pictures: np.ndarray) -> None:
    benchmark = Benchmark(observe(_batches(pictures, 4), networks), given=1)
    scores = benchmark.metrics(benchmark.held_out.at(range(1, 5)), networks.attributes)
    expected = {"fid", "kid", "inception_score", "clip_text_image", "clip_image_image", "diversity"}
    assert set(scores.by_position) == expected
    assert scores.overall == {}
    assert {len(values) for values in scores.by_position.values()} == {4}


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
