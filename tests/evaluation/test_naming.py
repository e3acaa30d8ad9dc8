"""Who reads given pictures into words."""

import numpy as np
import torch

from m2m.data.shards import ImageSet
from m2m.evaluation.measure import Readings
from m2m.evaluation.naming import PaintedSets, agreed_captions
from m2m.world.vocabulary import ALL_STYLES, COLOUR_NAMES, NOUNS, WORDS


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
    readings = Readings(torch.zeros(1, 2, 4), logits, torch.zeros(1, 2, 0), np.zeros((1, 2)))
    sets = (ImageSet(id="one", caption="a star", images=np.zeros((5, 64, 64, 3), np.uint8)),)
    painted = PaintedSets(sets, readings, 2, WORDS, seed=0)
    first = painted[0]
    assert first.images.shape == (2, 64, 64, 3)
    assert not np.array_equal(first.images[0], first.images[1]), "each has its own place"
    np.testing.assert_array_equal(first.images, painted[0].images)
