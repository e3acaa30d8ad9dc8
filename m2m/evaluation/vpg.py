"""Visual procedures: how well drawn steps go on, by FID, CLIP, and whether each shows the step that comes next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2m.evaluation.continuations import Measured, Starts, Subject
from m2m.evaluation.figures import (
    Statistic,
    by_caption,
    by_position,
    caption_weights,
    difference,
    estimated,
    interval,
    require_gate,
    share,
)
from m2m.evaluation.metrics import fid
from m2m.evaluation.networks import Networks, some_at_once
from m2m.params import EvaluateVpg

STEP = "step"
"""The head of the class network that counts the steps of a procedure."""


def measure(subject: Subject[EvaluateVpg]) -> Measured:
    """Draws after the first picture of each set to its end, by the model that it comes from too, and compares."""
    params, networks, test = subject.params, subject.networks, subject.sets["test"]
    tuned = subject.after("tuned-given-1", test, count=params.sets, given=1)
    untuned = subject.after("untuned-given-1", test, count=params.sets, given=1, untuned=True)
    subject.draw([tuned, untuned])
    numbers = beside_baselines(params, test, tuned.by_set(), untuned.by_set(), networks)

    validation, count = subject.sets["validation"], params.validation_sets
    for_gate = subject.after("validation/tuned-given-1", validation, count=count, given=1)
    subject.draw([for_gate], ", validation")
    first, real = embed_first(validation, count, networks), (validation[place].images[1:] for place in range(count))
    of_gate = numbers_of(look(for_gate.by_set(), first, networks), look(real, first, networks))
    numbers |= {f"validation/{key}": value for key, value in of_gate.items()}
    require_gate(params.gate, numbers, task="vpg")
    return Measured(
        numbers=numbers,
        headlines=[
            *("step_order/mean", "fid/mean", "clip_image_image/mean"),
            *("baseline/untuned/step_order/mean", "baseline/untuned/fid/mean"),
        ],
        about={"images": tuned.pictures + params.sets, **networks.recorded("inception", "clip")},
        galleries={"given-1": tuned.rows(params.gallery_sets)},
    )


@dataclass(frozen=True)
class Seen:
    """What the networks make of the pictures of some sets, one row a picture."""

    of_set: Tensor
    """(n,) the number of its set"""
    place: Tensor
    """(n,) how many pictures of its set stand before it, the given one included"""
    features: Tensor
    """(n, F)"""
    closeness: Tensor
    """(n,) 100 · cosine of its CLIP embedding to that of the given picture"""
    steps: Tensor | None
    """(n,) the steps that it shows, as the class network reads them; None if that reads none"""

    @property
    def in_order(self) -> Tensor | None:
        """(n,) whether it shows the step that comes next."""
        return None if self.steps is None else (self.steps == self.place + 1).double()


def beside_baselines(
    params: EvaluateVpg,
    sets: Starts,
    tuned: Iterable[NDArray[np.uint8]],
    untuned: Iterable[NDArray[np.uint8]],
    networks: Networks,
) -> dict[str, float]:
    """Flat numbers of what the fine-tuned model drew after the first picture of each set, and of both baselines.

    How often a step is the next one has a 95 % interval, and so has the difference to the model that is not fine-tuned.
    Both are over things: sets of one thing are no independent witnesses.

    Args:
        tuned, untuned: of each set what was drawn, (n, H, W, 3); sets differ in length.
    """
    count = params.sets
    first = embed_first(sets, count, networks)
    true = look((sets[place].images[1:] for place in range(count)), first, networks)
    repeated = (np.repeat(one.images[:1], len(one.images) - 1, axis=0) for one in map(sets.__getitem__, range(count)))
    ours, theirs = look(tuned, first, networks), look(untuned, first, networks)
    numbers = numbers_of(true, true, "baseline/true/")
    for prefix, seen in (
        *(("", ours), ("baseline/untuned/", theirs)),
        ("baseline/repeated/", look(repeated, first, networks)),
    ):
        numbers |= numbers_of(seen, true, prefix)
    if ours.in_order is None or theirs.in_order is None:
        return numbers
    things = np.unique([sets[place].caption for place in range(count)], return_inverse=True)[1]
    weights = caption_weights(int(things.max()) + 1, resamples=params.bootstrap, seed=params.seed)
    after, before = _of_things(ours.in_order, ours, things), _of_things(theirs.in_order, theirs, things)
    numbers |= estimated("step_order", interval(after, weights), mean="/mean")
    numbers |= estimated("difference/untuned/step_order", difference(after, before, weights))
    return numbers


def _of_things(values: Tensor, seen: Seen, things: NDArray[np.int64]) -> Statistic:
    """The mean of values (n,) over all pictures, where some things count oftener than others."""
    of_pictures = things[seen.of_set.numpy()]
    return share(by_caption(values.numpy(), of_pictures), by_caption(np.ones(len(values)), of_pictures))


@torch.no_grad()
def embed_first(sets: Starts, count: int, networks: Networks) -> Tensor:
    """CLIP's embeddings (sets, D) of the first pictures of the first sets."""
    given = some_at_once(sets[place].images[:1] for place in range(count))
    return torch.cat([_embed(_tensor(some, networks), networks) for some in given])


@torch.no_grad()
def look(pictures: Iterable[NDArray[np.uint8]], first: Tensor, networks: Networks) -> Seen:
    """Shows pictures to the class network and CLIP, some at a time: only numbers stay in memory.

    Args:
        pictures: of each set those after the given one, (n, H, W, 3).
        first: embeddings (sets, D) of the given ones.
    """
    lengths: list[int] = []
    features, steps, embeddings = [], [], []
    for some in some_at_once(pictures, lengths):
        rows = _tensor(some, networks)  # (n, 3, H, W)
        read = networks.inception(rows)
        features.append(read.features.cpu())
        if STEP in networks.inception.classes:
            steps.append(read.logits[STEP].argmax(dim=1).cpu())
        embeddings.append(_embed(rows, networks))
    counts = torch.tensor([int(name) for name in networks.inception.classes.get(STEP, ())])
    given = first.repeat_interleave(torch.tensor(lengths), dim=0)  # (n, D)
    return Seen(
        of_set=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        place=torch.cat([torch.arange(1, length + 1) for length in lengths]),
        features=torch.cat(features),
        closeness=100 * (torch.cat(embeddings) * given).sum(dim=1),
        steps=counts[torch.cat(steps)] if steps else None,
    )


def numbers_of(seen: Seen, real: Seen, prefix: str = "") -> dict[str, float]:
    """Flat numbers, by position where there is a value for each; 01 is the first after the given picture.

    FID compares all pictures with all true ones: by position they would be too few in the longer procedures.
    """
    found = {"clip_image_image": seen.closeness}
    if seen.in_order is not None:
        found["step_order"] = seen.in_order
    numbers = {f"{prefix}fid/mean": fid(seen.features, real.features)}
    for name, values in found.items():
        positions = [float(values[seen.place == place].mean()) for place in sorted(set(seen.place.tolist()))]
        # Positions of longer procedures have fewer pictures: the mean is that of all pictures alike.
        numbers |= {**by_position(f"{prefix}{name}", positions), f"{prefix}{name}/mean": float(values.mean())}
    return numbers


def _embed(pictures: Tensor, networks: Networks) -> Tensor:
    return networks.clip.embed(pictures).double().cpu()


def _tensor(pictures: NDArray[np.uint8], networks: Networks) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(networks.device)
