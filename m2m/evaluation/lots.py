"""Lots of pictures to compare a model's with: held-out sets, these with colours shuffled, and SD without a caption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m2m import seeds
from m2m.data.sets import ImageSets
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.evaluation.kept import folder_of, read_or_draw
from m2m.evaluation.measure import Batch
from m2m.files import folder_digest
from m2m.params import EvaluateMis
from m2m.workers import Workers, once

UNCONDITIONAL_POSITIONS = 2
"""Without given pictures all positions are alike: two are enough for a spread, and for the distance within a set."""

_SHUFFLES = np.array([order for order in permutations(range(3)) if order != (0, 1, 2)])


def held_out(sets: ImageSets, *, count: int, batch: int) -> Iterator[Batch]:
    """All pictures of the first `count` sets."""
    for start in range(0, count, batch):
        members = [sets[index] for index in range(start, min(start + batch, count))]
        yield [member.caption for member in members], np.stack([member.images for member in members])


def colours_shuffled(batches: Iterable[Batch], *, seed: int) -> Iterator[Batch]:
    """The same pictures, red, green and blue exchanged at random in each: all stays but the colours."""
    random = np.random.default_rng(seeds.derive(seed, "shuffle colours"))
    for captions, images in batches:
        orders = _SHUFFLES[random.integers(len(_SHUFFLES), size=images.shape[:2])]  # (sets, positions, 3)
        yield captions, np.take_along_axis(images, orders[:, :, None, None, :], axis=4)


def unconditional(
    captions: Sequence[str],
    *,
    stable_diffusion: Path,
    params: EvaluateMis,
    work: Path,
    device: str,
    workers: Workers,
) -> Iterator[Batch]:
    """Pictures that Stable Diffusion draws from noise alone, as many sets as there are captions; those only judge them.

    They are kept in `work`, since they are the same for every model.

    Raises:
        UserError: the folder is no Stable Diffusion pipeline.
    """
    how = {"seed", "solver", "num_inference_steps", "sets_per_batch", "precision"}
    drawing = params.model_dump(mode="json", include=how)
    weights = folder_digest(stable_diffusion)
    folder = folder_of(work, {**drawing, "weights": weights, "sets": len(captions), "device": device.partition(":")[0]})

    def base() -> StableDiffusion:
        steps = params.num_inference_steps
        return StableDiffusion(
            stable_diffusion,
            solver=params.solver,
            num_inference_steps=steps,
            guidance_scale=1,
            device=device,
            precision=params.precision,
        )

    load = once(base)

    def batch(start: int) -> Batch:
        words = captions[start : start + params.sets_per_batch]
        first = start * UNCONDITIONAL_POSITIONS
        numbers = range(first, first + len(words) * UNCONDITIONAL_POSITIONS)
        pictures = read_or_draw(folder / f"from-{start:06}.npy", partial(_draw, load, numbers, params.seed))
        return words, pictures.reshape(len(words), UNCONDITIONAL_POSITIONS, *pictures.shape[1:])

    yield from workers.map(batch, range(0, len(captions), params.sets_per_batch))


def _draw(load: Callable[[], StableDiffusion], numbers: Sequence[int], seed: int) -> NDArray[np.uint8]:
    """Pictures (n, H, W, 3) by number, each from its own noise."""
    base = load()
    generators = [seeds.generator(seed, "unconditional", number) for number in numbers]
    noise = torch.stack([torch.randn(base.latent_shape, generator=generator) for generator in generators])
    embeddings = base.embed([""]).expand(len(numbers), -1, -1)
    pictures: NDArray[np.uint8] = base.decode(base.denoise(noise, embeddings)).cpu().numpy()
    return pictures
