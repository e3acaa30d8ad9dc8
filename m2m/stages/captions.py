"""Stage ``captions``: writes what the sets will show, from the grammar of the embedded world or from Conceptual 12M."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random

from m2m.data.captions import CC12M, CaptionRow, select_lines, selected_captions, write_captions
from m2m.manifest import Split
from m2m.params import Cc12mCaptions, WorldCaptions
from m2m.seeds import derive, rounds
from m2m.world.grammar import KINDS, WORLD, Caption, captions_naming, procedure_captions, view_captions

_log = logging.getLogger(__name__)


def run(params: WorldCaptions | Cc12mCaptions, *, out: Path) -> int:
    """Writes `out` (Parquet: id, caption, split), whole or not at all; the same input gives the same bytes.

    Returns:
        How many lines of the source it left out: bad ones, and captions that the blocklist blocks.

    Raises:
        UserError: the source cannot be read or has too many bad lines or too few captions, or the disk refuses.
    """
    parts = (params.train, *params.more) if params.more else ()
    if isinstance(params, WorldCaptions):
        write_captions(out, _world_captions(params), replace(WORLD, mix=_mix(params)), parts=parts)
        return 0
    selection = select_lines(params)
    if selection.bad:
        _log.warning("%s: left out %d bad lines: %s", params.path, selection.bad, "; ".join(selection.examples))
    if params.blocklist is not None:
        _log.warning("%s: left out %d captions for %s", params.path, selection.blocked, params.blocklist)
    write_captions(out, selected_captions(params, selection), replace(CC12M, mix=selection.mix), parts=parts)
    return selection.bad + selection.blocked


def _world_captions(params: WorldCaptions) -> Iterator[CaptionRow]:
    """Captions of each split in one shuffled order: of pictures, for training of rendered objects and steps as well.

    Behind them come those by which training grew, of pictures, each extension in an order of its own.
    """
    steps = tuple(chain.from_iterable(procedure_captions("train")))
    texts: dict[Split, list[str]] = {
        "train": [
            *_picture_texts(params.seed, "train", params.train - params.views - params.steps),
            *_texts(params.seed, "train", view_captions("train"), params.views),
            *_texts(params.seed, "train", steps, params.steps),
        ],
        "validation": _picture_texts(params.seed, "validation", params.validation),
        "test": _picture_texts(params.seed, "test", params.test),
    }
    for split, of_split in texts.items():
        Random(derive(params.seed, "order", split)).shuffle(of_split)
        for number, text in enumerate(of_split):
            yield CaptionRow(f"world-{split}-{number:06}", text, split)
    number = params.train
    for extension, count in enumerate(params.more):
        seed = derive(params.seed, "more", extension)
        for text in Random(derive(seed, "order")).sample(_picture_texts(seed, "train", count), count):
            yield CaptionRow(f"world-train-{number:06}", text, "train")
            number += 1


def _picture_texts(seed: int, split: Split, count: int) -> list[str]:
    """`count` captions of pictures, as many of each kind: full ones first where the number cannot be divided."""
    texts: list[str] = []
    for place, named in enumerate(reversed(KINDS)):
        share = count // len(KINDS) + (place < count % len(KINDS))
        texts += _texts(seed, split, captions_naming(named, split), share)
    return texts


def _mix(params: WorldCaptions) -> str:
    """The kinds of captions and their shares, for the dataset card."""
    kinds = ", ".join(" and ".join(named) for named in KINDS)
    return (
        f"as many captions of pictures of each kind, which name {kinds}; what they leave open varies freely over the "
        "combinations of training, and those that validation and test name in full are in no other split. "
        f"Of the {params.train} for training {params.views} tell of rendered objects and {params.steps} of steps of "
        "procedures, and leave nothing open"
        + (f"; {sum(params.more)} more of pictures came later" if params.more else "")
    )


def _texts(seed: int, split: Split, combinations: Sequence[Caption], count: int) -> Iterator[str]:
    """`count` captions, spread evenly over combinations.

    Each round goes through all combinations in an order of its own, and from round to round a combination takes its
    next wording.
    """
    first_wording = Random(derive(seed, "wording", split))
    wordings = [first_wording.randrange(combination.templates) for combination in combinations]
    for turn, index in rounds(seed, split, len(combinations), count):
        combination = combinations[index]
        yield combination.text((wordings[index] + turn) % combination.templates)
