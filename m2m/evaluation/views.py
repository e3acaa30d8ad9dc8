"""How close drawn views come to the true ones: PSNR, SSIM and a perceptual distance, by angle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from m2m.contact_sheet import animation
from m2m.data.shards import ImageSet
from m2m.errors import UserError
from m2m.evaluation.networks import Networks
from m2m.evaluation.paired import paired_interval
from m2m.evaluation.sampling import continue_sets
from m2m.evaluation.task_sampling import TaskDraws
from m2m.params import EvaluateNvs

METRICS = ("psnr", "ssim", "perceptual")
ANGLES = (0, 30, 60, 90, 180)
"""Degrees; edges of the bins by angle from the nearest given view, each bin without its upper one but the last."""
MOST_PSNR = 100.0
"""dB; what equal pictures count, whose PSNR is infinite: one in a mean would hide all others."""
PICTURES_AT_ONCE = 128
TURNED, FRAMES = 4, 12
"""Objects of the turntable, and views of each."""

Scores = Mapping[str, Tensor]
"""Metric to (sets, views), float64."""


@dataclass(frozen=True)
class Nearest:
    """Of each view that is to be drawn, the given view whose camera stands nearest in direction."""

    index: NDArray[np.int64]
    """(sets, views), among the given ones"""
    angle: NDArray[np.float64]
    """(sets, views), degrees between the two directions from the object"""


def require(params: EvaluateNvs, members: Sequence[ImageSet]) -> None:
    """Says what cannot be measured before anything is drawn for it.

    Raises:
        UserError: there are not more views than given ones, or sets differ in length, or one has no cameras.
    """
    few, many = params.given
    if len({len(one.cameras()) for one in members}) > 1 or len(members[0].images) <= many or many <= few:
        raise UserError(
            f"evaluate.nvs.given is [{few}, {many}]; expected fewer and more, of sets that all have as many views, "
            f"more than {many}"
        )


def measure(
    params: EvaluateNvs,
    members: Sequence[ImageSet],
    tuned: Mapping[int, Sequence[NDArray[np.uint8]]],
    untuned: Sequence[NDArray[np.uint8]],
    networks: Networks,
) -> dict[str, float]:
    """Flat numbers of what was drawn after fewer and after more given views, and of what must be beaten.

    Args:
        tuned: by number of given views, of each set the views after them, (views, H, W, 3).
        untuned: the same by the model that knows no poses, after fewer given views.
    """
    few, many = params.given
    images = np.stack([one.images for one in members])  # (sets, views, H, W, 3)
    cameras = np.stack([one.cameras() for one in members])  # (sets, views, 3, 4)
    scores = {given: compare_views(np.stack(tuned[given]), images[:, given:], networks) for given in params.given}
    numbers = more_given(scores[few], scores[many], counts=(few, many), resamples=params.bootstrap, seed=params.seed)
    for given in params.given:
        nearest = nearest_given(cameras, given)
        copied = np.take_along_axis(images, nearest.index[..., None, None, None], axis=1)
        numbers |= numbers_of(scores[given], nearest, given=given)
        copied_scores = compare_views(copied, images[:, given:], networks)
        numbers |= numbers_of(copied_scores, nearest, given=given, prefix="baseline/nearest/")
    blind = compare_views(np.stack(untuned), images[:, few:], networks)
    return numbers | numbers_of(blind, nearest_given(cameras, few), given=few, prefix="baseline/untuned/")


def of_model(
    members: Sequence[ImageSet], drawn: Sequence[NDArray[np.uint8]], given: int, networks: Networks
) -> dict[str, float]:
    """Flat numbers of a model alone: of each set the views after the given ones, (views, H, W, 3)."""
    images = np.stack([one.images for one in members])  # (sets, views, H, W, 3)
    nearest = nearest_given(np.stack([one.cameras() for one in members]), given)
    return numbers_of(compare_views(np.stack(drawn), images[:, given:], networks), nearest, given=given)


def turntable(draws: TaskDraws) -> bytes:
    """A GIF: some test objects, each drawn from all around after one given view, at the height of its camera."""
    members = draws.members[: min(draws.params.gallery_sets, TURNED)]
    turned = [
        replace(one, images=np.repeat(one.images[:1], FRAMES, axis=0), extras={"poses": orbit(one.cameras()[0])})
        for one in members
    ]
    views = continue_sets(draws.tuned, turned, given=1, total=FRAMES, params=draws.params)  # (sets, FRAMES - 1, …)
    whole = np.concatenate([np.stack([one.images[:1] for one in members]), views], axis=1)
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
def compare_views(drawn: NDArray[np.uint8], real: NDArray[np.uint8], networks: Networks) -> Scores:
    """Every drawn view against the true one, (sets, views, H, W, 3) each."""
    parts: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    pairs = zip(*(_rows(pictures, networks.device) for pictures in (drawn, real)), strict=True)
    for ours, true in pairs:
        a, b = ours.float(), true.float()  # (n, 3, H, W), 0 to 255
        psnr = [peak_signal_noise_ratio(x, y, data_range=255.0) for x, y in zip(a, b, strict=True)]
        parts["psnr"].append(torch.stack(psnr).clamp(max=MOST_PSNR))
        parts["ssim"].append(structural_similarity_index_measure(a, b, data_range=255.0, reduction="none"))  # type: ignore[arg-type]
        parts["perceptual"].append(networks.perceptual(ours, true))
    return {name: torch.cat(values).double().cpu().reshape(drawn.shape[:2]) for name, values in parts.items()}


def numbers_of(scores: Scores, nearest: Nearest, *, given: int, prefix: str = "") -> dict[str, float]:
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


def more_given(few: Scores, many: Scores, *, counts: tuple[int, int], resamples: int, seed: int) -> dict[str, float]:
    """What more given views change, over the sets and views that are drawn in both cases, with 95 % intervals."""
    numbers: dict[str, float] = {}
    for name, values in many.items():
        pair = paired_interval(few[name][:, -values.shape[1] :], values, resamples=resamples, seed=seed)
        key = f"paired/{name}/given={counts[1]}-minus-{counts[0]}"
        numbers |= {f"{key}/{part}": getattr(pair, part) for part in ("mean", "low", "high")}
    return numbers


def _rows(pictures: NDArray[np.uint8], device: torch.device) -> Sequence[Tensor]:
    """uint8 (n, 3, H, W), some at a time."""
    flat = torch.from_numpy(np.ascontiguousarray(pictures)).flatten(0, 1).permute(0, 3, 1, 2)
    parts: Sequence[Tensor] = flat.to(device).split(PICTURES_AT_ONCE)  # type: ignore[no-untyped-call]
    return parts
