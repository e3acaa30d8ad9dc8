import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

import m2m
from m2m.world.pictures import OUTLINES, STYLE_PAINTERS
from m2m.world.procedures import PARTS
from m2m.world.vocabulary import (
    ATTRIBUTES,
    COLOUR_NAMES,
    COLOURS,
    CONSTRUCTION,
    MAX_STEPS,
    NOUNS,
    PICTURE_WORDS,
    PROCEDURES,
    RENDERED,
    SHAPES,
    SOLIDS,
    STEP_TEXTS,
    STYLES,
    WORDS,
    split_of,
)


def test_the_words_of_each_attribute_stand_here_alone() -> None:
    assert ATTRIBUTES == ("noun", "colour", "style") == tuple(WORDS) == tuple(PICTURE_WORDS)
    assert all(set(PICTURE_WORDS[attribute]) <= set(WORDS[attribute]) for attribute in ATTRIBUTES)
    sources = Path(m2m.__file__).parent.rglob("*.py")
    listing = re.compile(r'"noun"(, "colour", "style"|: )')
    assert [path.name for path in sources if listing.search(path.read_text())] == ["vocabulary.py"]


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
