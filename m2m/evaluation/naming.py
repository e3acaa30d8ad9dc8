"""Two rivals that read given pictures into words: name what they agree on and draw that, or paint them anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from m2m import seeds
from m2m.data.shards import ImageSet
from m2m.evaluation.measure import Readings
from m2m.evaluation.sampling import Starts
from m2m.world.grammar import Caption
from m2m.world.pictures import Variation, paint
from m2m.world.vocabulary import ATTRIBUTES, PICTURE_WORDS


def agreed_captions(given: NDArray[np.int64], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Of each set, (sets, n, 3), the caption that names what all given pictures show; empty if nothing."""
    captions = []
    for values in given:
        told: list[str | None] = []
        for column, attribute in zip(values.T, ATTRIBUTES, strict=True):
            word = classes[attribute][column[0]]
            told.append(word if (column == column[0]).all() and word in PICTURE_WORDS[attribute] else None)
        noun, colour, style = told
        captions.append(Caption(noun, colour, style).text() if any(told) else "")
    return captions


class PaintedSets:
    """Sets whose first pictures are painted anew: what the class network reads in each, in another place and size.

    Args:
        readings: of the sets' pictures.
    """

    def __init__(
        self, sets: Starts, readings: Readings, given: int, classes: Mapping[str, Sequence[str]], *, seed: int
    ) -> None:
        self._sets, self._given, self._seed = sets, given, seed
        self._words: list[NDArray[np.str_]] = []  # of each attribute, (sets, given)
        for attribute in ATTRIBUTES:
            words = PICTURE_WORDS[attribute]
            numbers = [list(classes[attribute]).index(word) for word in words]
            likeliest = readings.logits[attribute][:, :given, numbers].argmax(dim=2).cpu().numpy()
            self._words.append(np.array(words)[likeliest])

    def __getitem__(self, index: int, /) -> ImageSet:
        """One set; it is the same each time."""
        member, images = self._sets[index], []
        for place in range(self._given):
            noun, colour, style = (str(words[index, place]) for words in self._words)
            random = np.random.default_rng(seeds.derive(self._seed, "paint anew", member.id, place))
            images.append(paint(Caption(noun, colour, style), Variation.draw(random)))
        return replace(member, images=np.stack(images), latents=None, extras={})
