"""Pattern scores of those who know the pattern, of those who do not, and of those who cheat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m2m.evaluation.baselines import HYPOTHESES, IdealReader
from m2m.evaluation.figures import caption_weights, difference, interval
from m2m.evaluation.networks import Thresholds, nearest_earlier, nearest_other, read_values
from m2m.evaluation.pattern import Lot, Pattern, Sums, frequencies, scores, statistic
from m2m.world.grammar import ATTRIBUTES

Values = NDArray[np.int64]
Pixels = NDArray[np.uint8]

CLASSES = (8, 8, 6)
NOUN, HUE, STYLE = np.indices(CLASSES)
SEEN = ~np.isin((HUE + 3 * NOUN + STYLE) % 8, (0, 1, 2))
TRIPLES = np.stack([NOUN, HUE, STYLE], axis=-1).reshape(-1, 3)
GIVEN, POSITIONS, SIDE = 8, 6, 8
EACH = 80
"""Sets of each kind of caption."""


class World:
    """Sets of all kinds of captions, the pictures of them, and a class network that reads these."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.named = np.repeat(np.array(HYPOTHESES), EACH, axis=0)  # (sets, 3)
        self.wanted = np.stack([self._meant(named, random) for named in self.named])
        total = GIVEN + 2 * POSITIONS  # given ones, those that come next, and others that could have
        self.values = np.stack([self._set(*one, total, random) for one in zip(self.named, self.wanted, strict=True)])
        self.templates = [random.choice((-1, 1), (count, SIDE, SIDE)) for count in CLASSES]
        self.pictures = self.paint(self.values, random)
        values, confidences = self.read(self.pictures)
        assert (values == self.values).mean() > 0.99
        self.read_values = values
        self.thresholds = Thresholds.of_held_out(confidences, nearest_other(self.pictures))

    def paint(self, values: Values, random: np.random.Generator) -> Pixels:
        """A channel an attribute, and much that differs from picture to picture."""
        clean = np.stack([self.templates[one][values[..., one]] for one in range(3)], axis=-1)
        return (128 + 30 * clean + random.normal(scale=30, size=clean.shape)).round().clip(0, 255).astype(np.uint8)

    def read(self, pictures: Pixels) -> tuple[Values, NDArray[np.float64]]:
        """As pictures are painted: by their likeness to each template."""
        logits = {
            name: torch.from_numpy(np.einsum("...hw,chw->...c", pictures[..., one] - 128.0, self.templates[one]) / 150)
            for one, name in enumerate(ATTRIBUTES)
        }
        return read_values(logits)

    def pattern(self, given: int) -> Pattern:
        return Pattern(
            named=self.named,
            wanted=self.wanted,
            given=self.read_values[:, :given],
            held_out=self.lot(self.pictures[:, GIVEN : GIVEN + POSITIONS], given),
            chance=frequencies(SEEN),
        )

    def lot(self, drawn: Pixels, given: int) -> Lot:
        values, confidences = self.read(drawn)
        nearest = nearest_earlier(self.pictures[:, :given], drawn)
        return Lot(values, self.thresholds.misses(confidences, nearest))

    @staticmethod
    def _meant(named: NDArray[np.bool_], random: np.random.Generator) -> Values:
        """What a caption names, from training, but for whole triples, all of them."""
        known = TRIPLES if named.all() else TRIPLES[SEEN.reshape(-1)]
        return known[random.integers(len(known))]

    @staticmethod
    def _set(named: NDArray[np.bool_], wanted: Values, count: int, random: np.random.Generator) -> Values:
        within = ((wanted == TRIPLES) | ~named).all(axis=1) & (SEEN.reshape(-1) | named.all())
        return TRIPLES[within][random.integers(within.sum(), size=count)]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def _whole(sums: Sums) -> dict[str, NDArray[np.float64]]:
    """All captions alike, by attribute."""
    return {name: values[0] for name, values in scores(sums, np.ones((1, sums.shape[1]))).items()}


