"""Captions: a meaning, its wordings, and the way back from the words."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import get_args

from m2m.errors import UserError
from m2m.manifest import Split
from m2m.world.vocabulary import (
    COLOUR_NAMES,
    CONSTRUCTION,
    PROCEDURES,
    RENDERED,
    SHAPES,
    SOLIDS,
    STEP_TEXTS,
    STYLES,
    split_of,
)

PICTURE_TEMPLATES = ("{thing}, {style}", "a {style} drawing of {thing}", "{thing} in {style} style")


@dataclass(frozen=True)
class Caption:
    """What a picture shows: a shape in a style, a rendered solid with a second one, or a step of a procedure.

    Raises:
        UserError: a word is not in the vocabulary, or the words do not belong together.
    """

    noun: str
    colour: str
    style: str
    step: int | None = None
    """Procedures only: the steps drawn so far, from 1."""
    second: tuple[str, str] | None = None
    """Solids only: noun and colour of the smaller solid fixed to the side of the main one."""

    def __post_init__(self) -> None:
        _expect("colour", self.colour, COLOUR_NAMES)
        if self.style == RENDERED:
            _expect("solid", self.noun, SOLIDS)
        elif self.style == CONSTRUCTION:
            _expect("procedure", self.noun, PROCEDURES)
        else:
            _expect("style", self.style, STYLES)
            _expect("shape", self.noun, SHAPES)
        if (self.second is not None) != (self.style == RENDERED):
            raise UserError(f"{self.noun} in style {self.style}: solids have a second one, and only they")
        if self.second is not None:
            _expect("solid", self.second[0], SOLIDS)
            _expect("colour", self.second[1], COLOUR_NAMES)
        if (self.step is not None) != (self.style == CONSTRUCTION):
            raise UserError(f"{self.noun} in style {self.style}: procedures have a step, and only they")
        if self.step is not None and not 1 <= self.step <= len(STEP_TEXTS[self.noun]):
            raise UserError(f"step {self.step} of a {self.noun}: expected 1 to {len(STEP_TEXTS[self.noun])}")

    @property
    def templates(self) -> int:
        """How many wordings `text` knows for this caption."""
        return len(PICTURE_TEMPLATES) if self.style in STYLES else 1

    @property
    def split(self) -> Split:
        """What it is for: a view for the test if either of its solids is, else for validation if either is."""
        splits = [split_of(self.noun, self.colour, self.style)]
        if self.second is not None:
            splits.append(split_of(*self.second, self.style))
        return max(splits, key=get_args(Split).index)

    def text(self, template: int = 0) -> str:
        """The caption in words: lower case, ASCII.

        Raises:
            IndexError: there is no such template.
        """
        if not 0 <= template < self.templates:
            raise IndexError(f"template {template}: {self.style} captions have {self.templates}")
        if self.step is not None:
            done = STEP_TEXTS[self.noun][self.step - 1]
            return f"drawing {_thing(self.noun, self.colour)}, step {self.step}: {done}"
        if self.second is not None:
            return f"a rendered {self.colour} {self.noun} with {_thing(*self.second)}"
        return PICTURE_TEMPLATES[template].format(thing=_thing(self.noun, self.colour), style=self.style)


def parse(text: str) -> Caption:
    """The caption that `text` words, in any template.

    Raises:
        UserError: names the first thing that was not understood.
    """
    for pattern, read in _READERS:
        if match := pattern.fullmatch(text):
            try:
                return read(match)
            except UserError as error:
                raise UserError(f"caption {text!r}: {error}") from None
    raise UserError(f"caption {text!r}: not understood; captions read like {Caption('star', 'red', 'neon').text()!r}")


def picture_captions(split: Split) -> tuple[Caption, ...]:
    """All captions of shapes in styles that are for one split."""
    captions = (Caption(noun, colour, style) for noun in SHAPES for colour in COLOUR_NAMES for style in STYLES)
    return tuple(caption for caption in captions if caption.split == split)


def view_captions(split: Split) -> tuple[Caption, ...]:
    """All captions of rendered solids that are for one split, the second solid in another colour.

    Training sees no solid in a colour that is for another split.
    """
    things = [(noun, colour) for noun in SOLIDS for colour in COLOUR_NAMES]
    captions = (
        Caption(noun, colour, RENDERED, second=second)
        for noun, colour in things
        for second in things
        if second[1] != colour
    )
    return tuple(caption for caption in captions if caption.split == split)


def procedure_captions(split: Split) -> tuple[tuple[Caption, ...], ...]:
    """All procedures that are for one split, each the captions of its steps in order."""
    procedures = (
        tuple(Caption(noun, colour, CONSTRUCTION, step=step) for step in range(1, len(STEP_TEXTS[noun]) + 1))
        for noun in PROCEDURES
        for colour in COLOUR_NAMES
    )
    return tuple(steps for steps in procedures if steps[0].split == split)


def _thing(noun: str, colour: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {noun}"


def _expect(kind: str, word: str, known: Collection[str]) -> None:
    if word not in known:
        raise UserError(f"unknown {kind} {word!r}; expected one of {', '.join(known)}")


def _read_procedure(words: re.Match[str]) -> Caption:
    caption = Caption(words["noun"], words["colour"], CONSTRUCTION, step=int(words["step"]))
    if caption.text() != words.string:
        raise UserError(f"step {words['step']} of a {words['noun']} reads {caption.text()!r}")
    return caption


def _read_view(words: re.Match[str]) -> Caption:
    return Caption(words["noun"], words["colour"], RENDERED, second=(words["second"], words["second_colour"]))


def _read_picture(words: re.Match[str]) -> Caption:
    return Caption(words["noun"], words["colour"], words["style"])


_THING = r"an? (?P<colour>\w+) (?P<noun>\w+)"
# The order matters: a view would read as a picture in a style named "rendered".
_READERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Caption]], ...] = (
    (re.compile(rf"drawing {_THING}, step (?P<step>\d{{1,3}}): .*"), _read_procedure),
    (
        re.compile(r"a rendered (?P<colour>\w+) (?P<noun>\w+) with an? (?P<second_colour>\w+) (?P<second>\w+)"),
        _read_view,
    ),
    *(
        (re.compile(template.format(thing=_THING, style=r"(?P<style>\w+)")), _read_picture)
        for template in PICTURE_TEMPLATES
    ),
)
