"""Lots of pictures to measure a model's against: held-out sets, the same with colours shuffled, and SD without a caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import permutations
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from m2m import seeds
from m2m.data.sets import ImageSets
from m2m.diffusion.solvers import make_scheduler
from m2m.errors import UserError
from m2m.evaluation.kept import folder_of, read_or_draw
from m2m.evaluation.measure import Batch
from m2m.files import folder_digest
from m2m.params import EvaluateParams

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
    captions: Sequence[str], *, stable_diffusion: Path, params: EvaluateParams, work: Path, device: str
) -> Iterator[Batch]:
    """Pictures that Stable Diffusion draws from noise alone, as many sets as there are captions; those only judge them.

    They are kept in `work`, since they are the same for every model.

    Raises:
        UserError: the folder is no Stable Diffusion pipeline.
    """
    base = cache(partial(_load, stable_diffusion, params, device))  # loaded when the first picture is missing
    drawing = params.model_dump(include={"seed", "solver", "num_inference_steps", "sets_per_batch"})
    made_from = {
        **drawing,
        "stable_diffusion": folder_digest(stable_diffusion),
        "device": device,
        "sets": len(captions),
    }
    folder = folder_of(work, made_from)
    for start in range(0, len(captions), params.sets_per_batch):
        words = captions[start : start + params.sets_per_batch]
        first, count = start * UNCONDITIONAL_POSITIONS, len(words) * UNCONDITIONAL_POSITIONS

        def draw(first: int = first, count: int = count) -> NDArray[np.uint8]:
            pictures = base()(
                prompt=[""] * count,
                guidance_scale=1.0,
                num_inference_steps=params.num_inference_steps,
                generator=[seeds.generator(params.seed, "unconditional", first + index) for index in range(count)],
                output_type="np",
            ).images
            return (pictures * 255).round().astype(np.uint8)  # type: ignore[no-any-return]

        pictures = read_or_draw(folder / f"from-{start:06}.npy", draw)
        yield words, pictures.reshape(len(words), UNCONDITIONAL_POSITIONS, *pictures.shape[1:])


def _load(folder: Path, params: EvaluateParams, device: str) -> StableDiffusionPipeline:
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: not a complete Stable Diffusion folder; the foundation stage must make it again"
        ) from error
    pipeline.scheduler = make_scheduler(params.solver, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
