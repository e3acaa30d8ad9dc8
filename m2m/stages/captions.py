"""Stage ``captions``: writes what the sets will show, from the grammar of the embedded world or from Conceptual 12M."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

from m2m.data import cc12m
from m2m.data.captions import Caption, CaptionSource, write_captions
from m2m.manifest import Split
from m2m.params import Cc12mCaptions, WorldCaptions
from m2m.seeds import derive
from m2m.world.grammar import Caption as WorldCaption
from m2m.world.grammar import picture_captions, procedure_captions, view_captions
from m2m.world.rounds import rounds

WORLD = CaptionSource(name="the embedded world", licence="Apache-2.0, as the project")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaptionsReport:
    """What the stage wrote, and which lines of its source it could not use."""

    train: int
    validation: int
    test: int
    bad: int = 0
    examples: tuple[str, ...] = ()


def run(params: WorldCaptions | Cc12mCaptions, *, out: Path) -> CaptionsReport:
    """Writes `out` (Parquet: id, caption, split), whole or not at all; the same input gives the same bytes.

    Raises:
        UserError: the source cannot be read or has too many bad lines or too few captions, or the disk refuses.
    """
    if isinstance(params, WorldCaptions):
        write_captions(out, _world_captions(params), WORLD)
        return CaptionsReport(train=params.train, validation=params.validation, test=params.test)
    selection = cc12m.select_lines(params)
    if selection.bad:
        _log.warning("%s: left out %d bad lines: %s", params.path, selection.bad, "; ".join(selection.examples))
    write_captions(out, cc12m.selected_captions(params, selection), cc12m.SOURCE)
    return CaptionsReport(
        train=params.train,
        validation=params.validation,
        test=params.test,
        bad=selection.bad,
        examples=selection.examples,
    )


def _world_captions(params: WorldCaptions) -> Iterator[Caption]:
    """Training captions of all kinds in one shuffled order, those of the other splits of pictures."""
    pictures = params.train - params.views - params.steps
    steps = tuple(chain.from_iterable(procedure_captions("train")))
    texts = [
        *_texts(params.seed, "train", picture_captions("train"), pictures),
        *_texts(params.seed, "train", view_captions("train"), params.views),
        *_texts(params.seed, "train", steps, params.steps),
    ]
    Random(derive(params.seed, "order")).shuffle(texts)
    yield from _numbered("train", texts)
    others: tuple[tuple[Split, int], ...] = (("validation", params.validation), ("test", params.test))
    for split, count in others:
        yield from _numbered(split, _texts(params.seed, split, picture_captions(split), count))


def _texts(seed: int, split: Split, combinations: Sequence[WorldCaption], count: int) -> Iterator[str]:
    """`count` captions, spread evenly over combinations.

    Each round goes through all combinations in an order of its own, and from round to round a combination takes its
    next wording.
    """
    first_wording = Random(derive(seed, "wording", split))
    wordings = [first_wording.randrange(combination.templates) for combination in combinations]
    for turn, index in rounds(seed, split, len(combinations), count):
        combination = combinations[index]
        yield combination.text((wordings[index] + turn) % combination.templates)


def _numbered(split: Split, texts: Iterable[str]) -> Iterator[Caption]:
    for number, text in enumerate(texts):
        yield Caption(f"world-{split}-{number:06}", text, split)
