"""Everything a caption of the embedded world can name, and which combinations training never sees."""

from collections.abc import Mapping
from types import MappingProxyType

from m2m.manifest import Split

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow")

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (218, 38, 42),
        "orange": (246, 134, 20),
        "yellow": (250, 218, 40),
        "green": (44, 164, 72),
        "cyan": (38, 198, 214),
        "blue": (36, 84, 220),
        "purple": (128, 44, 178),
        "pink": (246, 118, 186),
    }
)
"""Name to 8-bit RGB. Neighbours in hue also differ in lightness, so that blur and shade leave them apart."""

STYLES = ("flat", "sketch", "neon", "striped", "comic", "sunset")

SOLIDS = ("cube", "sphere", "cone", "cylinder", "pyramid", "torus")

STEP_TEXTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "house": ("the walls", "the roof", "the door", "the windows", "the sun"),
        "flower": ("the petals", "the centre", "the stem", "the leaves", "the pot"),
        "robot": ("the body", "the head", "the legs", "the arms", "the face"),
        "tree": ("the crown", "the trunk", "the fruit", "the meadow", "the cloud"),
        "boat": ("the hull", "the sea", "the mast", "the sail", "the jib", "the sun"),
        "rocket": ("the body", "the nose", "the fins", "the window", "the flame"),
        "cake": ("the base", "the icing", "the plate", "the candles", "the balloon"),
        "car": ("the body", "the wheels", "the windows", "the road", "the cloud"),
    }
)
"""Procedure to the names of its steps, in order."""

PROCEDURES = tuple(STEP_TEXTS)
MAX_STEPS = max(map(len, STEP_TEXTS.values()))

RENDERED = "rendered"
CONSTRUCTION = "construction"

NOUNS = SHAPES + SOLIDS + PROCEDURES
COLOUR_NAMES = tuple(COLOURS)
ALL_STYLES = (*STYLES, RENDERED, CONSTRUCTION)

WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType({"noun": NOUNS, "colour": COLOUR_NAMES, "style": ALL_STYLES})
"""All words for each attribute of what is shown."""
PICTURE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"noun": SHAPES, "colour": COLOUR_NAMES, "style": STYLES}
)
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
