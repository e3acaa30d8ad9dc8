"""Lots of pictures to compare a model's with: held-out sets, in other colours too, and what Stable Diffusion draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2m import seeds
from m2m.code import code_digest
from m2m.data.sets import ImageSets
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.evaluation.kept import folder_of, read_or_draw
from m2m.evaluation.measure import Batch
from m2m.files import folder_digest
from m2m.params import EvaluateMis, SolverName
from m2m.workers import Workers, once

_SHUFFLES = np.array([order for order in permutations(range(3)) if order != (0, 1, 2)])


def held_out(sets: ImageSets, *, count: int, batch: int) -> Iterator[Batch]:
    """All pictures of the first `count` sets, none of them given."""
    for start in range(0, count, batch):
        members = [sets[index] for index in range(start, min(start + batch, count))]
        images = np.stack([member.images for member in members])
        yield Batch([member.caption for member in members], images[:, :0], images)


def following(batches: Iterable[Batch], drawn: Iterable[NDArray[np.uint8]], *, given: int) -> Iterator[Batch]:
    """What was drawn for held-out sets, batch by batch, as if it followed their first `given` pictures."""
    for batch, images in zip(batches, drawn, strict=True):
        yield Batch(batch.captions, batch.images[:, :given], images)


def colours_shuffled(batches: Iterable[Batch], *, seed: int) -> Iterator[Batch]:
    """The same pictures, red, green and blue exchanged at random in each: all stays but the colours."""
    random = np.random.default_rng(seeds.derive(seed, "shuffle colours"))
    for batch in batches:
        orders = _SHUFFLES[random.integers(len(_SHUFFLES), size=batch.images.shape[:2])]  # (sets, positions, 3)
        shuffled = np.take_along_axis(batch.images, orders[:, :, None, None, :], axis=4)
        yield Batch(batch.captions, batch.given, shuffled)


class Painter:
    """Stable Diffusion, loaded when the first picture is missing; what it drew is kept for the next model.

    Args:
        folder: of the pipeline.
        work: where pictures are kept, which are the same for every model.

    Raises:
        UserError: the folder is no Stable Diffusion pipeline.
    """

    def __init__(
        self,
        folder: Path,
        *,
        solver: SolverName,
        num_inference_steps: int,
        guidance_scale: float,
        params: EvaluateMis,
        work: Path,
        device: str,
        workers: Workers,
    ) -> None:
        how = {"solver": solver, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        self._made_from = {
            **how,
            **params.model_dump(mode="json", include={"seed", "sets_per_batch", "precision"}),
            "weights": folder_digest(folder),
            "device": device.partition(":")[0],
            "code": code_digest(__name__),
        }
        self._load = once(
            lambda: StableDiffusion(
                folder,
                solver=solver,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                device=device,
                precision=params.precision,
            )
        )
        self._params, self._work, self._workers = params, work, workers

    def draw(self, captions: Sequence[str], positions: int, *, noise: str) -> Iterator[NDArray[np.uint8]]:
        """Pictures (sets, positions, H, W, 3) of a caption a set, batch by batch.

        Args:
            noise: the name of their noise: other lots of another name start from other noise.
        """
        folder = folder_of(
            self._work, {**self._made_from, "captions": list(captions), "positions": positions, "noise": noise}
        )

        def batch(start: int) -> NDArray[np.uint8]:
            words = captions[start : start + self._params.sets_per_batch]
            numbers = range(start * positions, (start + len(words)) * positions)
            draw = partial(_draw, self._load, words, numbers, seeds.derive(self._params.seed, noise))
            pictures, _ = read_or_draw(folder / f"from-{start:06}.npy", draw)
            return pictures.reshape(len(words), positions, *pictures.shape[1:])

        yield from self._workers.map(batch, range(0, len(captions), self._params.sets_per_batch))


def _draw(
    load: Callable[[], StableDiffusion], captions: Sequence[str], numbers: Sequence[int], seed: int
) -> NDArray[np.uint8]:
    """Pictures (n, H, W, 3) by number, each from its own noise; equally many a caption."""
    base = load()
    generators = [seeds.generator(seed, number) for number in numbers]
    noise = seeds.normal(base.latent_shape, *generators)
    embeddings = base.embed(captions).repeat_interleave(len(numbers) // len(captions), dim=0)
    pictures: NDArray[np.uint8] = base.decode(base.denoise(noise, embeddings)).cpu().numpy()
    return pictures