def _lenient_by_attribute(of: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The harmonic mean of Kept and Free, whatever is fresh."""
    kept, free = of["kept"].clip(0, 1), of["free"].clip(0, 1)
    return 2 * kept * free / np.where((kept == 0) & (free == 0), 1, kept + free)


def _lenient(sums: Sums) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda weights: _lenient_by_attribute(scores(sums, weights)).mean(axis=-1)


def _score(sums: Sums) -> float:
    return float(_lenient(sums)(np.ones((1, sums.shape[1])))[0])


def _strict(sums: Sums) -> float:
    return float(_whole(sums)["pattern_score"].mean())


def _copies(world: World, given: int, _: np.random.Generator) -> Pixels:
    return world.pictures[:, np.arange(POSITIONS) % given]


def _shuffled_copies(world: World, given: int, random: np.random.Generator) -> Pixels:
    chosen = random.integers(given, size=(len(world.named), POSITIONS))
    return world.pictures[np.arange(len(world.named))[:, None], chosen]


def _noised_copies(world: World, given: int, random: np.random.Generator) -> Pixels:
    copies = _shuffled_copies(world, given, random)
    return (copies + random.normal(scale=6, size=copies.shape)).round().clip(0, 255).astype(np.uint8)


def _noise(world: World, _: int, random: np.random.Generator) -> Pixels:
    return random.integers(0, 256, (len(world.named), POSITIONS, SIDE, SIDE, 3), np.uint8)


def _other_sets(world: World, _: int, __: np.random.Generator) -> Pixels:
    shift = EACH * 3 + EACH // 2
    return np.roll(world.pictures[:, GIVEN : GIVEN + POSITIONS], shift, axis=0)


def _same_picture(world: World, _: int, __: np.random.Generator) -> Pixels:
    return np.broadcast_to(world.pictures[-1, -1], (len(world.named), POSITIONS, SIDE, SIDE, 3)).copy()


def _new_values(world: World, given: int, random: np.random.Generator) -> Pixels:
    """In each attribute a value that the set has not shown yet, as long as there is one."""
    shown = world.read_values[:, :given]
    for _ in range(POSITIONS):
        seen = [(shown[:, :, one, None] == np.arange(CLASSES[one])).any(axis=1) for one in range(3)]
        chosen = [(random.random(of.shape) - of).argmax(axis=1) for of in seen]
        shown = np.concatenate([shown, np.stack(chosen, axis=1)[:, None]], axis=1)
    return world.paint(shown[:, given:], random)


CHEATS: tuple[Callable[[World, int, np.random.Generator], Pixels], ...] = (
    _copies,
    _shuffled_copies,
    _noised_copies,
    _noise,
    _other_sets,
    _same_picture,
    _new_values,
)


@pytest.mark.parametrize("given", [1, 2, 4, 8])
@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__.strip("_"))
def test_a_cheat_scores_nothing(world: World, given: int, cheat: Callable[..., Pixels]) -> None:
    drawn = world.lot(cheat(world, given, np.random.default_rng(1)), given)
    assert _score(world.pattern(given).count(drawn)) <= 0.1


@pytest.mark.parametrize("given", [1, 2, 4, 8])
def test_other_held_out_pictures_score_about_one(world: World, given: int) -> None:
    sums = world.pattern(given).count(world.lot(world.pictures[:, GIVEN + POSITIONS :], given))
    assert _score(sums) >= 0.95
    assert _strict(sums) >= 0.9
    by_position = _lenient_by_attribute(scores(sums, np.ones((1, sums.shape[1])), by_position=True)).mean(axis=-1)
    assert by_position.shape == (1, POSITIONS)
    assert by_position.min() > 0.85  # fewer pairs at one position, and |g - g0| makes noise a loss


def test_the_ideal_reader_gains_by_more_pictures_and_a_reader_of_the_first_does_not(world: World) -> None:
    reader, random = IdealReader(SEEN, epsilon=0.01), np.random.default_rng(2)
    ideal, of_first = {}, {}
    for given in (1, 2, 4, 8):
        pattern, values = world.pattern(given), world.read_values[:, :given]
        ideal[given] = pattern.count(Lot.without_misses(reader.draw(values, POSITIONS, random)[0]))
        of_first[given] = pattern.count(Lot.without_misses(reader.draw(values[:, :1], POSITIONS, random)[0]))
    reached = {given: _score(sums) for given, sums in ideal.items()}
    assert reached[1] + 0.2 < reached[2] < reached[4] <= reached[8] + 0.02
    assert reached[1] == pytest.approx(0.5, abs=0.06)
    assert reached[8] > 0.95
    weights = caption_weights(ideal[1].shape[1], resamples=300, seed=0)
    for given in (4, 8):
        assert difference(_lenient(ideal[given]), _lenient(of_first[given]), weights).low > 0.3
        assert difference(_lenient(ideal[given]), _lenient(ideal[1]), weights).low > 0.3
        assert abs(difference(_lenient(of_first[given]), _lenient(of_first[1]), weights).value) < 0.06


def test_more_draws_of_a_reader_are_one_lot(world: World) -> None:
    reader, pattern = IdealReader(SEEN, epsilon=0.01), world.pattern(2)
    first, second = (
        pattern.count(Lot.without_misses(values))
        for values in reader.draw(world.read_values[:, :2], POSITIONS, np.random.default_rng(3), repeats=2)
    )
    kept = [_whole(sums)["kept"] for sums in (first, second, first + second)]
    np.testing.assert_allclose(kept[2], (kept[0] + kept[1]) / 2)


@pytest.mark.parametrize(("given", "expected"), [(1, 0.0), (2, 0.67), (4, 0.86), (8, 0.93)])
def test_who_redraws_the_given_pictures_passes_but_for_the_strict_score(
    world: World, given: int, expected: float
) -> None:
    random = np.random.default_rng(4)
    chosen = random.integers(given, size=(len(world.named), POSITIONS))
    redrawn = world.paint(world.values[np.arange(len(chosen))[:, None], chosen], random)
    sums = world.pattern(given).count(world.lot(redrawn, given))
    assert _score(sums) == pytest.approx(expected, abs=0.05)
    assert _strict(sums) <= 0.1


@pytest.mark.parametrize("given", [1, 2, 4, 8])
def test_who_tosses_a_coin_gets_half_and_reads_nothing(world: World, given: int) -> None:
    """What a score has to beat, to show that more than the first picture was read."""
    random = np.random.default_rng(4)
    known = TRIPLES[SEEN.reshape(-1)]
    shape = (len(world.named), POSITIONS)
    other = known[random.integers(len(known), size=shape)]
    drawn = np.where(random.random((*shape, 3)) < 0.6, world.read_values[:, :1], other)
    score = _score(world.pattern(given).count(Lot.without_misses(drawn)))
    assert 0.4 < score < 0.7


def test_unreadable_pictures_cost_their_share(world: World) -> None:
    held_out = world.pictures[:, GIVEN + POSITIONS :].copy()
    held_out[:, ::2] = _noise(world, 1, np.random.default_rng(0))[:, ::2]
    sums = world.pattern(1).count(world.lot(held_out, 1))
    found = scores(sums, np.ones((1, sums.shape[1])), by_position=True)
    np.testing.assert_allclose(found["kept"][0, ::2], 0, atol=0.3)
    assert (found["kept"][0, 1::2] > 0.95).all()
    np.testing.assert_allclose(found["free"][0, ::2], 0, atol=0.1)


# By hand: one caption names the noun 1, one the colour 0 and the style 0; one given picture, two positions.
SMALL = {
    "named": np.array([[True, False, False], [False, True, True]]),
    "wanted": np.array([[1, 9, 9], [9, 0, 0]]),
    "given": np.array([[[1, 0, 0]], [[0, 0, 0]]]),
    "chance": [np.array([0.5, 0.5]), np.array([0.5, 0.25, 0.25]), np.array([0.5, 0.5])],
}
HELD_OUT = Lot.without_misses(np.array([[[1, 0, 1], [1, 1, 0]], [[0, 0, 0], [1, 0, 0]]]))


def test_by_hand() -> None:
    values = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 0, 1], [0, 1, 1]]])
    misses = np.zeros(values.shape, bool)
    misses[0, 1, 2] = True  # the style of the first set's second picture
    sums = Pattern(**SMALL, held_out=HELD_OUT).count(Lot(values, misses))
    found = _whole(sums)
    # Noun: 1 of 2 shows it, chance 1/2: nothing kept. Colour: 1 of 2 by chance 1/2. Style: none, below chance.
    np.testing.assert_allclose(found["kept"], [0, 0, -1])
    # Noun, second set: g 1/2 as held-out pictures, d 0 as they. Colour, first set: likewise, 1/2 and 0.
    # Style, first set: g is 1, given the miss, g0 1/2; d is 1, d0 0.
    np.testing.assert_allclose(found["free"], [1, 1, 0])
    np.testing.assert_allclose(found["fresh"], [1, 1, 0])
    assert found["pattern_score"].mean() == 0
    # Of both sets' pairs none agrees in the noun, none in the colour, one in the style; the miss agrees with nothing.
    np.testing.assert_allclose(found["pair_agreement"], [0, 0, 0.5])
    np.testing.assert_allclose(found["held_out_agreement"], [0.5, 0.5, 0.5])


def test_by_hand_where_something_is_reached() -> None:
    values = np.array([[[1, 0, 0], [1, 0, 1]], [[0, 0, 0], [0, 0, 0]]])
    found = _whole(Pattern(**SMALL, held_out=HELD_OUT).count(Lot.without_misses(values)))
    np.testing.assert_allclose(found["kept"], [1, 1, 1])
    # Noun, second set: g 1, g0 1/2, d 1. Colour, first set: the same. Style, first set: g 1/2 and d 0, as held out.
    np.testing.assert_allclose(found["free"], [0, 0, 1])
    np.testing.assert_allclose(found["pattern_score"], [0, 0, 1])
    assert found["pattern_score"].mean() == pytest.approx(1 / 3)


def test_kept_and_free_meet_in_their_harmonic_mean() -> None:
    # Noun of two captions named, of one free: 3 of 4 show it (kept 1/2), and g is 3/4 instead of 1/2 (free 1/2).
    named = np.array([[True, True, True], [True, True, True], [False, True, True], [False, True, True]])
    held_out = np.zeros((4, 2, 3), np.int64)
    held_out[2:, 1, 0] = 1
    drawn = held_out.copy()
    drawn[0, 1, 0] = 1
    drawn[2, 1, 0] = 0
    chance = [np.array([0.5, 0.5])] * 3
    given = np.zeros((4, 1, 3), np.int64)
    pattern = Pattern(
        named=named, wanted=given[:, 0], given=given, held_out=Lot.without_misses(held_out), chance=chance
    )
    sums = pattern.count(Lot.without_misses(drawn))
    found = _whole(sums)
    assert sums.shape[1] == 2  # equal captions are resampled together
    assert (found["kept"][0], found["free"][0], found["pattern_score"][0]) == (0.5, 0.5, 0.5)
    assert np.isnan(found["free"][1])  # no caption leaves the colour free: that says nothing, and is no zero
    assert np.isnan(found["pattern_score"].mean())


def test_the_order_of_sets_and_the_numbers_of_classes_do_not_matter(world: World) -> None:
    random = np.random.default_rng(6)
    pattern = world.pattern(2)
    drawn = world.lot(world.pictures[:, GIVEN + POSITIONS :], 2)
    order = random.permutation(len(world.named))
    numbers = [random.permutation(count) for count in CLASSES]

    def renumbered(values: Values) -> Values:
        return np.stack([numbers[one][values[order][..., one]] for one in range(3)], axis=-1)

    def renumbered_lot(lot: Lot) -> Lot:
        return Lot(renumbered(lot.values), lot.misses[order])

    other = Pattern(
        named=pattern.named[order],
        wanted=renumbered(pattern.wanted),
        given=renumbered(pattern.given),
        held_out=renumbered_lot(pattern.held_out),
        chance=[chance[numbers[one].argsort()] for one, chance in enumerate(pattern.chance)],
    )
    assert _score(other.count(renumbered_lot(drawn))) == pytest.approx(_score(pattern.count(drawn)), rel=1e-12)


def test_equal_lots_differ_by_nothing(world: World) -> None:
    sums = world.pattern(4).count(world.lot(world.pictures[:, GIVEN + POSITIONS :], 4))
    same = difference(_lenient(sums), _lenient(sums), caption_weights(sums.shape[1], resamples=50, seed=0))
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_pictures_that_go_together_agree_more_than_those_drawn_alone(world: World) -> None:
    reader, given, random = IdealReader(SEEN, epsilon=0.01), world.read_values[:, :1], np.random.default_rng(7)
    alone = np.concatenate([reader.draw(given, 1, random)[0] for _ in range(POSITIONS)], axis=1)
    pattern = world.pattern(1)
    together = pattern.count(Lot.without_misses(reader.draw(given, POSITIONS, random)[0]))
    apart = pattern.count(Lot.without_misses(alone))
    weights = caption_weights(apart.shape[1], resamples=300, seed=0)
    more = difference(
        lambda chosen: scores(together, chosen)["pair_agreement"],
        lambda chosen: scores(apart, chosen)["pair_agreement"],
        weights,
    )
    assert (more.low > 0.05).all()
    excess = difference(statistic(together, "held_out_agreement"), statistic(apart, "pair_agreement"), weights)
    assert excess.low > 0.05


def test_the_interval_covers_the_score_of_all_captions(world: World) -> None:
    """Captions of the world stand for all that there are; some of them are drawn, again and again."""
    drawn = IdealReader(SEEN, epsilon=0.01).draw(world.read_values[:, :2], POSITIONS, np.random.default_rng(8))[0]
    everything = world.pattern(2).count(Lot.without_misses(drawn))
    true, covered, tries = _score(everything), 0, 100
    for seed in range(tries):
        some = everything[:, np.random.default_rng(seed).integers(everything.shape[1], size=150)]
        estimate = interval(_lenient(some), caption_weights(some.shape[1], resamples=200, seed=seed))
        assert estimate.low < estimate.value < estimate.high
        covered += bool(estimate.low <= true <= estimate.high)
    assert covered >= 0.88 * tries


def test_what_does_not_belong_together_is_refused() -> None:
    pattern = Pattern(**SMALL, held_out=HELD_OUT)
    with pytest.raises(ValueError, match="drawn"):
        pattern.count(Lot.without_misses(HELD_OUT.values[:, :1]))
    with pytest.raises(ValueError, match="at least 2"):
        Pattern(**SMALL, held_out=Lot.without_misses(HELD_OUT.values[:, :1]))
    with pytest.raises(ValueError, match="not of the same sets"):
        Pattern(**{**SMALL, "named": SMALL["named"][:1]}, held_out=HELD_OUT)
