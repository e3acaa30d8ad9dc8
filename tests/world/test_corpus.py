import numpy as np
import pytest

from m2m.world.corpus import Corpus, make_corpus, make_looks
from m2m.world.grammar import parse
from m2m.world.vocabulary import ALL_STYLES, COLOUR_NAMES, NOUNS, STYLES


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "held-out"])
def corpus(request: pytest.FixtureRequest) -> tuple[Corpus, bool]:
    return make_corpus(pictures=400, views=12, steps=100, seed=7, held_out=request.param), request.param


def test_labels_say_what_the_captions_say(corpus: tuple[Corpus, bool]) -> None:
    made, held = corpus
    assert len(made) == len(made.images) == 512
    for row, text in enumerate(made.captions):
        caption = parse(text)
        assert (caption.split == "test") == held
        assert (NOUNS[made.noun[row]], COLOUR_NAMES[made.colour[row]]) == (caption.noun, caption.colour)
        assert (ALL_STYLES[made.style[row]], made.step[row]) == (caption.style, caption.step or 0)
        assert made.has_geometry[row] == (caption.style in STYLES)


def test_geometry_is_where_the_object_is() -> None:
    made = make_corpus(pictures=300, views=0, steps=0, seed=2, split="train")
    flat = made.style == ALL_STYLES.index("flat")
    for image, geometry in zip(made.images[flat].astype(int), made.geometry[flat], strict=True):
        rows, columns = np.nonzero(np.abs(image - image[0, 0]).sum(axis=-1) > 60)
        assert abs(columns.mean() / 64 - geometry[0]) < 0.09
        assert abs(rows.mean() / 64 - geometry[1]) < 0.09
        assert 0.6 < max(np.ptp(rows), np.ptp(columns)) / 64 / geometry[2] < 1.2
    np.testing.assert_allclose(np.hypot(made.geometry[:, 3], made.geometry[:, 4]), 1, rtol=1e-6)
    circles = made.noun == NOUNS.index("circle")
    assert (made.geometry[circles, 3] == 0).all()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(corpus: tuple[Corpus, bool]) -> None:
    made, held = corpus
    again = make_corpus(pictures=400, views=12, steps=100, seed=7, held_out=held)
    assert again.captions == made.captions
    for name in ("images", "noun", "colour", "style", "step", "geometry", "has_geometry"):
        assert np.array_equal(getattr(again, name), getattr(made, name)), name
    other = make_corpus(pictures=400, views=0, steps=0, seed=8, held_out=held)
    assert not np.array_equal(other.images, made.images[:400])


def test_one_kind_does_not_change_another() -> None:
    both = make_corpus(pictures=20, views=0, steps=10, seed=3, split="train")
    fewer = make_corpus(pictures=5, views=0, steps=10, seed=3, split="train")
    assert fewer.captions == both.captions[:5] + both.captions[20:]
    assert np.array_equal(fewer.images[5:], both.images[20:])


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        make_corpus(pictures=0, views=0, steps=0, seed=0, split="train")


def test_two_looks_show_one_scene_that_has_moved() -> None:
    looks = make_looks(pictures=30, views=4, steps=10, seed=5)
    assert looks.shape == (2, 44, 64, 64, 3)
    assert looks.dtype == np.uint8
    assert np.array_equal(looks, make_looks(pictures=30, views=4, steps=10, seed=5))
    between, others = (
        np.abs(looks[0].astype(int) - other.astype(int)).mean(axis=(1, 2, 3)) for other in (looks[1], looks[1][::-1])
    )
    assert (between > 0).all()  # it has moved,
    assert between[:30].mean() < 0.7 * others[:30].mean()  # and is the same thing in the same style
