"""A small dataset of image sets, a foundation of random weights, and what trains on them in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2m.data.sets import ImageSet, write_shard
from m2m.manifest import Manifest
from m2m.params import TrainCommon, TrainVariant
from m2m.store import LocalStore
from tests.datasets import Dataset

IMAGES_PER_SET = 5


def image_set(id_: str, rng: np.random.Generator) -> ImageSet:
    """Latents and pictures that vary little within a set and much between sets."""
    content = rng.normal(size=(1, 4, 8, 8)) + 0.3 * rng.normal(size=(IMAGES_PER_SET, 4, 8, 8))
    colour = rng.integers(0, 200, size=(1, 1, 1, 3)) + rng.integers(0, 56, size=(IMAGES_PER_SET, 64, 64, 3))
    return ImageSet(
        id=id_, caption=f"picture of {id_}", images=colour.astype(np.uint8), latents=content.astype(np.float32)
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 sets for training in two shards, 3 for validation and 2 for the test in one each, of 5 images."""
    folder = tmp_path_factory.mktemp("dataset")
    store, rng, shards = LocalStore(folder / "store"), np.random.default_rng(0), []
    for split, first, count in (("train", 0, 7), ("train", 7, 5), ("validation", 0, 3), ("test", 0, 2)):
        sets = [image_set(f"{split}-{number:03}", rng) for number in range(first, first + count)]
        shards.append(write_shard(sets, folder / "draft.tar", split))
        store.put(shards[-1].key, folder / "draft.tar", shards[-1].sha256)
    manifest = Manifest(
        schema_version=1, kind="mis", made_by={}, images_per_set=IMAGES_PER_SET, redrawn=0, shards=tuple(shards)
    )
    manifest.write(folder / "mis.json")
    return Dataset(folder / "mis.json", store)


@pytest.fixture(scope="session")
def foundation(tiny_stable_diffusion: Path, tiny_dino: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both, under the names that the stage expects."""
    folder = tmp_path_factory.mktemp("foundation")
    (folder / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    (folder / "dino").symlink_to(tiny_dino)
    return folder


@pytest.fixture(scope="session")
def make_common() -> Callable[..., TrainCommon]:
    """Parameters of training, with changes."""

    def make(**changes: Any) -> TrainCommon:
        values = {
            "seed": 7,
            "set_size": 4,
            "max_context": 3,
            "context_pool": 1,
            "prediction_type": "epsilon",
            "min_snr_gamma": 5.0,
            "timestep_shift": 1,
            "predict_first": True,
            "guidance_dropout": 0.1,
            "context_noise": {"probability": 0.5, "max_timestep": 200},
            "context_swap": 0.3,
            "ema": {"decay": 0.9},
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "warmup_images": 32,
            "schedule": "cosine",
            "precision": "float32",
            "gradient_accumulation": 1,
            "gradient_checkpointing": False,
            "compile_blocks": False,
            "log_every": 48,
            "preview_every": 96,
            "preview_sets": 2,
            "checkpoint_every": 64,
        }
        return TrainCommon.model_validate({**values, **changes})

    return make


@pytest.fixture(scope="session")
def make_variant() -> Callable[..., TrainVariant]:
    """Parameters of a variant, with changes: 12 steps of 4 sets of 4 images."""

    def make(**changes: Any) -> TrainVariant:
        return TrainVariant.model_validate(
            {
                **{"images": 192, "sets_per_step": 4, "learning_rate": 1e-3, "context_learning_rate": 3e-3},
                **{"start": None, **changes},
            }
        )

    return make
