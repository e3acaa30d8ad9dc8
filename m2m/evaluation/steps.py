"""How well drawn steps go on with a procedure: FID, CLIP, and whether each shows the step that comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2m.data.shards import ImageSet
from m2m.evaluation.measure import PICTURES_AT_ONCE
from m2m.evaluation.networks import Networks
from m2m.evaluation.scores import fid
from m2m.evaluation.table import by_position

Pictures = Sequence[NDArray[np.uint8]]
"""Of each set the pictures after the given one, (n, H, W, 3); sets differ in length."""
STEP = "step"
"""The head of the class network that counts the steps of a procedure."""


@dataclass(frozen=True)
class Seen:
    """What the networks make of the pictures of some sets, one row a picture."""

    place: Tensor
    """(n,) how many pictures of its set stand before it, the given one included"""
    features: Tensor
    """(n, F)"""
    closeness: Tensor
    """(n,) 100 · cosine of its CLIP embedding to that of the given picture"""
    steps: Tensor | None
    """(n,) the steps that it shows, as the class network reads them; None if that reads none"""


def measure(members: Sequence[ImageSet], tuned: Pictures, untuned: Pictures, networks: Networks) -> dict[str, float]:
    """Flat numbers of what the fine-tuned model drew after the first picture of each set, and of both baselines."""
    given, real = [one.images[:1] for one in members], [one.images[1:] for one in members]
    repeated = [np.repeat(one.images[:1], len(one.images) - 1, axis=0) for one in members]
    true = look(real, given, networks)
    numbers = numbers_of(true, true, "baseline/true/")
    for prefix, pictures in (("", tuned), ("baseline/untuned/", untuned), ("baseline/repeated/", repeated)):
        numbers |= numbers_of(look(pictures, given, networks), true, prefix)
    return numbers


def of_model(members: Sequence[ImageSet], drawn: Pictures, networks: Networks) -> dict[str, float]:
    """Flat numbers of a model alone, of what it drew after the first picture of each set."""
    given, real = [one.images[:1] for one in members], [one.images[1:] for one in members]
    return numbers_of(look(drawn, given, networks), look(real, given, networks))


@torch.no_grad()
def look(pictures: Pictures, given: Pictures, networks: Networks) -> Seen:
    """Shows pictures to both networks.

    Args:
        given: of each set the picture that its others follow, (1, H, W, 3).
    """
    device = networks.device
    rows = _tensor(np.concatenate(list(pictures)), device)  # (n, 3, H, W)
    parts = [networks.inception(part) for part in _in_parts(rows)]
    steps = None
    if STEP in networks.inception.classes:
        counts = torch.tensor([int(name) for name in networks.inception.classes[STEP]])
        steps = counts[torch.cat([part.logits[STEP] for part in parts]).argmax(dim=1).cpu()]
    lengths = torch.tensor([len(one) for one in pictures])
    first = _embed(_tensor(np.concatenate([one[:1] for one in given]), device), networks)  # (sets, D)
    first = first.repeat_interleave(lengths, dim=0)  # (n, D)
    return Seen(
        place=torch.cat([torch.arange(1, int(length) + 1) for length in lengths]),
        features=torch.cat([part.features for part in parts]).cpu(),
        closeness=100 * (_embed(rows, networks) * first).sum(dim=1),
        steps=steps,
    )


def numbers_of(seen: Seen, real: Seen, prefix: str = "") -> dict[str, float]:
    """Flat numbers, by position where there is a value for each; 01 is the first after the given picture.

    FID compares all pictures with all true ones: by position they would be too few in the longer procedures.
    """
    found = {"clip_image_image": seen.closeness}
    if seen.steps is not None:
        found["step_order"] = (seen.steps == seen.place + 1).double()
    numbers = {f"{prefix}fid/mean": fid(seen.features, real.features)}
    for name, values in found.items():
        positions = [float(values[seen.place == place].mean()) for place in sorted(set(seen.place.tolist()))]
        # Positions of longer procedures have fewer pictures: the mean is that of all pictures alike.
        numbers |= {**by_position(f"{prefix}{name}", positions), f"{prefix}{name}/mean": float(values.mean())}
    return numbers


def _embed(pictures: Tensor, networks: Networks) -> Tensor:
    return torch.cat([networks.clip.embed(part) for part in _in_parts(pictures)]).double().cpu()


def _in_parts(pictures: Tensor) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = pictures.split(PICTURES_AT_ONCE)  # type: ignore[no-untyped-call]
    return parts


def _tensor(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).contiguous().to(device)
