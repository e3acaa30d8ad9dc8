import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

import m2m
from m2m.errors import UserError
from m2m.manifest import Split
from m2m.world.grammar import (
    ATTRIBUTES,
    COLOUR_NAMES,
    COLOURS,
    CONSTRUCTION,
    KINDS,
    MAX_STEPS,
    NOUNS,
    PICTURE_WORDS,
    PLAIN,
    PROCEDURES,
    RENDERED,
    SHAPES,
    SOLIDS,
    STEP_TEXTS,
    STYLED,
    STYLES,
    WORDS,
    Caption,
    captions_naming,
    completions,
    parse,
    picture_captions,
    procedure_captions,
    split_of,
    view_captions,
)
from m2m.world.pictures import OUTLINES, STYLE_PAINTERS
from m2m.world.procedures import PARTS

OPEN_KINDS = KINDS[:-1]


def _all_captions() -> list[Caption]:
    captions = [caption for named in OPEN_KINDS for caption in captions_naming(named, "train")]
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
    styled, plain = 6 + 8 * 6 + 8 * 6 + 8 * 8 * 6, 8 + 8 + 8 * 8
    others = 6 * 8 * 6 * 7 + 8 * sum(map(len, STEP_TEXTS.values()))
    # No two captions or templates share a text.
    assert len(texts) == len(STYLED) * styled + len(PLAIN) * plain + others


