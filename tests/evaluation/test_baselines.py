"""The ideal reader beside Bayes' rule by hand; who reads given pictures into words; other colours."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from m2m.data.sets import ImageSet
from m2m.evaluation.baselines import HYPOTHESES, IdealReader, PaintedSets, agreed_captions, colours_shuffled
from m2m.evaluation.networks import Batch, Observations
from m2m.world.grammar import ALL_STYLES, COLOUR_NAMES, NOUNS, WORDS

NOUN, HUE, STYLE = np.indices((8, 8, 6))
SEEN = ~np.isin((HUE + 3 * NOUN + STYLE) % 8, (0, 1, 2))
ALL = np.ones((2, 2, 2), bool)
NOUN_ALONE, COLOUR_ALONE, STYLE_ALONE, NOT_STYLE, NOT_COLOUR, NOT_NOUN, WHOLE = HYPOTHESES


def _posterior(reader: IdealReader, given: np.ndarray) -> np.ndarray:
    """Odds of each hypothesis, (sets, 7)."""
    return reader.explanations(given) @ (reader.named[:, None] == np.array(HYPOTHESES)).all(axis=2)


def _of(posterior: np.ndarray) -> dict[tuple[bool, bool, bool], float]:
    return dict(zip(HYPOTHESES, posterior[0].tolist(), strict=True))


def _shared(reader: IdealReader, given: np.ndarray) -> np.ndarray:
    """Odds that each attribute is shared, (sets, 3)."""
    return reader.explanations(given) @ reader.named


def _keeps(reader: IdealReader, given: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Odds that each attribute is shared, and with this value, (sets, 3)."""
    agrees = reader.named & (reader.values == values[:, None])
    return np.einsum("se,sea->sa", reader.explanations(given), agrees)


def test_one_picture_tells_little() -> None:
    """P(h) ∝ P(m | h) / completions(m): 1/8 · 1/30, 1/48 · 1/5, 1/64 · 1/completions; 1/240 for a whole triple."""
    triple = (0, 3, 0)
    assert SEEN[triple]
    likelihood = {
        NOUN_ALONE: 1 / 8 / 30,
        COLOUR_ALONE: 1 / 8 / 30,
        STYLE_ALONE: 1 / 6 / 40,
        NOT_STYLE: 1 / 64 / SEEN[0, 3].sum(),
        NOT_COLOUR: 1 / 48 / 5,
        NOT_NOUN: 1 / 48 / 5,
        WHOLE: 1 / 240,
    }
    expected = {one: value / sum(likelihood.values()) for one, value in likelihood.items()}
    reader = IdealReader(SEEN, epsilon=1e-9)
    assert _of(_posterior(reader, np.array([[triple]]))) == pytest.approx(expected, abs=1e-6)
    assert _shared(reader, np.array([[triple]]))[0] == pytest.approx(
        [sum(odds for one, odds in expected.items() if one[axis]) for axis in range(3)], abs=1e-6
    )


