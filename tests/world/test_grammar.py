import re
from typing import get_args

import pytest

from m2m.errors import UserError
from m2m.manifest import Split
from m2m.world.grammar import Caption, parse, picture_captions, procedure_captions, view_captions
from m2m.world.vocabulary import STEP_TEXTS


def _all_captions() -> list[Caption]:
    captions: list[Caption] = []
    for split in get_args(Split):
        captions += picture_captions(split)
        captions += view_captions(split)
        captions += (caption for steps in procedure_captions(split) for caption in steps)
    return captions


def test_parse_undoes_every_wording_of_every_caption() -> None:
    texts = {}
    for caption in _all_captions():
        for template in range(caption.templates):
            text = caption.text(template)
            assert parse(text) == caption
            assert re.fullmatch(r"[a-z0-9 ,:]+", text)
            texts[text] = caption
    wordings = 8 * 8 * 6 * 3 + 6 * 8 * 6 * 7 + 8 * sum(map(len, STEP_TEXTS.values()))
    assert len(texts) == wordings  # no two captions or templates share a text


@pytest.mark.parametrize(
    ("caption", "template", "text"),
    [
        (Caption("star", "red", "neon"), 0, "a red star, neon"),
        (Caption("star", "orange", "neon"), 1, "a neon drawing of an orange star"),
        (Caption("star", "red", "neon"), 2, "a red star in neon style"),
        (Caption("cube", "red", "rendered", second=("cone", "orange")), 0, "a rendered red cube with an orange cone"),
        (Caption("house", "blue", "construction", step=3), 0, "drawing a blue house, step 3: the door"),
    ],
)
def test_wordings(caption: Caption, template: int, text: str) -> None:
    assert caption.text(template) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not understood"),
        ("a red star", "not understood"),
        ("a crimson star, neon", "colour 'crimson'"),
        ("a red banana, neon", "shape 'banana'"),
        ("a red star, gothic", "style 'gothic'"),
        ("a red star in rendered style", "solid 'star'"),
        ("a red cube, neon", "shape 'cube'"),
        ("a red cube in rendered style", "second"),
        ("a rendered red star with a blue cone", "solid 'star'"),
        ("a rendered red cube with a blue star", "solid 'star'"),
        ("drawing a blue house, step 9: the door", "1 to 5"),
        ("drawing a blue house, step 2: the door", "the roof"),
        (f"drawing a blue house, step {'9' * 5000}: the door", "not understood"),
        ("drawing a blue cube, step 2: the roof", "procedure 'cube'"),
        ("a red house in construction style", "step"),
    ],
)
def test_what_is_not_understood_is_named(text: str, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UserError, match="step"):
        Caption("star", "red", "neon", step=1)
    with pytest.raises(UserError, match="second"):
        Caption("star", "red", "neon", second=("cube", "red"))
    with pytest.raises(UserError, match="second"):
        Caption("cube", "red", "rendered")
    with pytest.raises(UserError, match="step"):
        Caption("house", "red", "construction")


def test_there_is_no_template_beyond_the_last() -> None:
    caption = Caption("star", "red", "neon")
    with pytest.raises(IndexError):
        caption.text(caption.templates)


def test_no_caption_trained_on_names_a_solid_of_another_split() -> None:
    trained = view_captions("train")
    mains = {(caption.noun, caption.colour) for caption in trained}
    assert mains == {caption.second for caption in trained}
    assert len(mains) == 6 * 6
    looked_at = {(caption.noun, caption.colour) for caption in view_captions("validation")}
    assert len(looked_at - mains) == 6
    tested = {(caption.noun, caption.colour) for caption in view_captions("test")}
    assert len(tested - mains - looked_at) == 6


def test_the_splits_share_no_caption_and_have_all() -> None:
    for captions, count in ((picture_captions, 384), (view_captions, 48 * 42), (procedure_captions, 8 * 8)):
        every = [one for split in get_args(Split) for one in captions(split)]
        assert len(every) == len(set(every)) == count
