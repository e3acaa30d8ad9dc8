"""Novel views: how close drawn ones come to the true ones, by PSNR, SSIM and a perceptual distance, by angle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from m2m.contact_sheet import animation
from m2m.errors import UserError
from m2m.evaluation.continuations import Measured, Starts, Subject, continue_sets
from m2m.evaluation.figures import estimated, paired_interval, require_gate
from m2m.evaluation.networks import Networks
from m2m.evaluation.observations import some_at_once
from m2m.params import EvaluateNvs

METRICS = ("psnr", "ssim", "perceptual")
ANGLES = (0, 30, 60, 90, 180)
"""Degrees; edges of the bins by angle from the nearest given view, each bin without its upper one but the last."""
MOST_PSNR = 100.0
"""dB; what equal pictures count, whose PSNR is infinite: one in a mean would hide all others."""
TURNED, FRAMES = 4, 12
"""Objects of the turntable, and views of each."""


@dataclass(frozen=True)
class Nearest:
    """Of each view that is to be drawn, the given view whose camera stands nearest in direction."""

    index: NDArray[np.int64]
    """(sets, views), among the given ones"""
    angle: NDArray[np.float64]
    """(sets, views), degrees between the two directions from the object"""


def require(subject: Subject[EvaluateNvs]) -> None:
    """Says what cannot be measured before anything is drawn for it.

    Raises:
        UserError: there are not more views than given ones, or sets differ in length, or one has no cameras.
    """
    params, sets = subject.params, subject.sets
    few, many = params.given
    for of_split, count in ((sets["test"], params.sets), (sets["validation"], params.validation_sets)):
        views = {len(of_split[place].cameras()) for place in range(count)}
        if len(views) > 1 or min(views) <= many or many <= few:
            raise UserError(
                f"evaluate.nvs.given is [{few}, {many}]; expected fewer and more, of sets that all have as many "
                f"views, more than {many}"
            )


def measure(subject: Subject[EvaluateNvs]) -> Measured:
    """Draws after fewer and after more given views, also by the model that knows no poses, and compares."""
    params, networks, test = subject.params, subject.networks, subject.sets["test"]
    few, _ = params.given
    tuned = {
        given: subject.after(f"tuned-given-{given}", test, count=params.sets, given=given) for given in params.given
    }
    untuned = subject.after(f"untuned-given-{few}", test, count=params.sets, given=few, pipeline=subject.untuned)
    subject.draw([*tuned.values(), untuned])
    drawn = {given: draw.by_set() for given, draw in tuned.items()}
    numbers = beside_baselines(params, test, drawn, untuned.by_set(), networks)

    validation, count = subject.sets["validation"], params.validation_sets
    for_gate = subject.after(f"validation/tuned-given-{few}", validation, count=count, given=few)
    subject.draw([for_gate], ", validation")
    views = Views.of(validation, count, few)
    scores = compare_views(for_gate.by_set(), views.true(), networks)
    numbers |= {f"validation/{key}": value for key, value in numbers_of(scores, views.nearest, given=few).items()}
    require_gate(params.gate, numbers, task="nvs")
    return Measured(
        numbers=numbers,
        headlines=[
            *(f"{name}/given={given}/mean" for given in (1, 2) for name in METRICS),
            *("baseline/nearest/psnr/given=1/mean", "paired/psnr/given=2-minus-1/mean"),
        ],
        about={
            "images": tuned[few].pictures + few * params.sets,
            **networks.recorded("inception", "clip", "perceptual"),
        },
        galleries={f"given-{given}": draw.rows(params.gallery_sets) for given, draw in tuned.items()},
        files={"turntable.gif": turntable(subject)},
    )


@dataclass(frozen=True)
class Views:
    """The first sets, of which the first views are given."""

    sets: Starts
    count: int
    given: int
    nearest: Nearest

    @classmethod
    def of(cls, sets: Starts, count: int, given: int) -> Self:
        """Looks at the cameras alone."""
        cameras = np.stack([sets[place].cameras() for place in range(count)])  # (sets, n, 3, 4)
        return cls(sets, count, given, nearest_given(cameras, given))

    def true(self) -> Iterator[NDArray[np.uint8]]:
        """Of each set the views that are to be drawn, (views, H, W, 3)."""
        return (self.sets[place].images[self.given :] for place in range(self.count))

    def copied(self) -> Iterator[NDArray[np.uint8]]:
        """In their places the nearest given ones."""
        return (self.sets[place].images[self.nearest.index[place]] for place in range(self.count))


def beside_baselines(
    params: EvaluateNvs,
    sets: Starts,
    tuned: Mapping[int, Iterable[NDArray[np.uint8]]],
    untuned: Iterable[NDArray[np.uint8]],
    networks: Networks,
) -> dict[str, float]:
    """Flat numbers of what was drawn after fewer and after more given views, and of what must be beaten.

    Args:
        tuned: by number of given views, of each set the views after them, (views, H, W, 3).
        untuned: the same by the model that knows no poses, after fewer given views.
    """
    few, many = params.given
    views = {given: Views.of(sets, params.sets, given) for given in params.given}
    scores = {given: compare_views(tuned[given], views[given].true(), networks) for given in params.given}
    numbers = more_given(scores[few], scores[many], counts=(few, many), resamples=params.bootstrap, seed=params.seed)
    for given, of_given in views.items():
        numbers |= numbers_of(scores[given], of_given.nearest, given=given)
        copied = compare_views(of_given.copied(), of_given.true(), networks)
        numbers |= numbers_of(copied, of_given.nearest, given=given, prefix="baseline/nearest/")
    blind = compare_views(untuned, views[few].true(), networks)
    return numbers | numbers_of(blind, views[few].nearest, given=few, prefix="baseline/untuned/")


def turntable(subject: Subject[EvaluateNvs]) -> bytes:
    """A GIF: some test objects, each drawn from all around after one given view, at the height of its camera."""
    params = subject.params
    members = [subject.sets["test"][place] for place in range(min(params.gallery_sets, params.sets, TURNED))]
    turned = [
        replace(one, images=np.repeat(one.images[:1], FRAMES, axis=0), extras={"poses": orbit(one.cameras()[0])})
        for one in members
    ]
    drawn = continue_sets(subject.pipeline, turned, given=1, images=FRAMES - 1, params=params)  # (sets, FRAMES - 1, …)
    whole = np.concatenate([np.stack([one.images[:1] for one in members]), drawn], axis=1)
    return animation([Image.fromarray(np.concatenate(list(whole[:, frame]), axis=1)) for frame in range(FRAMES)])


def orbit(camera: NDArray[np.float64], frames: int = FRAMES) -> NDArray[np.float64]:
    """World-to-camera matrices (frames, 3, 4) of a camera (3, 4) carried once around the world's z axis."""
    angles = np.radians(-360.0 * np.arange(frames) / frames)
    turns = np.zeros((frames, 3, 3))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
    turns[:, 1, 0], turns[:, 0, 1], turns[:, 2, 2] = np.sin(angles), -np.sin(angles), 1.0
    return np.concatenate([camera[:, :3] @ turns, np.broadcast_to(camera[:, 3:], (frames, 3, 1))], axis=2)


