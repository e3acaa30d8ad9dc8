from itertools import product

from m2m.world.procedures import PARTS
from m2m.world.shapes import OUTLINES
from m2m.world.styles import STYLE_PAINTERS
from m2m.world.vocabulary import (
    COLOUR_NAMES,
    COLOURS,
    CONSTRUCTION,
    MAX_STEPS,
    NOUNS,
    PROCEDURES,
    RENDERED,
    SHAPES,
    SOLIDS,
    STEP_TEXTS,
    STYLES,
    held_out,
)


def test_every_name_can_be_painted_and_every_painter_named() -> None:
    assert tuple(OUTLINES) == SHAPES
    assert tuple(STYLE_PAINTERS) == STYLES
    assert {kind: len(parts) for kind, parts in PARTS.items()} == {kind: len(t) for kind, t in STEP_TEXTS.items()}
    assert max(len(parts) for parts in PARTS.values()) == MAX_STEPS
    assert len(set(NOUNS)) == len(NOUNS)


def test_an_eighth_of_the_pictures_is_held_out_and_every_pair_is_trained() -> None:
    combinations = list(product(SHAPES, COLOURS, STYLES))
    trained = [combination for combination in combinations if not held_out(*combination)]
    assert len(combinations) - len(trained) == 48
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = {(combination[first], combination[second]) for combination in combinations}
        kept = [(combination[first], combination[second]) for combination in trained]
        fewest = min(kept.count(pair) for pair in pairs)
        assert fewest >= 5


def test_each_value_is_held_out_equally_often() -> None:
    held = [combination for combination in product(SHAPES, COLOURS, STYLES) if held_out(*combination)]
    for position, values in enumerate((SHAPES, COLOUR_NAMES, STYLES)):
        counts = {sum(combination[position] == value for combination in held) for value in values}
        assert counts == {48 // len(values)}


def test_one_colour_of_each_solid_and_procedure_is_held_out_no_colour_twice() -> None:
    for nouns, style in ((SOLIDS, RENDERED), (PROCEDURES, CONSTRUCTION)):
        held = [[colour for colour in COLOURS if held_out(noun, colour, style)] for noun in nouns]
        assert all(len(colours) == 1 for colours in held)
        assert len({colours[0] for colours in held}) == len(nouns)