def test_a_triple_that_training_never_shows_counts_like_its_neighbours() -> None:
    reader = IdealReader(SEEN, epsilon=1e-9)
    unseen, seen = (0, 2, 0), (0, 2, 1)
    assert SEEN[seen]
    assert not SEEN[unseen]
    ours, theirs = (_posterior(reader, np.array([[one]])) for one in (unseen, seen))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_contradiction_by_hand() -> None:
    """A B B B B in the noun alone, of two by two by two classes: shared but misread, or not shared."""
    epsilon = 0.1
    given = np.array([[[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]])
    all_five = ((1 - epsilon) ** 5 + epsilon**5) / 2  # what a named value that five pictures show alike is worth
    four = ((1 - epsilon) ** 4 * epsilon + epsilon**4 * (1 - epsilon)) / 2  # one of them another
    free = 1 / 2**5
    likelihood = {
        NOUN_ALONE: four * free**2,
        COLOUR_ALONE: all_five * free**2,
        STYLE_ALONE: all_five * free**2,
        NOT_STYLE: four * all_five * free,
        NOT_COLOUR: four * all_five * free,
        NOT_NOUN: all_five**2 * free,
        WHOLE: four * all_five**2,
    }
    reader = IdealReader(ALL, epsilon=epsilon)
    expected = {one: value / sum(likelihood.values()) for one, value in likelihood.items()}
    assert _of(_posterior(reader, given)) == pytest.approx(expected)
    shared = _shared(reader, given)[0, 0]
    assert shared == pytest.approx(expected[NOUN_ALONE] + expected[NOT_STYLE] + expected[NOT_COLOUR] + expected[WHOLE])
    odd = _keeps(reader, given, np.array([[0, 1, 1]]))[0, 0]
    assert odd == pytest.approx(shared * epsilon**4 * (1 - epsilon) / (2 * four))
    # A free noun shows it every other time.
    assert reader.shows(given, np.array([[0, 1, 1]]))[0, 0] == pytest.approx(odd + (1 - shared) / 2)


def test_the_odd_one_is_not_kept_wherever_it_stands() -> None:
    odd, others = (1, 5, 2), (4, 2, 3)
    lots = np.array([[odd if letter == "A" else others for letter in order] for order in set(permutations("ABBBB"))])
    reader = IdealReader(SEEN, epsilon=0.01)
    kept = _keeps(reader, lots, np.array([odd] * len(lots)))
    np.testing.assert_allclose(kept, kept[:1].repeat(len(lots), axis=0), rtol=1e-9)
    assert (kept < 1e-4).all()
    assert (_keeps(reader, lots, np.array([others] * len(lots))) > 0.1).all()


def test_repeated_values_are_shared_and_differing_ones_are_not() -> None:
    given = np.array([[[2, 1, 3], [2, 4, 3], [2, 5, 3], [2, 6, 3]]])
    noun, colour, style = _shared(IdealReader(SEEN, epsilon=0.01), given)[0]
    assert noun > 0.98
    assert style > 0.98
    assert colour < 0.02


def test_what_it_draws_is_shared_within_a_set_and_comes_from_training() -> None:
    reader, random = IdealReader(SEEN, epsilon=0.01), np.random.default_rng(0)
    given = np.array([[[2, 1, 3], [2, 4, 3], [2, 5, 3], [2, 6, 3]], [[0, 2, 0]] * 4])
    drawn = reader.draw(given, 6, random, repeats=200)
    assert drawn.shape == (200, 2, 6, 3)
    assert (drawn[:, 0, :, 0] == 2).mean() > 0.97
    colours = drawn[:, 0][(drawn[:, 0, :, (0, 2)] == [[[2]], [[3]]]).all(axis=0)][:, 1]
    allowed = np.flatnonzero(SEEN[2, :, 3])
    np.testing.assert_allclose(np.bincount(colours, minlength=8)[allowed] / len(colours), 1 / 5, atol=0.04)
    assert (drawn[:, 1] == (0, 2, 0)).all(axis=-1).mean() > 0.9  # a whole triple is kept though training lacks it


def test_it_draws_by_its_own_odds() -> None:
    reader, random = IdealReader(SEEN, epsilon=0.01), np.random.default_rng(0)
    given = np.array([[[2, 1, 3], [2, 4, 3]]])
    drawn = reader.draw(given, 1, random, repeats=20_000)[:, 0, 0]
    for triple in ((2, 1, 3), (2, 0, 0)):
        expected = reader.shows(given, np.array([triple]))[0]
        np.testing.assert_allclose((drawn == triple).mean(axis=0), expected, atol=0.012)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_a_reader_that_never_or_always_errs_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        IdealReader(SEEN, epsilon=epsilon)


def test_a_caption_names_what_all_given_pictures_show() -> None:
    star, red, blue, neon, cube = NOUNS.index("star"), 0, COLOUR_NAMES.index("blue"), 2, NOUNS.index("cube")
    given = np.array(
        [
            [[star, red, neon], [star, blue, neon]],
            [[star, red, neon], [0, blue, 0]],
            [[cube, blue, 0], [cube, blue, 1]],
        ]
    )
    assert agreed_captions(given, WORDS) == ["a star, neon", "", "something blue"], "no set shares a solid"


def test_pictures_are_painted_anew_and_the_same_each_time() -> None:
    logits = {head: torch.zeros(1, 2, len(names)) for head, names in WORDS.items()}
    logits["style"][:, :, ALL_STYLES.index("rendered")] = 9.0  # nothing that a picture shows
    seen = Observations(
        features=torch.zeros(1, 2, 4),
        logits=logits,
        geometry=torch.zeros(1, 2, 0),
        nearest=np.zeros((1, 2)),
        embeddings=torch.zeros(1, 2, 0),
        text_image=torch.zeros(2),
    )
    sets = (ImageSet(id="one", caption="a star", images=np.zeros((5, 64, 64, 3), np.uint8)),)
    painted = PaintedSets(sets, seen, 2, WORDS, seed=0)
    first = painted[0]
    assert first.images.shape == (2, 64, 64, 3)
    assert not np.array_equal(first.images[0], first.images[1]), "each has its own place"
    np.testing.assert_array_equal(first.images, painted[0].images)


def test_shuffled_colours_keep_every_pixel_of_a_channel_together() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(3, 2, 8, 8, 3), dtype=np.uint8)
    [batch] = colours_shuffled([Batch(["a"] * 3, images[:, :0], images)], seed=0)
    assert batch.captions == ["a"] * 3
    for before, after in zip(images.reshape(-1, 8, 8, 3), batch.images.reshape(-1, 8, 8, 3), strict=True):
        assert not np.array_equal(before, after)
        assert {before[..., c].tobytes() for c in range(3)} == {after[..., c].tobytes() for c in range(3)}
