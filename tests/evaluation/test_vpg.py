"""How drawn steps are measured, by the networks that come with the project."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m2m.data.sets import ImageSet
from m2m.evaluation.networks import Networks
from m2m.evaluation.vpg import STEP, beside_baselines, embed_first, look, numbers_of
from m2m.world.corpus import draw_procedure
from m2m.world.grammar import procedure_captions


def params(sets: Sequence[ImageSet], bootstrap: int) -> Any:
    return SimpleNamespace(sets=len(sets), bootstrap=bootstrap, seed=0)


@pytest.fixture(scope="module")
def members() -> list[ImageSet]:
    """Of each kind one that no training has seen, some of five steps and some of six."""
    found = []
    for number, captions in enumerate(procedure_captions("test")[::3]):
        images, extras = draw_procedure(captions, seed=number)
        found.append(ImageSet(id=f"set-{number}", caption=captions[-1].text(), images=images, extras=extras))
    assert {len(one.images) for one in found} == {5, 6}
    return found


@pytest.fixture(scope="module")
def numbers(committed: Networks, members: list[ImageSet]) -> dict[str, float]:
    """Of true steps, as if a model had drawn them, and of nothing but the first, as if another had."""
    tuned = [one.images[1:] for one in members]
    untuned = [one.images[:1].repeat(len(one.images) - 1, axis=0) for one in members]
    return beside_baselines(params(members, 50), members, tuned, untuned, committed)


def test_true_steps_score_as_the_class_network_reads_them(
    committed: Networks, members: list[ImageSet], numbers: dict[str, float]
) -> None:
    network = committed.inception
    right = []
    for one in members:
        with torch.no_grad():
            read = network(torch.from_numpy(one.images[1:]).permute(0, 3, 1, 2)).names(network.classes, STEP)
        right += [name == str(step) for step, name in enumerate(read, start=2)]
    assert numbers["step_order/mean"] == numbers["baseline/true/step_order/mean"] == pytest.approx(np.mean(right))
    assert np.mean(right) > 0.8, "it reads steps, of things that it was not trained on"
    assert numbers["fid/mean"] == pytest.approx(0, abs=1e-4)


def test_things_witness_for_the_order(numbers: dict[str, float]) -> None:
    assert 0.8 < numbers["step_order/low"] <= numbers["step_order/mean"] <= numbers["step_order/high"] <= 1
    assert numbers["difference/untuned/step_order"] == pytest.approx(numbers["step_order/mean"])
    assert numbers["difference/untuned/step_order/low"] == pytest.approx(numbers["step_order/low"])


def test_sets_of_one_thing_are_one_witness(committed: Networks, members: list[ImageSet]) -> None:
    """However often it is drawn: one right and one wrong thing, each of many sets, leave it open."""
    good, bad = members[0], members[1]
    sets = [good, bad] * 6
    drawn = [good.images[1:], bad.images[:1].repeat(len(bad.images) - 1, axis=0)] * 6
    found = beside_baselines(params(sets, 200), sets, drawn, drawn, committed)
    assert found["step_order/low"] == 0
    assert found["step_order/high"] > 0.8
    assert found["difference/untuned/step_order"] == found["difference/untuned/step_order/high"] == 0


def test_a_picture_that_is_repeated_shows_no_next_step(numbers: dict[str, float]) -> None:
    for lot in ("repeated", "untuned"):
        assert numbers[f"baseline/{lot}/step_order/mean"] == 0
        assert numbers[f"baseline/{lot}/clip_image_image/mean"] == pytest.approx(100, abs=1e-3)
        assert numbers[f"baseline/{lot}/fid/mean"] > 1
    assert numbers["clip_image_image/mean"] < 99


def test_steps_in_a_wrong_order_score_less(
    committed: Networks, members: list[ImageSet], numbers: dict[str, float]
) -> None:
    first, real = embed_first(members, len(members), committed), [one.images[1:] for one in members]
    true, backwards = look(real, first, committed), look([one[::-1] for one in real], first, committed)
    found = numbers_of(backwards, true)
    assert found["step_order/mean"] < 0.5 * numbers["step_order/mean"]
    assert found["fid/mean"] == pytest.approx(0, abs=1e-4), "the pictures are the same"


def test_each_position_is_the_mean_over_the_sets_that_reach_it(
    committed: Networks, members: list[ImageSet], numbers: dict[str, float]
) -> None:
    seen = look([one.images[1:] for one in members], embed_first(members, len(members), committed), committed)
    lengths = [len(one.images) - 1 for one in members]
    assert seen.place.tolist() == [place for length in lengths for place in range(1, length + 1)]
    by_set = seen.closeness.split(lengths)
    for place in range(1, max(lengths) + 1):
        reached = [float(one[place - 1]) for one in by_set if len(one) >= place]
        assert numbers[f"clip_image_image/position/{place:02}"] == pytest.approx(np.mean(reached))


def test_a_class_network_that_reads_no_steps_gives_no_order(committed: Networks, members: list[ImageSet]) -> None:
    from dataclasses import replace

    from m2m.models.classifier import WorldClassifier

    blind = replace(committed, inception=WorldClassifier({"noun": ("house", "boat")}, widths=(8, 8, 8, 8)).eval())
    found = beside_baselines(params(members[:2], 5), members, *[[one.images[1:] for one in members[:2]]] * 2, blind)
    assert not any("step_order" in key for key in found)
    assert "baseline/true/fid/mean" in found
