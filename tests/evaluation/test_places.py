"""Given pictures that change places, and what is counted of what follows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2m.data.sets import ImageSet
from m2m.evaluation.networks import Thresholds
from m2m.evaluation.pattern import Ground
from m2m.evaluation.places import MIXED, Probe, kept_beside_outlier, place_numbers, probes, repeated
from m2m.params import EvaluateMis
from m2m.params_file import load_params

SETS, IMAGES = 30, 8


@pytest.fixture(scope="module")
def params() -> EvaluateMis:
    mis = load_params(Path(__file__).parents[2] / "profiles" / "full.yaml").evaluate.mis
    return mis.model_copy(update={"bootstrap": 50})


@pytest.fixture(scope="module")
def ground() -> Ground:
    """Half of the sets share everything, half a style; a picture's brightness is its number."""
    random = np.random.default_rng(0)
    values = random.integers(0, 6, size=(SETS, IMAGES, 3))
    values[: SETS // 2] = values[: SETS // 2, :1]
    values[SETS // 2 :, :, 2] = values[SETS // 2 :, :1, 2]
    named = np.tile([False, False, True], (SETS, 1))
    named[: SETS // 2] = True
    return Ground(
        named=named,
        wanted=np.where(named, values[:, 0], 0),
        values=values,
        confidences=np.ones(values.shape),
        nearest=np.full(values.shape[:2], 50.0),
        thresholds=Thresholds(np.full(3, 0.5), 1.0),
        seen=np.ones((6, 6, 6), bool),
    )


@pytest.fixture(scope="module")
def made(ground: Ground, params: EvaluateMis) -> dict[str, Probe]:
    numbers = np.arange(SETS * IMAGES, dtype=np.uint8).reshape(SETS, IMAGES)
    images = np.broadcast_to(numbers[:, :, None, None, None], (SETS, IMAGES, 2, 2, 3))
    sets = tuple(ImageSet(id=str(index), caption="", images=one) for index, one in enumerate(images))
    return probes(ground, sets, params)


def test_orders_of_a_set_hold_the_same_pictures_and_start_from_the_same_noise(made: dict[str, Probe]) -> None:
    for probe in made.values():
        orders = probe.given.shape[1]
        for start in range(0, len(probe.starts), orders):
            of_set = probe.starts[start : start + orders]
            assert len({one.id for one in of_set}) == 1
            assert len({tuple(sorted(one.images[:, 0, 0, 0].tolist())) for one in of_set}) == 1
            assert len({one.images.tobytes() for one in of_set}) == orders


def test_four_share_one_value_and_differ_in_the_rest(made: dict[str, Probe], params: EvaluateMis) -> None:
    assert len(made["a"].given) == params.probes.sets
    for given, shared in zip(made["a"].given[:, 0], made["a"].shared, strict=True):
        assert [len(set(given[:, axis])) for axis in range(3)] == [1 if axis == shared else 4 for axis in range(3)]
    for orders, shared in zip(made["b"].given, made["b"].shared, strict=True):
        for place, given in enumerate(orders):
            others = np.delete(given, place, axis=0)
            assert len(set(others[:, shared])) == 1
            assert not (given[place] == others).any()


def test_two_contents_and_styles_have_nothing_in_common(made: dict[str, Probe]) -> None:
    for name, count in MIXED.items():
        given = made[name].given
        assert given.shape[1:] == (count, count, 3)
        for place in range(count):
            others = np.delete(given[:, place], place, axis=1)
            assert not (given[:, place, place, None] == others).any()
            assert (others == others[:, :1]).all()


def test_who_repeats_the_first_picture_is_found_out(
    made: dict[str, Probe], ground: Ground, params: EvaluateMis
) -> None:
    def first(probe: Probe) -> np.ndarray:
        given = probe.given.reshape(-1, *probe.given.shape[2:])
        return np.repeat(given[:, :1], params.probes.generated, axis=1)

    drawn = {name: first(probe) for name, probe in made.items()}
    numbers = place_numbers(made, drawn, ground.reader, params)
    assert [numbers[f"places/a/{place}"] for place in range(1, 5)] == [1, 0, 0, 0]
    assert numbers["places/a/spread"] == numbers["places/a/spread/low"] == 1
    assert [numbers[f"places/b/{place}"] for place in range(1, 5)] == [0, 1, 1, 1]
    assert numbers["probe/ABBBB/at=1/a/content"] == numbers["probe/ABBBB/at=2/b/content"] == 1
    assert numbers["probe/ABBBB/at=2/a/style"] == 0
    assert numbers["baseline/ideal/probe/ABBBB/at=3/b/style"] > numbers["baseline/ideal/probe/ABBBB/at=3/a/style"]


def test_counts_are_shares_of_all_tries(made: dict[str, Probe]) -> None:
    for name, counted in (("a", repeated), ("b", kept_beside_outlier)):
        probe = made[name]
        hits, tries = counted(probe, probe.given)
        assert hits.shape == (len(probe.given), 4)
        assert (hits <= tries[:, None]).all()
    hits, tries = repeated(made["a"], made["a"].given)
    np.testing.assert_array_equal(hits / tries[:, None], 1 / 4)


def test_what_the_network_is_not_sure_of_is_not_given(ground: Ground, params: EvaluateMis) -> None:
    unsure = replace(ground, confidences=np.zeros(ground.values.shape))
    assert probes(unsure, (), params) == {}
