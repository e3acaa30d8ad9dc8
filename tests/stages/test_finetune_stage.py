"""From a trained model to a model for a task: what it learns, what it keeps, and from where it goes on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention import FeedForward
from PIL import Image
from torch import Tensor, nn

from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest
from m2m.models.image_set_attention import ImageSetAttention
from m2m.params import FinetuneTask, LearningParams
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.runtime import Runtime
from m2m.stages import finetune
from m2m.tracking import NullTracker
from m2m.tracking import Run as TrackedRun
from m2m.training import run as training_run
from m2m.training.start import from_stable_diffusion
from m2m.training.state import Point
from m2m.world.cameras import Camera

Run = Callable[..., Point]
LEARNING = {
    "seed": 7,
    "min_snr_gamma": 5.0,
    "timestep_shift": 1,
    "predict_first": False,
    "guidance_dropout": 0.1,
    "context_noise": {"probability": 0.5, "max_timestep": 200},
    "context_swap": 0.3,
    "ema": {"decay": 0.9},
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "warmup_images": 0,
    "schedule": "cosine",
    "precision": "float32",
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "compile_blocks": False,
    "log_every": 12,
    "preview_every": 1000,
    "preview_sets": 2,
    "checkpoint_every": 6,
}
STILL = 1e-12
"""A learning rate at which nothing is learnt."""


@dataclass
class Stopping(NullTracker):
    """A tracker that is interrupted when it hears of some image."""

    at: int

    @contextmanager
    def run(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        with super().run(*arguments, **options) as record:
            yield StoppingRun(record, self.at)


class StoppingRun:
    def __init__(self, record: TrackedRun, at: int) -> None:
        self._record, self._at = record, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    def metrics(self, values: Any, *, step: int | None = None) -> None:
        if step == self._at:
            raise KeyboardInterrupt


@pytest.fixture
def run(views: Any, procedures: Any, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The stage with its outputs below a folder, with changes: two steps of two sets, previews of two steps."""
    monkeypatch.setattr(training_run, "PREVIEW_STEPS", 2)

    def call(
        folder: Path,
        task: Any,
        variant: Any = "self",
        *,
        steps: int = 2,
        rate: float = 1e-2,
        frozen: tuple[str, ...] = (),
        store: Any = None,
        tracker: Any = None,
        **changes: Any,
    ) -> Point:
        set_size = 3 if task == "nvs" else 6
        own = {
            "images": steps * 2 * set_size,
            "sets_per_step": 2,
            "learning_rate": rate,
            "context_learning_rate": rate,
            "frozen": frozen,
        }
        dataset = views if task == "nvs" else procedures
        arguments = {
            "manifest": dataset.manifest,
            "model": None if "model" in changes else make_model(variant),
            "out": folder / "model",
            "curve": folder / "curve.csv",
            "runtime": Runtime(
                store=store or dataset.copied(folder), work=folder / "work", tracker=tracker or NullTracker()
            ),
            **changes,
        }
        params = FinetuneTask.model_validate({"set_size": set_size, "self": own, "dino": own})
        return finetune.run(LearningParams.model_validate(LEARNING), task, variant, params, **arguments)

    return call


def draw(pipeline: M2MPipeline, *, poses: bool = False, num_images: int = 2) -> Tensor:
    """Latents of what follows a picture, seen from wherever."""
    pipeline.set_progress_bar_config(disable=True)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    cameras = np.stack([Camera(30.0 * k, 20).matrix() for k in range(1 + num_images)])
    return pipeline(
        [photo],
        num_images,
        num_inference_steps=2,
        generator=0,
        poses=cameras if poses else None,
        output_type="latent",
    ).images


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["self", "dino"])
def test_a_model_learns_to_heed_poses(
    run: Run, views: Any, make_model: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    made = run(tmp_path, "nvs", variant)
    pipeline = M2MPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.unet.config.projection_class_embeddings_input_dim == 12
    assert pipeline.unet.class_embedding.linear_2.weight.any()
    assert draw(pipeline, poses=True).isfinite().all()
    with pytest.raises(ValueError, match="it needs poses"):
        draw(pipeline)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "curve.csv", "work", "store"}
    assert not [path for place in ("work", "store/checkpoints") for path in (tmp_path / place).rglob("*.*")]
    with (tmp_path / "curve.csv").open() as file:
        assert [row["images_seen"] for row in csv.DictReader(file)] == ["12"]
    assert made.images_seen == 12

    card, parent, manifest = (tmp_path / "model" / "README.md").read_text(), make_model(variant), views.manifest
    said = (
        *("# M2M-", " for novel views", "novel-view-synthesis", "license: apache-2.0", "poses=cameras"),
        *(f"`m2m-{variant}` | apache-2.0 | `{folder_digest(parent)}`", "(`nvs`), SHA-256"),
        *("- Pictures: noise; licence: CC0-1.0", f"- Weights: m2m-{variant}; licence: apache-2.0"),
        Manifest.read(manifest).digest,
    )
    assert [text for text in said if text not in card] == []


