"""Novel views: how close drawn ones come to the true ones, by PSNR, SSIM and a perceptual distance, by angle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from m2m.contact_sheet import animation
from m2m.errors import UserError
from m2m.evaluation.continuations import Measured, Starts, Subject
from m2m.evaluation.figures import estimated, paired_interval, require_gate
from m2m.evaluation.networks import Networks, some_at_once
from m2m.params import EvaluateNvs

METRICS = ("psnr", "ssim", "perceptual")
ANGLES = (0, 30, 60, 90, 180)
"""Degrees; edges of the bins by angle from the nearest given view, each bin without its upper one but the last."""
MOST_PSNR = 100.0
"""dB; what equal pictures count, whose PSNR is infinite: one in a mean would hide all others."""
TURNED, FRAMES = 4, 12
"""Objects of the turntable, and views of each."""


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
    untuned = subject.after(f"untuned-given-{few}", test, count=params.sets, given=few, untuned=True)
    subject.draw([*tuned.values(), untuned])
    drawn = {given: draw.by_set() for given, draw in tuned.items()}
    numbers = beside_baselines(params, test, drawn, untuned.by_set(), networks)

    validation, count = subject.sets["validation"], params.validation_sets
    for_gate = subject.after(f"validation/tuned-given-{few}", validation, count=count, given=few)
    subject.draw([for_gate], ", validation")
    scores = compare_views(for_gate.by_set(), _true(validation, count, few), networks)
    of_gate = numbers_of(scores, nearest_given(_cameras(validation, count), few)[1], given=few)
    numbers |= {f"validation/{key}": value for key, value in of_gate.items()}
    require_gate(params.gate, numbers, task="nvs")
    images = tuned[few].pictures + few * params.sets
    return Measured(
        numbers=numbers,
        headlines=[
            *(f"{name}/given={given}/mean" for given in (1, 2) for name in METRICS),
            *("baseline/nearest/psnr/given=1/mean", "paired/psnr/given=2-minus-1/mean"),
        ],
        about={"images": images, **networks.recorded("inception", "clip", "perceptual")},
        galleries={f"given-{given}": draw.rows(params.gallery_sets) for given, draw in tuned.items()},
        files={"turntable.gif": turntable(subject)},
    )


def _cameras(sets: Starts, count: int) -> NDArray[np.float64]:
    """Of the first sets, (sets, n, 3, 4)."""
    return np.stack([sets[place].cameras() for place in range(count)])


def _true(sets: Starts, count: int, given: int) -> Iterator[NDArray[np.uint8]]:
    """Of each of the first sets the views that are to be drawn, (views, H, W, 3)."""
    return (sets[place].images[given:] for place in range(count))


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
    numbers, scores, cameras = dict[str, float](), {}, _cameras(sets, params.sets)
    for given in (many, few):
        index, angle = nearest_given(cameras, given)
        scores[given] = compare_views(tuned[given], _true(sets, params.sets, given), networks)
        nearest = (sets[place].images[of_set] for place, of_set in enumerate(index))
        copied = compare_views(nearest, _true(sets, params.sets, given), networks)
        numbers |= numbers_of(scores[given], angle, given=given)
        numbers |= numbers_of(copied, angle, given=given, prefix="baseline/nearest/")
    blind = compare_views(untuned, _true(sets, params.sets, few), networks)
    numbers |= numbers_of(blind, angle, given=few, prefix="baseline/untuned/")
    return numbers | more_given(params, scores[few], scores[many])


def turntable(subject: Subject[EvaluateNvs]) -> bytes:
    """A GIF: some test objects, each drawn from all around after one given view, at the height of its camera."""
    params = subject.params
    members = [subject.sets["test"][place] for place in range(min(params.gallery_sets, params.sets, TURNED))]
    turned = [
        replace(one, images=np.repeat(one.images[:1], FRAMES, axis=0), extras={"poses": orbit(one.cameras()[0])})
        for one in members
    ]
    around = subject.after(f"turntable-of-{len(turned)}", turned, count=len(turned), given=1)
    subject.draw([around], ", around objects")
    drawn = np.stack([*around.by_set()])  # (sets, FRAMES - 1, H, W, 3)
    whole = np.concatenate([np.stack([one.images[:1] for one in members]), drawn], axis=1)
    return animation([Image.fromarray(np.concatenate(list(whole[:, frame]), axis=1)) for frame in range(FRAMES)])


def orbit(camera: NDArray[np.float64], frames: int = FRAMES) -> NDArray[np.float64]:
    """World-to-camera matrices (frames, 3, 4) of a camera (3, 4) carried once around the world's z axis."""
    angles = np.radians(-360.0 * np.arange(frames) / frames)
    turns = np.zeros((frames, 3, 3))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
    turns[:, 1, 0], turns[:, 0, 1], turns[:, 2, 2] = np.sin(angles), -np.sin(angles), 1.0
    return np.concatenate([camera[:, :3] @ turns, np.broadcast_to(camera[:, 3:], (frames, 3, 1))], axis=2)


