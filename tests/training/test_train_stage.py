"""The stage as a whole: from a foundation and a dataset to a pipeline folder that draws."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest
from m2m.params import TrainCommon, TrainVariant
from m2m.pipeline import M2MPipeline
from m2m.stages import train
from m2m.tracking import NullTracker

Common = Callable[..., TrainCommon]
Variant = Callable[..., TrainVariant]


@dataclass
class RememberingTracker:
    """Keeps what is said to it; its own run."""

    id: str = "run-1"
    points: dict[int, Mapping[str, float]] = field(default_factory=dict)
    pictures: dict[tuple[str, int], Image.Image] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    resumed: list[str | None] = field(default_factory=list)

    @contextmanager
    def run(
        self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None
    ) -> Iterator[RememberingTracker]:
        assert (name, stage) == (f"train-{tags['variant']}", "train")
        self.resumed.append(resume_key)
        yield self

    def params(self, values: Mapping[str, object]) -> None:
        self.parameters |= values

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        assert step is not None
        self.points[step] = values

    def image(self, image: Image.Image, *, key: str, step: int) -> None:
        self.pictures[key, step] = image

    def artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(path.name)

    def dataset(self, name: str, *, source: str, digest: str, context: str) -> None:
        self.datasets.append(digest)

    def register(
        self, model_folder: Path, name: str, *, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> str | None:
        raise AssertionError("evaluation registers models")


@pytest.fixture
def run(dataset: Any, foundation: Path, common: Common, variant: Variant) -> Callable[..., train.Trained]:
    """The stage with its outputs below a folder, and with changes."""

    def call(folder: Path, name: Any = "self", **changes: Any) -> train.Trained:
        arguments = {
            "manifest": dataset.manifest,
            "foundation": foundation,
            "out": folder / "model",
            "curve": folder / "curve.csv",
            "work": folder / "work",
            "store": dataset.store,
            "tracker": NullTracker(),
            "device": "cpu",
            **changes,
        }
        return train.run(
            arguments.pop("common", common()), name, arguments.pop("variant", variant(images=96)), **arguments
        )

    return call


@pytest.mark.parametrize("name", ["self", "dino"])
def test_it_makes_a_pipeline_that_loads_and_draws(run: Callable[..., train.Trained], tmp_path: Path, name: str) -> None:
    made = run(tmp_path, name)
    assert made.images_seen == 96
    pipeline = M2MPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    given = Image.new("RGB", (64, 64), "red")
    drawn = pipeline([given], 2, num_inference_steps=2, generator=0).images
    assert [image.size for image in drawn] == [(64, 64)] * 2
    assert pipeline.unet.config.variant == name
    assert not (tmp_path / "work" / f"train-{name}").exists() or not list(
        (tmp_path / "work" / f"train-{name}").iterdir()
    )
    assert not list(tmp_path.glob(".model*"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"It has seen 96 images, in sets of 4" in card


def test_the_same_run_elsewhere_gives_the_same_bytes(
    run: Callable[..., train.Trained], foundation: Path, tmp_path: Path
) -> None:
    run(tmp_path / "one", "dino")
    moved = tmp_path / "moved"
    shutil.copytree(foundation, moved)
    run(tmp_path / "other" / "deeper", "dino", foundation=moved)
    assert folder_digest(tmp_path / "one" / "model") == folder_digest(tmp_path / "other" / "deeper" / "model")
    assert (tmp_path / "one" / "curve.csv").read_bytes() == (tmp_path / "other" / "deeper" / "curve.csv").read_bytes()