def nearest_given(cameras: NDArray[np.float64], given: int) -> Nearest:
    """What is nearest to each camera after the given first ones: (sets, n, 3, 4), world-to-camera."""
    rotations, translations = cameras[..., :3], cameras[..., 3]
    positions = -np.einsum("snji,snj->sni", rotations, translations)  # (sets, n, 3), in the world
    directions = positions / np.linalg.norm(positions, axis=-1, keepdims=True)
    cosines = np.einsum("svi,sgi->svg", directions[:, given:], directions[:, :given])  # (sets, views, given)
    return Nearest(cosines.argmax(axis=2), np.degrees(np.arccos(cosines.max(axis=2).clip(-1, 1))))


@torch.no_grad()
def compare_views(
    drawn: Iterable[NDArray[np.uint8]], real: Iterable[NDArray[np.uint8]], networks: Networks
) -> Mapping[str, Tensor]:
    """Every drawn view against the true one, (views, H, W, 3) of each set: metrics to (sets, views), float64."""
    parts: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    counts: list[int] = []

    def counted() -> Iterator[NDArray[np.uint8]]:
        for views in drawn:
            counts.append(len(views))
            yield views

    for pair in zip(some_at_once(counted()), some_at_once(real), strict=True):
        ours, true = (torch.from_numpy(one).permute(0, 3, 1, 2).to(networks.device) for one in pair)
        a, b = ours.float(), true.float()  # (n, 3, H, W), 0 to 255
        psnr = [peak_signal_noise_ratio(x, y, data_range=255.0) for x, y in zip(a, b, strict=True)]
        parts["psnr"].append(torch.stack(psnr).clamp(max=MOST_PSNR))
        parts["ssim"].append(structural_similarity_index_measure(a, b, data_range=255.0, reduction="none"))  # type: ignore[arg-type]
        parts["perceptual"].append(networks.perceptual(ours, true))
    return {name: torch.cat(values).double().cpu().reshape(len(counts), -1) for name, values in parts.items()}


def numbers_of(scores: Mapping[str, Tensor], nearest: Nearest, *, given: int, prefix: str = "") -> dict[str, float]:
    """Flat numbers: the mean, the spread over views, each view and each bin of angles that is not empty."""
    numbers: dict[str, float] = {}
    for name, values in scores.items():
        key = f"{prefix}{name}/given={given}"
        numbers |= {f"{key}/mean": float(values.mean()), f"{key}/std": float(values.mean(dim=0).std(correction=0))}
        for view, value in enumerate(values.mean(dim=0).tolist(), start=given + 1):
            numbers[f"{key}/view/{view:02}"] = value
        for low, high in pairwise(ANGLES):
            below = nearest.angle < high if high < ANGLES[-1] else True  # half a turn is in the last bin
            inside = torch.from_numpy((nearest.angle >= low) & below)
            if inside.any():
                numbers[f"{key}/angle/{low:03}-{high:03}"] = float(values[inside].mean())
    return numbers


def more_given(
    few: Mapping[str, Tensor], many: Mapping[str, Tensor], *, counts: tuple[int, int], resamples: int, seed: int
) -> dict[str, float]:
    """What more given views change, over the sets and views that are drawn in both cases, with 95 % intervals."""
    numbers: dict[str, float] = {}
    for name, values in many.items():
        pair = paired_interval(few[name][:, -values.shape[1] :], values, resamples=resamples, seed=seed)
        numbers |= estimated(f"paired/{name}/given={counts[1]}-minus-{counts[0]}", pair, mean="/mean")
    return numbers
