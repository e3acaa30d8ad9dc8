"""Figures of a foundation by hand, with a stand-in for what draws and one for what reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from m2m.foundation import world
from m2m.foundation.world import freedom
from m2m.world.grammar import KINDS, WORDS, Caption, captions_naming, completions, picture_captions

EVERY = [full for split in ("train", "validation", "test") for full in picture_captions(split)]
NUMBER = {full: number for number, full in enumerate(EVERY)}


def read(pictures: Tensor) -> Any:
    """Reads the caption whose number a picture is."""
    logits = {head: torch.zeros(len(pictures), len(names)) for head, names in WORDS.items()}
    for row, number in enumerate(pictures.flatten().tolist()):
        for head, names in WORDS.items():
            logits[head][row, names.index(getattr(EVERY[number], head))] = 1
    return SimpleNamespace(logits=logits)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """The figures of one that draws for each caption in turn what `draw` gives, for all open captions."""

    def call(draw: Callable[[Caption], Caption], of_each: int = 16) -> dict[str, float]:
        def drawings(_: object, captions: Sequence[Caption], seed: int) -> Tensor:
            assert seed == 5
            return torch.tensor([NUMBER[draw(caption)] for caption in captions])

        monkeypatch.setattr(world, "drawings", drawings)
        monkeypatch.setattr(world, "OPEN_CAPTIONS", 1000)
        monkeypatch.setattr(world, "OF_EACH", of_each)
        pipeline: Any = None
        network: Any = read
        return freedom(pipeline, network, 5)

    return call


def repeats_in_world(head: str) -> float:
    """Of two pictures that the world draws for a caption that leaves `head` open, whether they show the same."""
    shares = []
    for named in KINDS[:-1]:
        for caption in captions_naming(named, "train") if head not in named else ():
            free = [getattr(full, head) for full in completions(caption)]
            shares.append(sum(one == other for one, other in product(free, free)) / len(free) ** 2)
    return sum(shares) / len(shares)


def test_one_who_draws_as_the_world_does_is_as_free(figures: Callable[..., dict[str, float]]) -> None:
    turns = {}
    found = figures(lambda caption: next(turns.setdefault(caption, cycle(completions(caption)))), of_each=240)
    assert found.keys() == {
        f"open/{head}/{what}" for head in WORDS for what in ("kept", "repeats", "repeats-world")
    } | {"open/held-out"}
    for head in WORDS:
        assert found[f"open/{head}/kept"] == 1
        assert found[f"open/{head}/repeats-world"] == pytest.approx(repeats_in_world(head))
        assert found[f"open/{head}/repeats"] == pytest.approx(repeats_in_world(head), abs=0.01)
    assert found["open/held-out"] == 0


def test_one_who_always_draws_the_same_repeats_everything(figures: Callable[..., dict[str, float]]) -> None:
    found = figures(lambda caption: completions(caption)[0])
    for head in WORDS:
        assert found[f"open/{head}/kept"] == found[f"open/{head}/repeats"] == 1
        assert 0.1 < found[f"open/{head}/repeats-world"] < 0.4
    assert found["open/held-out"] == 0


def test_one_who_does_not_listen_keeps_nothing_but_by_chance(figures: Callable[..., dict[str, float]]) -> None:
    turns = cycle(picture_captions("train"))
    found = figures(lambda _: next(turns), of_each=240)
    for head, chance in (("noun", 1 / 8), ("colour", 1 / 8), ("style", 1 / 6)):
        assert found[f"open/{head}/kept"] == pytest.approx(chance)
        assert found[f"open/{head}/repeats"] == pytest.approx(chance, abs=0.01)


def test_pictures_in_combinations_that_no_training_shows_are_counted(
    figures: Callable[..., dict[str, float]],
) -> None:
    held_out = [*picture_captions("validation"), *picture_captions("test")]
    unseen = {full.naming(named): full for named in KINDS[:-1] for full in held_out}
    turns: Counter[Caption] = Counter()

    def every_second(caption: Caption) -> Caption:
        turns[caption] += 1
        return unseen.get(caption, completions(caption)[0]) if turns[caption] % 2 else completions(caption)[0]

    captions = [caption for named in KINDS[:-1] for caption in captions_naming(named, "train")]
    room = [caption in unseen for caption in captions]
    assert figures(every_second)["open/held-out"] == pytest.approx(sum(room) / len(room) / 2)


def test_few_of_each_kind_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Caption] = []

    def drawings(_: object, captions: Sequence[Caption], seed: int) -> Tensor:
        asked.extend(captions)
        return torch.zeros(len(captions)).long()

    monkeypatch.setattr(world, "drawings", drawings)
    nothing: Any = None
    network: Any = read
    freedom(nothing, network, 0)
    assert set(Counter(asked).values()) == {world.OF_EACH}
    kinds = Counter(caption.named for caption in set(asked))
    assert kinds.keys() == {*KINDS[:-1]}
    assert min(kinds.values()) >= min(world.OPEN_CAPTIONS, 6)
    assert max(kinds.values()) <= 2 * world.OPEN_CAPTIONS


def test_held_out_captions_are_full_ones_of_the_test_alike_often() -> None:
    captions = Counter(world.held_out_captions())
    assert captions == dict.fromkeys(picture_captions("test"), world.DRAWINGS // 96)
