"""Datasets: sets drawn into shards against a loop over diffusers' pipeline, and shards read against other readers."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from benchmarks.loading import Loading
from benchmarks.rows import Row
from benchmarks.sampling import GUIDANCE_SCALE, arguments, text_pipeline
from benchmarks.setting import Setting
from m2m.data.sets import read_shard, write_shard
from m2m.data.shards import PlannedSet
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.files import file_digest
from m2m.params import GenerateParams
from m2m.stages.generate import draw_sets

IMAGES_PER_SET = 6


def rows(setting: Setting) -> Iterator[Row]:
    """As the stages draw, and read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from generation(setting, folder)
        setting.free()
        yield reading(replace(setting, repeats=8 * setting.repeats), folder / "0.tar")
        yield from Loading(pixels=setting.pixels, sets_per_step=setting.sets, repeats=setting.repeats).rows(folder)


def generation(setting: Setting, folder: Path) -> Iterator[Row]:
    """Images a second into files; and the share of the time in which no network computes."""
    params = GenerateParams(
        seed=0,
        images_per_set=IMAGES_PER_SET,
        solver="dpmsolver++",
        num_inference_steps=setting.steps,
        guidance_scale=GUIDANCE_SCALE,
        sets_per_shard=setting.sets,
        batch_size=setting.sets * IMAGES_PER_SET,
        precision=setting.precision,
        latents="float32",
        more_images=(),
        extends=None,
        max_redraws=0,
        safety_checker=False,
        max_bad_fraction=0.0,
    )
    workers = setting.workers()
    shards = [
        [
            PlannedSet(id=f"set-{shard}-{number}", caption=f"picture {number}", count=IMAGES_PER_SET)
            for number in range(setting.sets)
        ]
        for shard in range(workers.count)
    ]
    clocked, base = Clocked(setting, params), text_pipeline(setting)

    def make(shard: int) -> None:
        made = draw_sets(clocked, params, shards[shard], lambda *_, **__: None)
        write_shard(made.sets, folder / f"{shard}.tar", "train")

    def ours() -> None:
        with setting.as_in_a_stage():
            list(workers.map(make, range(len(shards))))

    seconds = setting.seconds(ours, lambda: _loop(base, setting, shards, folder))
    images = float(len(shards) * setting.sets * IMAGES_PER_SET)
    yield setting.faster(f"generation/{setting.pixels}px", seconds, amounts=(images, images), unit="images/s")
    clocked.seconds = 0.0
    whole = sum(setting.taken(lambda: make(0)) for _ in range(setting.repeats))
    beside = (whole - clocked.seconds) / setting.repeats
    name = f"generation/{setting.pixels}px/beside-the-network"
    yield Row.of(name, beside, whole / setting.repeats, unit="s", kind=setting.kind)


class Clocked(StableDiffusion):
    """Knows how long its networks took."""

    def __init__(self, setting: Setting, params: GenerateParams) -> None:
        self.seconds, self._setting = 0.0, setting
        super().__init__(
            setting.stable_diffusion,
            solver=params.solver,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            device=setting.device,
            precision=params.precision,
        )

    def embed(self, captions: Sequence[str]) -> torch.Tensor:
        return self._clocked(super().embed, captions)

    def denoise(self, noise: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        return self._clocked(super().denoise, noise, embeddings)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._clocked(super().decode, latents)

    def _clocked(self, network: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
        made: list[torch.Tensor] = []
        self.seconds += self._setting.taken(lambda: made.append(network(*inputs)))
        return made[0]


def _loop(base: Any, setting: Setting, shards: list[list[PlannedSet]], folder: Path) -> None:
    """What one would write: a call a caption, a file an image."""
    for caption in (caption for shard in shards for caption in shard):
        images = base(caption.caption, num_images_per_prompt=IMAGES_PER_SET, **arguments(setting)).images
        for index, image in enumerate(images):
            image.save(folder / f"{caption.id}.{index:03}.png")


def reading(setting: Setting, shard: Path) -> Row:
    """Images a second out of a shard, by both into the same arrays; ours held against its hash and checked."""
    times = 1 if setting.on_gpu else 10

    def ours() -> int:
        file_digest(shard)
        return sum(len(image_set.images) for _ in range(times) for image_set in read_shard(shard))

    def other() -> int:
        samples = webdataset.WebDataset(str(shard), shardshuffle=False)
        return sum(len(_decoded(sample)[0]) for _ in range(times) for sample in samples)

    assert ours() == other()
    amount = float(times * setting.sets * IMAGES_PER_SET)
    return setting.faster(
        f"reading/{setting.pixels}px", setting.seconds(ours, other), amounts=(amount, amount), unit="images/s"
    )


def _decoded(sample: dict[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, Any]]:
    names = sorted(name for name in sample if name.endswith(".png"))
    images = np.stack([np.array(Image.open(io.BytesIO(sample[name]))) for name in names])
    return images, np.load(io.BytesIO(sample["latents.npy"])), json.loads(sample["json"])
