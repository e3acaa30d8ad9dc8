"""What a caption of the embedded world can name; captions: a meaning, its wordings, and the way back from the words.

A caption may leave things open, as real ones do: "a star", "something blue, neon". What it does not name is drawn
freely, so that only several pictures of a set tell what they share. Some combinations training never sees.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Any, Final, Self

from m2m.errors import UserError
from m2m.manifest import Origin, Split

# Words

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow")

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (218, 38, 42),
    "orange": (246, 134, 20),
    "yellow": (250, 218, 40),
    "green": (44, 164, 72),
    "cyan": (38, 198, 214),
    "blue": (36, 84, 220),
    "purple": (128, 44, 178),
    "pink": (246, 118, 186),
}
"""Name to 8-bit RGB. Neighbours in hue also differ in lightness, so that blur and shade leave them apart."""

STYLES = ("flat", "sketch", "neon", "striped", "comic", "sunset")

SOLIDS = ("cube", "sphere", "cone", "cylinder", "pyramid", "torus")

STEP_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "house": ("the walls", "the roof", "the door", "the windows", "the sun"),
    "flower": ("the petals", "the centre", "the stem", "the leaves", "the pot"),
    "robot": ("the body", "the head", "the legs", "the arms", "the face"),
    "tree": ("the crown", "the trunk", "the fruit", "the meadow", "the cloud"),
    "boat": ("the hull", "the sea", "the mast", "the sail", "the jib", "the sun"),
    "rocket": ("the body", "the nose", "the fins", "the window", "the flame"),
    "cake": ("the base", "the icing", "the plate", "the candles", "the balloon"),
    "car": ("the body", "the wheels", "the windows", "the road", "the cloud"),
}
"""Procedure to the names of its steps, in order."""

PROCEDURES = tuple(STEP_TEXTS)
MAX_STEPS = max(map(len, STEP_TEXTS.values()))

RENDERED = "rendered"
CONSTRUCTION = "construction"

NOUNS = SHAPES + SOLIDS + PROCEDURES
COLOUR_NAMES = tuple(COLOURS)
ALL_STYLES = (*STYLES, RENDERED, CONSTRUCTION)

WORDS: Final[Mapping[str, tuple[str, ...]]] = {"noun": NOUNS, "colour": COLOUR_NAMES, "style": ALL_STYLES}
"""All words for each attribute of what is shown."""
PICTURE_WORDS: Final[Mapping[str, tuple[str, ...]]] = {"noun": SHAPES, "colour": COLOUR_NAMES, "style": STYLES}
"""Those for pictures of shapes alone: no solids, no procedures."""
ATTRIBUTES = tuple(WORDS)
"""What a caption of a picture names or leaves open."""


def split_of(noun: str, colour: str, style: str) -> Split:
    """The split whose pictures alone show this combination: 96 of 384 pictures are for the test, 48 for validation.

    Shapes form a Latin square over the colours, shifted by the style, so that each value is held out equally often and
    every pair (shape and colour, shape and style, colour and style) is trained in at least three of its combinations.
    Of solids one colour a noun is for the test, one for validation; of procedures three and one. They have one style.

    >>> split_of("circle", "red", "flat"), split_of("circle", "yellow", "flat"), split_of("circle", "green", "flat")
    ('test', 'validation', 'train')
    """
    hue = COLOUR_NAMES.index(colour)
    if style == RENDERED:
        place, test = hue - 3 * SOLIDS.index(noun) - 1, 1
    elif style == CONSTRUCTION:
        place, test = hue - 3 * PROCEDURES.index(noun) - 2, 3
    else:
        place, test = hue + 3 * SHAPES.index(noun) + STYLES.index(style), 2
    place %= len(COLOURS)
    return "test" if place < test else "validation" if place == test else "train"


# Captions

WORLD = Origin(name="the embedded world", licence="Apache-2.0, as the project")

KINDS = tuple(named for count in (1, 2, 3) for named in combinations(ATTRIBUTES, count))
"""The kinds of captions of pictures, by what they name: all that say something."""
STYLED = ("{thing}, {style}", "a {style} drawing of {thing}", "{thing} in {style} style")
PLAIN = ("{thing}", "a drawing of {thing}")
ANYTHING = "something"


@dataclass(frozen=True)
class Caption:
    """What a picture shows: a shape in a style, a rendered solid with a second one, or a step of a procedure.

    Of a shape in a style, what is None is left open.

    Raises:
        UserError: a word is not in the vocabulary, the words do not belong together, or nothing is named.
    """

    noun: str | None
    colour: str | None
    style: str | None
    step: int | None = None
    """Procedures only: the steps drawn so far, from 1."""
    second: tuple[str, str] | None = None
    """Solids only: noun and colour of the smaller solid fixed to the side of the main one."""

    def __post_init__(self) -> None:
        if not self.named:
            raise UserError("a caption names a shape, a colour or a style")
        kind, nouns = {RENDERED: ("solid", SOLIDS), CONSTRUCTION: ("procedure", PROCEDURES)}.get(
            self.style or "", ("shape", SHAPES)
        )
        _expect("colour", self.colour, COLOUR_NAMES)
        if nouns is SHAPES:
            _expect("style", self.style, STYLES)
        _expect(kind, self.noun, nouns)
        if nouns is not SHAPES and self.open:
            raise UserError(f"a caption in style {self.style} names its {' and '.join(self.open)}")
        second, steps = ("solids have a second one", RENDERED), ("procedures have a step", CONSTRUCTION)
        for value, (what, style) in ((self.second, second), (self.step, steps)):
            if (value is not None) != (self.style == style):
                raise UserError(f"{self.noun} in style {self.style}: {what}, and only they")
        if self.second is not None:
            _expect("solid", self.second[0], SOLIDS)
            _expect("colour", self.second[1], COLOUR_NAMES)
        if self.noun and self.step is not None and not 1 <= self.step <= len(STEP_TEXTS[self.noun]):
            raise UserError(f"step {self.step} of a {self.noun}: expected 1 to {len(STEP_TEXTS[self.noun])}")

    @property
    def named(self) -> tuple[str, ...]:
        """The attributes that it names, one of `KINDS`."""
        return tuple(attribute for attribute in ATTRIBUTES if getattr(self, attribute) is not None)

    @property
    def open(self) -> tuple[str, ...]:
        """The attributes that it leaves open."""
        return tuple(attribute for attribute in ATTRIBUTES if getattr(self, attribute) is None)

    @property
    def meaning(self) -> tuple[str, str, str]:
        """Noun, colour and style of a caption that leaves nothing open.

        Raises:
            ValueError: it does.
        """
        if self.noun is None or self.colour is None or self.style is None:
            raise ValueError(f"{self.text()!r} leaves the {' and the '.join(self.open)} open")
        return self.noun, self.colour, self.style

    @property
    def templates(self) -> int:
        """How many wordings `text` knows for this caption."""
        return 1 if self.style in (RENDERED, CONSTRUCTION) else len(PLAIN if self.style is None else STYLED)

    @property
    def split(self) -> Split:
        """Whose combination it names, as its main or its second solid; an open one leaves room for those of training.

        A caption of two splits belongs to the rarer one, so that training sees no combination of another.
        """
        if self.open:
            return "train"
        found = {split_of(*self.meaning)}
        if self.second is not None:
            found.add(split_of(*self.second, RENDERED))
        return "test" if "test" in found else "validation" if "validation" in found else "train"

    def naming(self, attributes: Collection[str]) -> Self:
        """What is left of it when it names these attributes alone."""
        return replace(self, **{attribute: None for attribute in ATTRIBUTES if attribute not in attributes})

    def text(self, template: int = 0) -> str:
        """The caption in words: lower case, ASCII.

        Raises:
            IndexError: there is no such template.
        """
        if not 0 <= template < self.templates:
            raise IndexError(f"template {template}: {self.style} captions have {self.templates}")
        thing = _thing(self.noun, self.colour)
        if self.step is not None:
            return f"drawing {thing}, step {self.step}: {STEP_TEXTS[self.noun or ''][self.step - 1]}"
        if self.second is not None:
            return f"a rendered {self.colour} {self.noun} with {_thing(*self.second)}"
        return (PLAIN if self.style is None else STYLED)[template].format(thing=thing, style=self.style)


def parse(text: str) -> Caption:
    """The caption that `text` words, in any template.

    Raises:
        UserError: names the first thing that was not understood.
    """
    for pattern, style in _PATTERNS:
        if match := pattern.fullmatch(text):
            said: Callable[[str], Any] = match.groupdict().get
            second = (said("second"), said("second_colour")) if said("second") else None
            step = int(said("step")) if said("step") else None
            try:
                colour = said("colour") or said("hue")
                caption = Caption(said("noun"), colour, style or said("style"), step=step, second=second)
                if step is not None and caption.text() != text:
                    raise UserError(f"step {match['step']} of a {caption.noun} reads {caption.text()!r}")
            except UserError as error:
                raise UserError(f"caption {text!r}: {error}") from None
            return caption
    raise UserError(f"caption {text!r}: not understood; captions read like {Caption('star', 'red', 'neon').text()!r}")


@cache
def picture_captions(split: Split) -> tuple[Caption, ...]:
    """All captions of a split that name the shape, the colour and the style of a picture."""
    captions = (Caption(noun, colour, style) for noun in SHAPES for colour in COLOUR_NAMES for style in STYLES)
    return tuple(caption for caption in captions if caption.split == split)


def captions_naming(named: Collection[str], split: Split) -> tuple[Caption, ...]:
    """All captions of pictures that name these attributes: full ones of the split, open ones whatever the split.

    An open caption is fulfilled by combinations of training alone, in every split: of a "star" all that a test has of
    its own is other pictures.
    """
    if len(named) == len(ATTRIBUTES):
        return picture_captions(split)
    return tuple(dict.fromkeys(caption.naming(named) for caption in picture_captions("train")))


@cache
def completions(caption: Caption) -> tuple[Caption, ...]:
    """What pictures of an open caption may show: the combinations of training that it leaves room for."""
    if not caption.open:
        return (caption,)
    return tuple(full for full in picture_captions("train") if full.naming(caption.named) == caption)


@cache
def view_captions(split: Split) -> tuple[Caption, ...]:
    """All captions of rendered solids of a split, the second solid in another colour."""
    things = [(noun, colour) for noun in SOLIDS for colour in COLOUR_NAMES]
    captions = (
        Caption(*main, RENDERED, second=second) for main, second in product(things, things) if second[1] != main[1]
    )
    return tuple(caption for caption in captions if caption.split == split)


def procedure_captions(split: Split) -> tuple[tuple[Caption, ...], ...]:
    """All procedures of a split, each the captions of its steps in order."""
    procedures = (
        tuple(Caption(noun, colour, CONSTRUCTION, step=step) for step in range(1, len(STEP_TEXTS[noun]) + 1))
        for noun in PROCEDURES
        for colour in COLOUR_NAMES
    )
    return tuple(steps for steps in procedures if steps[0].split == split)


def _thing(noun: str | None, colour: str | None) -> str:
    if noun is None:
        return ANYTHING if colour is None else f"{ANYTHING} {colour}"
    words = noun if colour is None else f"{colour} {noun}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _expect(kind: str, word: str | None, known: Collection[str]) -> None:
    if word is not None and word not in known:
        raise UserError(f"unknown {kind} {word!r}; expected one of {', '.join(known)}")


_NAMED = r"(?P<colour>\w+) (?P<noun>\w+)"
_THING = rf"(?:{ANYTHING}(?: (?P<hue>\w+))?|an? (?:(?P<colour>\w+) )?(?P<noun>\w+))"
# The order matters: a view would read as a picture in a style named "rendered".
_PATTERNS = tuple(
    (re.compile(pattern), style)
    for pattern, style in (
        (rf"drawing an? {_NAMED}, step (?P<step>\d{{1,3}}): .*", CONSTRUCTION),
        (rf"a rendered {_NAMED} with an? (?P<second_colour>\w+) (?P<second>\w+)", RENDERED),
        *((each.format(thing=_THING, style=r"(?P<style>\w+)"), None) for each in (*STYLED, *reversed(PLAIN))),
    )
)