def test_a_model_learns_from_procedures_of_different_lengths(run: Run, tmp_path: Path) -> None:
    made = run(tmp_path, "vpg")
    assert made.images_seen == 24
    assert np.isfinite(made.held_out_loss)
    pipeline = load_pipeline(tmp_path / "model")
    assert pipeline.unet.pose_dim == 0
    assert draw(pipeline).isfinite().all()
    card = (tmp_path / "model" / "README.md").read_text()
    for text in (" for visual procedures", "visual-procedure-generation", "(`vpg`)", "Sets of up to 6 images"):
        assert text in card


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kept"), [("nvs", True), ("vpg", False)])
def test_slots_are_learnt_where_images_have_an_order_alone(
    run: Run, make_model: Callable[..., Path], tmp_path: Path, task: str, kept: bool
) -> None:
    run(tmp_path, task)
    parent, model = load_pipeline(make_model("self")), load_pipeline(tmp_path / "model")
    before, after = (
        [attention.slot_embedding for attention in each.unet.attentions().values()] for each in (parent, model)
    )
    assert [torch.equal(*slots) for slots in zip(before, after, strict=True)] == [kept] * len(before)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "task"), [("self", "nvs"), ("dino", "nvs"), ("dino", "vpg")])
def test_before_it_has_learnt_anything_it_draws_what_its_parent_draws(
    run: Run, make_model: Callable[..., Path], tmp_path: Path, variant: str, task: str
) -> None:
    run(tmp_path, task, variant, steps=1, rate=STILL)
    ours = draw(load_pipeline(tmp_path / "model"), poses=task == "nvs")
    torch.testing.assert_close(ours, draw(load_pipeline(make_model(variant))), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "task", "at"), [("self", "nvs", 12), ("dino", "nvs", 24), ("self", "vpg", 24)])
def test_stopped_and_called_again_it_ends_as_if_nothing_had_been(
    run: Run, tmp_path: Path, variant: str, task: str, at: int
) -> None:
    run(tmp_path / "whole", task, variant, steps=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", task, variant, steps=4, tracker=Stopping(at))
    (kept,) = (tmp_path / "broken" / "store" / "checkpoints").glob("*/*/[0-9]*")
    assert 0 < int(kept.name.partition(".")[0]) < at
    assert not (tmp_path / "broken" / "model").exists()
    run(tmp_path / "broken", task, variant, steps=4)
    assert folder_digest(tmp_path / "broken" / "model") == folder_digest(tmp_path / "whole" / "model")
    assert (tmp_path / "broken" / "curve.csv").read_bytes() == (tmp_path / "whole" / "curve.csv").read_bytes()


PARTS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolutions": (nn.Conv2d,),
    "image_set_attention": (ImageSetAttention,),
    "feed_forward": (FeedForward,),
}


def weights(unet: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, Tensor]:
    """All parameters of the modules of some kinds, by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in unet.named_modules()
        if isinstance(module, kinds)
        for own, parameter in module.named_parameters()
    }


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [("convolutions", "feed_forward"), ("image_set_attention",)])
def test_frozen_parts_keep_their_parents_weights_and_others_do_not(
    run: Run, make_model: Callable[..., Path], tmp_path: Path, frozen: tuple[str, ...]
) -> None:
    run(tmp_path, "nvs", frozen=frozen)
    before, after = load_pipeline(make_model("self")).unet, load_pipeline(tmp_path / "model").unet
    for part, kinds in PARTS.items():
        ours, theirs = weights(after, kinds), weights(before, kinds)
        same = {name for name in theirs if torch.equal(ours[name], theirs[name])}
        assert same == set(theirs) if part in frozen else len(same) < len(theirs) / 2, part
    assert not torch.equal(after.time_embedding.linear_1.weight, before.time_embedding.linear_1.weight)


def test_from_scratch_it_starts_at_stable_diffusion(
    run: Run, trainable: Path, train_common: Any, tmp_path: Path
) -> None:
    run(tmp_path, "nvs", steps=1, rate=STILL, model=trainable, scratch=train_common)
    ours = draw(load_pipeline(tmp_path / "model"), poses=True)
    torch.testing.assert_close(ours, draw(from_stable_diffusion(trainable, "self", train_common)), rtol=1e-4, atol=1e-5)
    card, digest = (tmp_path / "model" / "README.md").read_text(), folder_digest(trainable / "stable-diffusion")
    assert f"`stable-diffusion` | not stated | `{digest}`" in card


def test_a_parent_that_is_damaged_or_missing_is_one_line(
    run: Run, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    with pytest.raises(UserError, match=f"{parent}: not a model folder"):
        run(tmp_path, "vpg", model=parent)
    shutil.copytree(make_model("self"), parent)
    unet = parent / "unet" / "diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{parent}: incomplete or damaged") as caught:
        run(tmp_path, "vpg", model=parent)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent", "store"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["nvs", "vpg"])
def test_where_its_parent_lay_is_not_in_it(
    run: Run, make_model: Callable[..., Path], tmp_path: Path, task: str
) -> None:
    elsewhere = shutil.copytree(make_model("dino"), tmp_path / "elsewhere" / "m2m-dino")
    run(tmp_path / "one", task, "dino", steps=1)
    run(tmp_path / "two", task, "dino", steps=1, model=elsewhere)
    assert folder_digest(tmp_path / "one" / "model") == folder_digest(tmp_path / "two" / "model")
    for file in (tmp_path / "two" / "model").rglob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_sets_without_cameras_are_no_views(run: Run, procedures: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set validation-0 has no poses; views need a camera for each image"):
        run(tmp_path, "nvs", manifest=procedures.manifest, store=procedures.store)
    assert not (tmp_path / "model").exists()