@pytest.mark.parametrize(
    ("caption", "template", "text"),
    [
        (Caption("star", "red", "neon"), 0, "a red star, neon"),
        (Caption("star", "orange", "neon"), 1, "a neon drawing of an orange star"),
        (Caption("star", "red", "neon"), 2, "a red star in neon style"),
        (Caption("star", None, None), 0, "a star"),
        (Caption("arrow", None, None), 1, "a drawing of an arrow"),
        (Caption("star", "orange", None), 0, "an orange star"),
        (Caption(None, "red", None), 0, "something red"),
        (Caption(None, "red", None), 1, "a drawing of something red"),
        (Caption(None, None, "neon"), 0, "something, neon"),
        (Caption(None, None, "neon"), 1, "a neon drawing of something"),
        (Caption(None, "red", "neon"), 2, "something red in neon style"),
        (Caption("arrow", None, "neon"), 1, "a neon drawing of an arrow"),
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
        ("something", "names a shape, a colour or a style"),
        ("a drawing of something", "names a shape, a colour or a style"),
        ("something red star", "not understood"),
        ("a red", "shape 'red'"),
        ("something star", "colour 'star'"),
        ("something, red", "style 'red'"),
        ("a rendered star", "colour 'rendered'"),
        ("something in rendered style", "names its noun and colour"),
        ("a cube in rendered style", "names its colour"),
        ("a house in construction style", "names its colour"),
        ("a house", "shape 'house'"),
        ("a crimson star, neon", "colour 'crimson'"),
        ("a red banana, neon", "shape 'banana'"),
        ("a red star, gothic", "style 'gothic'"),
        ("a red star in rendered style", "solid 'star'"),
        ("a red cube, neon", "shape 'cube'"),
        ("a red cube in rendered style", "second"),
        ("a rendered red star with a blue cone", "solid 'star'"),
        ("a rendered red cube with a blue star", "solid 'star'"),
        ("a rendered red cube with a blue teapot", "unknown solid 'teapot'; expected one of cube"),
        ("a rendered mauve cube with a blue cone", "unknown colour 'mauve'; expected one of red"),
        ("a rendered red cube with a mauve cone", "unknown colour 'mauve'; expected one of red"),
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


@pytest.mark.parametrize("named", KINDS)
def test_there_is_no_template_beyond_the_last_or_before_the_first(named: tuple[str, ...]) -> None:
    caption = Caption("star", "red", "neon").naming(named)
    assert caption.templates == (len(STYLED) if "style" in named else len(PLAIN))
    for template in (-1, caption.templates):
        with pytest.raises(IndexError):
            caption.text(template)


def test_a_caption_that_names_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="names a shape, a colour or a style"):
        Caption(None, None, None)
    with pytest.raises(UserError, match="names a shape, a colour or a style"):
        Caption("star", "red", "neon").naming(())


def test_solids_and_procedures_leave_nothing_open() -> None:
    """Not even of a shape's attributes: what is open is open in pictures of shapes alone."""
    for words in ({"noun": None, "colour": "red"}, {"noun": "cube", "colour": None}):
        with pytest.raises(UserError, match="names its"):
            Caption(**words, style="rendered", second=("cone", "blue"))
    for words in ({"noun": None, "colour": "red"}, {"noun": "house", "colour": None}):
        with pytest.raises(UserError, match="names its"):
            Caption(**words, style="construction", step=1)


def test_what_a_caption_names_and_what_it_leaves_open() -> None:
    full = Caption("star", "red", "neon")
    assert (full.named, full.open, full.meaning) == (ATTRIBUTES, (), ("star", "red", "neon"))
    for named in OPEN_KINDS:
        caption = full.naming(named)
        assert caption.named == named
        assert {*caption.named, *caption.open} == {*ATTRIBUTES}
        assert len(caption.named) + len(caption.open) == 3
        for attribute in ATTRIBUTES:
            assert getattr(caption, attribute) == (getattr(full, attribute) if attribute in named else None)
        with pytest.raises(ValueError, match=" and the ".join(caption.open)):
            _ = caption.meaning


def test_there_are_seven_kinds_of_captions() -> None:
    assert len(set(KINDS)) == 7
    counts = {"train": 240, "validation": 48, "test": 96}
    for split in get_args(Split):
        of_kind = [captions_naming(named, split) for named in KINDS]
        assert [len(captions) for captions in of_kind] == [8, 8, 6, 64, 48, 48, counts[split]]
        for named, captions in zip(KINDS, of_kind, strict=True):
            assert {caption.named for caption in captions} == {named}
            assert len(set(captions)) == len(captions)
        assert of_kind[-1] == picture_captions(split)
        assert of_kind[:-1] == [captions_naming(named, "train") for named in OPEN_KINDS]


def test_what_is_open_is_completed_by_combinations_of_training_alone() -> None:
    held_out = {*picture_captions("validation"), *picture_captions("test")}
    for named in OPEN_KINDS:
        completed: set[Caption] = set()
        for caption in captions_naming(named, "test"):
            found = completions(caption)
            assert len(set(found)) == len(found) >= 3, "there is something left to vary"
            assert not held_out & {*found}
            assert {full for full in picture_captions("train") if full.naming(named) == caption} == {*found}
            for attribute in named:
                assert {getattr(full, attribute) for full in found} == {getattr(caption, attribute)}
            completed |= {*found}
        assert completed == {*picture_captions("train")}
    for split in get_args(Split):
        assert all(completions(full) == (full,) for full in picture_captions(split)), "what is named is drawn"


def test_an_open_caption_is_of_training_whatever_it_leaves_room_for() -> None:
    assert Caption("circle", "red", "flat").split == "test"
    for named in OPEN_KINDS:
        assert Caption("circle", "red", "flat").naming(named).split == "train"


@pytest.mark.parametrize(
    ("main", "second", "split"),
    [
        (("cube", "red"), ("cone", "blue"), "train"),
        (("cube", "yellow"), ("cone", "blue"), "validation"),
        (("cube", "red"), ("cone", "red"), "validation"),
        (("cube", "orange"), ("cone", "blue"), "test"),
        (("cube", "red"), ("cone", "pink"), "test"),
        (("cube", "orange"), ("cone", "red"), "test"),
        (("cube", "yellow"), ("cone", "pink"), "test"),
    ],
)
def test_a_view_of_solids_of_two_splits_is_of_the_rarer_one(
    main: tuple[str, str], second: tuple[str, str], split: Split
) -> None:
    named = {("cube", "orange"): "test", ("cube", "yellow"): "validation"}
    named |= {("cone", "pink"): "test", ("cone", "red"): "validation"}
    for solid in (main, second):
        assert split_of(*solid, "rendered") == named.get(solid, "train")
    assert Caption(*main, "rendered", second=second).split == split


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
    readers: list[tuple[Any, int]] = [
        (picture_captions, 384),
        (view_captions, 48 * 42),
        (procedure_captions, 8 * 8),
    ]
    for captions, count in readers:
        every = [one for split in get_args(Split) for one in captions(split)]
        assert len(every) == len(set(every)) == count


def test_procedures_of_every_kind_are_for_every_split() -> None:
    for split, count in (("train", 32), ("validation", 8), ("test", 24)):
        procedures = procedure_captions(split)
        assert len(procedures) == count
        assert {steps[0].noun for steps in procedures} == {*PROCEDURES}
        for steps in procedures:
            assert [caption.step for caption in steps] == list(range(1, len(STEP_TEXTS[steps[0].noun or ""]) + 1))
            assert {caption.split for caption in steps} == {split}


# Words


def test_the_words_of_each_attribute_stand_here_alone() -> None:
    assert ATTRIBUTES == ("noun", "colour", "style") == tuple(WORDS) == tuple(PICTURE_WORDS)
    assert all(set(PICTURE_WORDS[attribute]) <= set(WORDS[attribute]) for attribute in ATTRIBUTES)
    sources = Path(m2m.__file__).parent.rglob("*.py")
    listing = re.compile(r'"noun"(, "colour", "style"|: )')
    assert [path.name for path in sources if listing.search(path.read_text())] == ["grammar.py"]


def test_every_name_can_be_painted_and_every_painter_named() -> None:
    assert tuple(OUTLINES) == SHAPES
    assert tuple(STYLE_PAINTERS) == STYLES
    assert {kind: len(parts) for kind, parts in PARTS.items()} == {kind: len(t) for kind, t in STEP_TEXTS.items()}
    assert max(len(parts) for parts in PARTS.values()) == MAX_STEPS
    assert len(set(NOUNS)) == len(NOUNS)


def test_the_pictures_are_divided_and_every_pair_is_trained() -> None:
    combinations = list(product(SHAPES, COLOURS, STYLES))
    splits = {combination: split_of(*combination) for combination in combinations}
    assert Counter(splits.values()) == {"train": 240, "validation": 48, "test": 96}
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = {(combination[first], combination[second]) for combination in combinations}
        kept = Counter((one[first], one[second]) for one, split in splits.items() if split == "train")
        assert min(kept[pair] for pair in pairs) >= 3


@pytest.mark.parametrize(("split", "count"), [("validation", 48), ("test", 96)])
def test_each_value_is_held_out_equally_often(split: str, count: int) -> None:
    held = [combination for combination in product(SHAPES, COLOURS, STYLES) if split_of(*combination) == split]
    for position, values in enumerate((SHAPES, COLOUR_NAMES, STYLES)):
        counts = {sum(combination[position] == value for combination in held) for value in values}
        assert counts == {count // len(values)}


@pytest.mark.parametrize(("nouns", "style", "tested"), [(SOLIDS, RENDERED, 1), (PROCEDURES, CONSTRUCTION, 3)])
def test_each_solid_and_procedure_has_colours_of_every_split(nouns: tuple[str, ...], style: str, tested: int) -> None:
    firsts = set()
    for noun in nouns:
        splits = [split_of(noun, colour, style) for colour in COLOURS]
        assert Counter(splits) == {"train": 7 - tested, "validation": 1, "test": tested}
        firsts.add(splits.index("validation"))
    assert len(firsts) == len(nouns), "another colour each"
