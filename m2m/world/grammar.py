"""Captions: a meaning, its wordings, and the way back from the words.

A caption may leave things open, as real ones do: "a star", "something blue, neon". What it does not name is drawn
freely, so that only several pictures of a set tell what they share.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Self

from m2m.errors import UserError
from m2m.manifest import Origin, Split
from m2m.world.vocabulary import (
    ATTRIBUTES,
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
        _expect("colour", self.colour, COLOUR_NAMES)
        if self.style == RENDERED:
            _expect("solid", self.noun, SOLIDS)
        elif self.style == CONSTRUCTION:
            _expect("procedure", self.noun, PROCEDURES)
        else:
            _expect("style", self.style, STYLES)
            _expect("shape", self.noun, SHAPES)
        if self.style in (RENDERED, CONSTRUCTION) and self.open:
            raise UserError(f"a caption in style {self.style} names its {' and '.join(self.open)}")
        if (self.second is not None) != (self.style == RENDERED):
            raise UserError(f"{self.noun} in style {self.style}: solids have a second one, and only they")
        if self.second is not None:
            _expect("solid", self.second[0], SOLIDS)
            _expect("colour", self.second[1], COLOUR_NAMES)
        if (self.step is not None) != (self.style == CONSTRUCTION):
            raise UserError(f"{self.noun} in style {self.style}: procedures have a step, and only they")
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
    for pattern, read in _READERS:
        if match := pattern.fullmatch(text):
            try:
                return read(match)
            except UserError as error:
                raise UserError(f"caption {text!r}: {error}") from None
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


def _read_procedure(words: re.Match[str]) -> Caption:
    caption = Caption(words["noun"], words["colour"], CONSTRUCTION, step=int(words["step"]))
    if caption.text() != words.string:
        raise UserError(f"step {words['step']} of a {words['noun']} reads {caption.text()!r}")
    return caption


def _read_view(words: re.Match[str]) -> Caption:
    return Caption(words["noun"], words["colour"], RENDERED, second=(words["second"], words["second_colour"]))


def _read_picture(words: re.Match[str]) -> Caption:
    said = words.groupdict()
    return Caption(said["noun"], said["colour"] or said["hue"], said.get("style"))


_FULL = r"an? (?P<colour>\w+) (?P<noun>\w+)"
_THING = rf"(?:{ANYTHING}(?: (?P<hue>\w+))?|an? (?:(?P<colour>\w+) )?(?P<noun>\w+))"
# The order matters: a view would read as a picture in a style named "rendered".
_READERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Caption]], ...] = (
    (re.compile(rf"drawing {_FULL}, step (?P<step>\d{{1,3}}): .*"), _read_procedure),
    (
        re.compile(r"a rendered (?P<colour>\w+) (?P<noun>\w+) with an? (?P<second_colour>\w+) (?P<second>\w+)"),
        _read_view,
    ),
    *(
        (re.compile(template.format(thing=_THING, style=r"(?P<style>\w+)")), _read_picture)
        for template in (*STYLED, *reversed(PLAIN))
    ),
)
