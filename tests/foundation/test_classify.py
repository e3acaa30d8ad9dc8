from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2m.foundation.classify import CLASSES, GEOMETRY_WEIGHT, naming_loss, right
from m2m.foundation.world import Lessons
from m2m.models.classifier import WorldClassifier
from m2m.world.grammar import parse
from m2m.world.vocabulary import MAX_STEPS


def test_lessons_say_what_their_captions_say(lessons: Lessons) -> None:
    assert lessons.images.shape == (len(lessons.captions), 3, 64, 64)
    for row, text in enumerate(lessons.captions):
        caption = parse(text)
        for head, word in (("noun", caption.noun), ("colour", caption.colour), ("style", caption.style)):
            assert word in (None, CLASSES[head][lessons.labels[head][row]])
        assert CLASSES["step"][lessons.labels["step"][row]] == str(caption.step or 0)
        assert bool(lessons.placed[row]) == (caption.step is None)
    assert any(parse(text).open for text in lessons.captions), "what a caption leaves open is labelled as well"
    assert len(CLASSES["step"]) == MAX_STEPS + 1


def loss_of(lessons: Lessons, network: Any, **changed: Tensor) -> float:
    known = {"labels": lessons.labels, "geometry": lessons.geometry, "placed": lessons.placed, **changed}
    loss = naming_loss(network, lessons.images, **known)
    return float(loss(torch.arange(len(lessons.captions)), torch.Generator().manual_seed(0)))


def test_the_loss_is_that_of_all_heads_and_of_the_places_that_are_known(lessons: Lessons) -> None:
    n = len(lessons.captions)
    draws = torch.Generator().manual_seed(1)
    logits = {head: torch.randn(n, len(names), generator=draws) for head, names in CLASSES.items()}
    geometry = torch.rand(n, 5, generator=draws)
    network = lambda _: SimpleNamespace(logits=logits, geometry=geometry)  # noqa: E731
    named = 0.0
    for head, names in CLASSES.items():
        smooth = F.one_hot(lessons.labels[head], len(names)) * 0.98 + 0.02 / len(names)
        named += -(smooth * logits[head].log_softmax(dim=1)).sum(dim=1).mean().item()
    placed = lessons.placed
    measured = (geometry - lessons.geometry)[placed].square().mean().item()
    assert loss_of(lessons, network) == pytest.approx(named + GEOMETRY_WEIGHT * measured, rel=1e-5)
    nowhere = torch.zeros_like(placed)
    assert loss_of(lessons, network, placed=nowhere) == pytest.approx(named, rel=1e-5)


def test_pictures_are_shown_with_noise_within_their_range(lessons: Lessons) -> None:
    seen = []

    def network(images: Tensor) -> Any:
        seen.append(images)
        n = len(images)
        logits = {head: torch.zeros(n, len(names)) for head, names in CLASSES.items()}
        return SimpleNamespace(logits=logits, geometry=torch.zeros(n, 5))

    loss_of(lessons, network)
    (shown,) = seen
    assert shown.min() >= 0
    assert shown.max() <= 255
    spread = (shown - lessons.images).flatten(1).std(dim=1)
    assert spread.max() < 6.5
    assert spread.max() > 2 * spread.min()  # from nearly none to much


def test_it_learns_and_what_it_reads_right_is_counted(
    lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    torch.manual_seed(0)
    network = WorldClassifier(CLASSES, widths=(16, 16, 32, 32))
    loss = naming_loss(network, lessons.images, lessons.labels, lessons.geometry, lessons.placed)
    first, last = descend(network, loss, pictures=len(lessons.captions), steps=60, rate=5e-3)
    assert last < 0.4 * first
    found = right(network, lessons.images, lessons.labels, batch_size=5)
    assert found.keys() == CLASSES.keys()
    assert all(hits.shape == (len(lessons.captions),) for hits in found.values())
    assert all(hits.float().mean() > 0.8 for hits in found.values())
    wrong = {head: (label + 1) % len(CLASSES[head]) for head, label in lessons.labels.items()}
    assert all(hits.float().mean() < 0.2 for hits in right(network, lessons.images, wrong).values())
