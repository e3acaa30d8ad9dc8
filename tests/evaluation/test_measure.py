"""One lot of pictures, measured by small judges."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2m.evaluation.measure import Batch, Benchmark, measure, read
from m2m.evaluation.networks import Networks
from m2m.evaluation.scores import fid
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

    def to(self, _: torch.device) -> "Score":
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
    found = measure(_batches(pictures, size), networks)
    means = pictures.astype(np.float32).mean(axis=(2, 3))
    np.testing.assert_allclose(found.readings.features, means, rtol=1e-5)
    unit = means / np.linalg.norm(means, axis=2, keepdims=True)
    np.testing.assert_allclose(found.embeddings, unit, rtol=1e-5)
    lengths = np.mean([len(text) for text in CAPTIONS])
    np.testing.assert_allclose(found.text_image, unit[:, :, 0].mean(axis=0) + lengths, rtol=1e-5)
    torch.testing.assert_close(read(_batches(pictures, size), networks).features, found.readings.features)


def test_positions_can_be_chosen_and_repeated(networks: Networks, pictures: np.ndarray) -> None:
    found = measure(_batches(pictures, 2), networks)
    chosen = found.at([3, 0, 0])
    again = measure([Batch(CAPTIONS, pictures[:, :0], pictures[:, [3, 0, 0]])], networks)
    for name in ("embeddings", "text_image"):
        torch.testing.assert_close(getattr(chosen, name), getattr(again, name))
    torch.testing.assert_close(chosen.readings.features, again.readings.features)


def test_fid_compares_with_held_out_pictures_of_other_positions(networks: Networks, pictures: np.ndarray) -> None:
    held_out = measure(_batches(pictures, 4), networks)
    benchmark = Benchmark(CAPTIONS, held_out, given=2)
    features = held_out.readings.features
    assert torch.equal(benchmark.reference(1), features[:, [2, 4]].flatten(0, 1))
    after = held_out.at(range(2, 5))
    assert benchmark.fid(after.readings)[1] == fid(features[:, 3], features[:, [2, 4]].flatten(0, 1))


def test_a_judge_without_attributes_gives_no_spread(networks: Networks, pictures: np.ndarray) -> None:
    benchmark = Benchmark(CAPTIONS, measure(_batches(pictures, 4), networks), given=1)
    scores = benchmark.scores(benchmark.held_out.at(range(1, 5)), networks)
    expected = {"fid", "kid", "inception_score", "clip_text_image", "clip_image_image", "diversity"}
    assert set(scores.by_position) == expected
    assert scores.overall == {}
    assert {len(values) for values in scores.by_position.values()} == {4}
