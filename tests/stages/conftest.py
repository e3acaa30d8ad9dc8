"""Small datasets of both tasks, and models of random weights, for the stages that fine-tune and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from m2m.data.sets import ImageSet, write_shard
from m2m.manifest import Manifest, Split
from m2m.store import LocalStore
from m2m.world.cameras import Camera
from m2m.world.corpus import draw_procedure
from m2m.world.grammar import procedure_captions, view_captions
from tests.datasets import Dataset

VIEWS = 4
TRAIN, VALIDATION, TEST = 5, 2, 3


def _write(
    kind: Literal["nvs", "vpg"], splits: Mapping[Split, Sequence[ImageSet]], images_per_set: int, folder: Path
) -> Dataset:
    store, shards = LocalStore(folder / "store"), []
    for split, sets in splits.items():
        shards.append(write_shard(sets, folder / "draft.tar", split))
        store.put(shards[-1].key, folder / "draft.tar", shards[-1].sha256)
    Manifest(
        schema_version=1,
        kind=kind,
        made_by={"stage": kind, "source": {"name": "noise", "licence": "CC0-1.0"}},
        images_per_set=images_per_set,
        redrawn=0,
        shards=tuple(shards),
    ).write(folder / f"{kind}.json")
    return Dataset(folder / f"{kind}.json", store)


@pytest.fixture(scope="session")
def views(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Coarse noise, seen from cameras of the world."""
    rng = np.random.default_rng(0)
    captions = view_captions("test")

    def one(split: Split, number: int) -> ImageSet:
        cameras = [Camera(rng.uniform(0, 360), rng.uniform(-10, 50), 2.3) for _ in range(VIEWS)]
        return ImageSet(
            id=f"{split}-{number}",
            caption=captions[number].text(),
            images=rng.integers(0, 256, size=(VIEWS, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2),
            latents=rng.normal(size=(VIEWS, 4, 8, 8)).astype(np.float32),
            extras={"poses": [camera.matrix().tolist() for camera in cameras]},
        )

    splits: dict[Split, list[ImageSet]] = {
        "train": [one("train", number) for number in range(TRAIN)],
        "validation": [one("validation", number) for number in range(VALIDATION)],
        "test": [one("test", number) for number in range(TEST)],
    }
    return _write("nvs", splits, VIEWS, tmp_path_factory.mktemp("views"))


@pytest.fixture(scope="session")
def procedures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Procedures of the world, of five and of six steps, the six first; latents are noise."""
    rng = np.random.default_rng(0)
    every = procedure_captions("train")
    short, long = [one for one in every if len(one) == 5], [one for one in every if len(one) == 6]

    def one(split: Split, number: int) -> ImageSet:
        captions = (short if number % 2 else long)[number // 2]
        images, extras = draw_procedure(captions, seed=number)
        latents = rng.normal(size=(len(images), 4, 8, 8)).astype(np.float32)
        return ImageSet(
            id=f"{split}-{number}", caption=captions[-1].text(), images=images, latents=latents, extras=extras
        )

    splits: dict[Split, list[ImageSet]] = {
        "train": [one("train", number) for number in range(TRAIN)],
        "validation": [one("validation", number) for number in range(VALIDATION)],
        "test": [one("test", number) for number in range(TEST)],
    }
    return _write("vpg", splits, 6, tmp_path_factory.mktemp("procedures"))


@pytest.fixture(scope="session")
def trainable(tiny_stable_diffusion: Path, tiny_dino: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foundation to train from: ``stable-diffusion/`` and ``dino/``."""
    folder = tmp_path_factory.mktemp("trainable") / "foundation"
    folder.mkdir()
    (folder / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    (folder / "dino").symlink_to(tiny_dino)
    return folder


@pytest.fixture(scope="session")
def train_common() -> Any:
    """What parents were trained with."""
    from m2m.params_file import load_params

    common = load_params(Path(__file__).parents[2] / "profiles" / "smoke.yaml").train.common
    return common.model_copy(update={"max_context": 3})


@pytest.fixture(scope="session")
def make_model(trainable: Path, train_common: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Pipeline folders whose networks heed what they see, and from where: each made once."""
    from m2m.training.start import from_stable_diffusion, take_poses

    folder, made = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def make(variant: Any, task: Literal["nvs", "vpg"] | None = None) -> Path:
        name = f"m2m-{variant}-{task}" if task else f"m2m-{variant}"
        if name not in made:
            pipeline = from_stable_diffusion(trainable, variant, train_common)
            pipeline = take_poses(pipeline, seed=0) if task == "nvs" else pipeline
            draws = torch.Generator().manual_seed(len(name))
            with torch.no_grad():
                for parameter in pipeline.unet.context_parameters():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
            pipeline.save_pretrained(folder / name)
            (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
            made[name] = folder / name
        return made[name]

    return make


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foundation to judge with: ``clip/`` and ``inception/``, of random weights."""
    from m2m.foundation import encoders
    from m2m.foundation.text_to_image import learn_tokenizer
    from m2m.models.classifier import WorldClassifier
    from m2m.params import TransformerFit

    folder = tmp_path_factory.mktemp("judges")
    tokenizer = learn_tokenizer(["a red star, flat", "a neon drawing of a blue moon"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=16, layers=1)
        encoders.save_clip(folder / "clip", encoders.build_clip(fit, tokenizer), tokenizer)
        classes = {"noun": ("star", "moon"), "step": tuple("0123456")}
        WorldClassifier(classes, widths=(8, 16, 16, 8)).save_pretrained(folder / "inception")
    return folder