def nearest_given(cameras: NDArray[np.float64], given: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which of the given first cameras stands nearest in direction to each one after them, and how near.

    Args:
        cameras: (sets, n, 3, 4), world-to-camera.

    Returns:
        (sets, views) each: its number, and the degrees between both directions from the object.
    """
    rotations, translations = cameras[..., :3], cameras[..., 3]
    positions = -np.einsum("snji,snj->sni", rotations, translations)  # (sets, n, 3), in the world
    directions = positions / np.linalg.norm(positions, axis=-1, keepdims=True)
    cosines = np.einsum("svi,sgi->svg", directions[:, given:], directions[:, :given])  # (sets, views, given)
    return cosines.argmax(axis=2), np.degrees(np.arccos(cosines.max(axis=2).clip(-1, 1)))


@torch.no_grad()
def compare_views(
    drawn: Iterable[NDArray[np.uint8]], real: Iterable[NDArray[np.uint8]], networks: Networks
) -> Mapping[str, Tensor]:
    """Every drawn view against the true one, (views, H, W, 3) of each set: metrics to (sets, views), float64."""
    parts: list[tuple[Tensor, ...]] = []
    counts: list[int] = []
    for pair in zip(some_at_once(drawn, counts), some_at_once(real), strict=True):
        ours, true = (torch.from_numpy(one).permute(0, 3, 1, 2).to(networks.device) for one in pair)
        a, b = ours.float(), true.float()  # (n, 3, H, W), 0 to 255
        psnr = [peak_signal_noise_ratio(x, y, data_range=255.0) for x, y in zip(a, b, strict=True)]
        ssim = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
        assert isinstance(ssim, Tensor)  # a pair only where more is asked for
        parts.append((torch.stack(psnr).clamp(max=MOST_PSNR), ssim, networks.perceptual(ours, true)))
    whole = [torch.cat(values).double().cpu().reshape(len(counts), -1) for values in zip(*parts, strict=True)]
    return dict(zip(METRICS, whole, strict=True))


def numbers_of(
    scores: Mapping[str, Tensor], angle: NDArray[np.float64], *, given: int, prefix: str = ""
) -> dict[str, float]:
    """Flat numbers: the mean, the spread over views, each view and each bin of angles that is not empty.

    Args:
        angle: (sets, views), degrees from the nearest given view.
    """
    numbers: dict[str, float] = {}
    for name, values in scores.items():
        key = f"{prefix}{name}/given={given}"
        numbers |= {f"{key}/mean": float(values.mean()), f"{key}/std": float(values.mean(dim=0).std(correction=0))}
        for view, value in enumerate(values.mean(dim=0).tolist(), start=given + 1):
            numbers[f"{key}/view/{view:02}"] = value
        for low, high in pairwise(ANGLES):
            below = angle < high if high < ANGLES[-1] else True  # half a turn is in the last bin
            inside = torch.from_numpy((angle >= low) & below)
            if inside.any():
                numbers[f"{key}/angle/{low:03}-{high:03}"] = float(values[inside].mean())
    return numbers


def more_given(params: EvaluateNvs, few: Mapping[str, Tensor], many: Mapping[str, Tensor]) -> dict[str, float]:
    """What more given views change, over the sets and views that are drawn in both cases, with 95 % intervals."""
    numbers, (less, more) = dict[str, float](), params.given
    for name, values in many.items():
        both = few[name][:, -values.shape[1] :], values
        pair = paired_interval(*both, resamples=params.bootstrap, seed=params.seed)
        numbers |= estimated(f"paired/{name}/given={more}-minus-{less}", pair, mean="/mean")
    return numbers
