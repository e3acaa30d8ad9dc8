"""The stage as a whole: from a foundation and a dataset to a pipeline folder that draws."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from PIL import Image

from m2m.contact_sheet import FRAME, GAP
from m2m.data.dataset import ImageSets
from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest
from m2m.params import TrainCommon, TrainDino, TrainVariant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.runtime import Runtime
from m2m.settings import revision
from m2m.stages import train
from m2m.store import LocalStore
from m2m.tracking import NullTracker
from m2m.training import run as training_run
from m2m.training.state import Point

Run = Callable[..., Point]


@dataclass
class Remembering:
    """A tracker that keeps what is said to it; its own only run."""

    id: str = "run-1"
    resumed: list[str | None] = field(default_factory=list)
    tagged: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    points: dict[int, Mapping[str, float]] = field(default_factory=dict)
    pictures: dict[tuple[str, int], Image.Image] = field(default_factory=dict)
    datasets: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    fails_at: int | None = None

    @contextmanager
    def run(
        self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None
    ) -> Iterator[Remembering]:
        assert (name, stage) == (f"train-{tags['variant']}", "train")
        self.resumed.append(resume_key)
        self.tagged = dict(tags)
        yield self

    def server_id(self, *, patience: float) -> str | None:
        raise AssertionError("a stage waits for no server")

    def params(self, values: Mapping[str, object]) -> None:
        self.parameters |= values

    def tags(self, values: Mapping[str, str]) -> None:
        self.tagged |= values

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        assert step is not None
        if step == self.fails_at:
            raise KeyboardInterrupt
        self.points[step] = values

    def image(self, image: Image.Image, *, key: str, step: int) -> None:
        self.pictures[key, step] = image

    def artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(folder + path.name)

    def dataset(self, name: str, *, source: str, digest: str, context: str, sets: Mapping[str, int]) -> None:
        assert source
        assert list(sets) == ["train", "validation", "test"]
        self.datasets.append((name, digest))
        assert context == "training"

    def register(self, model_folder: Path, name: str, **_: object) -> str | None:
        raise AssertionError(f"{model_folder} is registered as {name} by evaluation, when its scores are known")


@pytest.fixture
def run(
    dataset: Any,
    foundation: Path,
    make_common: Callable[..., TrainCommon],
    make_variant: Callable[..., TrainVariant],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """The stage with its outputs below a folder, 6 steps of 16 images, with changes; previews take 2 steps."""
    monkeypatch.setattr(training_run, "PREVIEW_STEPS", 2)

    def call(
        folder: Path,
        variant: Any = "self",
        *,
        common: dict[str, Any] | None = None,
        tracker: Any = None,
        **changes: Any,
    ) -> Any:
        arguments = {
            "manifest": dataset.manifest,
            "foundation": foundation,
            "out": folder / "model",
            "curve": folder / "curve.csv",
            "runtime": Runtime(store=dataset.copied(folder), work=folder / "work", tracker=tracker or NullTracker()),
            **changes,
        }
        params = make_variant(images=96)
        if variant == "dino":
            params = TrainDino.model_validate({**params.model_dump(), "encoder": "dino", "caption_start": 5})
        return train.run(make_common(**common or {}), variant, params, **arguments)

    return call


@pytest.mark.parametrize("variant", ["self", "dino"])
def test_it_trains_on_from_a_model(run: Run, foundation: Path, tmp_path: Path, variant: str) -> None:
    run(tmp_path / "before", variant)
    before = tmp_path / "before" / "model"
    tracker, started = Remembering(), []

    def watch(pipeline: M2MPipeline, *arguments: Any, **named: Any) -> Point:
        started.append({name: value.clone() for name, value in pipeline.unet.state_dict().items()})
        return train_model(pipeline, *arguments, **named)

    train_model = train.train_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_model", watch)
        patch.setattr(training_run, "start_from_captions", None)  # what reads already does not start anew
        run(tmp_path / "after", variant, model=before, tracker=tracker)
    kept = load_pipeline(before).unet.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in started[0].items())
    assert tracker.parameters["parent"] == {"model": folder_digest(before)}
    assert folder_digest(tmp_path / "after" / "model") != folder_digest(before)
    card = (tmp_path / "after" / "model" / "README.md").read_text()
    assert f"| `model` | unknown | `{folder_digest(before)}` |" in card
    assert str(tmp_path) not in card


def test_a_model_of_another_make_is_not_trained_on(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "before")

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=words) as caught:
            run(tmp_path / "after", model=tmp_path / "before" / "model", **changes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "after" / "model").exists()

    refused("its variant is self, and dino is asked for", variant="dino")
    refused(r"its train\.common\.max_context is \d, and 2 is asked for", common={"max_context": 2})
    refused("prediction_type is epsilon, and v_prediction is", common={"prediction_type": "v_prediction"})
    model = load_pipeline(tmp_path / "before" / "model")
    with torch.no_grad():
        for block in model.unet.attentions().values():
            block.slot_embedding += 1
    model.save_pretrained(tmp_path / "before" / "model")
    refused("its order of images is True, and False is asked for")
    with torch.no_grad():
        for block in model.unet.attentions().values():
            block.slot_embedding.zero_()
        next(model.vae.parameters()).add_(1)
    model.save_pretrained(tmp_path / "before" / "model")
    refused("its VAE is not that of the foundation, which the sets' latents are of")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["self", "dino"])
def test_it_makes_a_pipeline_that_draws_and_tells_the_tracker(
    run: Run, dataset: Any, foundation: Path, tmp_path: Path, variant: str
) -> None:
    tracker = Remembering()
    made = run(tmp_path, variant, tracker=tracker)
    model = tmp_path / "model"
    pipeline = M2MPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline([Image.new("RGB", (64, 64), "red")], 2, num_inference_steps=2, generator=0).images
    assert [image.size for image in drawn] == [(64, 64)] * 2
    assert pipeline.unet.config.variant == variant
    assert not any(a.slot_embedding.any() for a in pipeline.unet.attentions().values()), "the sets have no order"
    assert not [path for path in tmp_path.iterdir() if path.name not in {"model", "curve.csv", "work", "store"}]
    assert not list((tmp_path / "work").glob("*"))
    assert not list(LocalStore(tmp_path / "store").objects("checkpoints/"))

    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(tracker.points) == [int(row.pop("images_seen")) for row in rows] == [48, 96]
    assert [dict(point) for point in tracker.points.values()] == [{k: float(v) for k, v in row.items()} for row in rows]
    assert made.images_seen == 96
    assert made.metrics() == tracker.points[96]
    assert set(tracker.pictures) == {(key, 96) for key in ("preview/00", "preview/01", "preview/all")}
    manifest = Manifest.read(dataset.manifest)
    assert tracker.datasets == [("mis", manifest.digest)]
    assert tracker.tagged == {"variant": variant, "manifest": manifest.digest, "model": folder_digest(model)}
    assert tracker.parameters["learning_rate"] == 1e-3
    assert tracker.artifacts == ["curve.csv"]

    card = (model / "README.md").read_text()
    folders = ["stable-diffusion", "dino"] if variant == "dino" else ["stable-diffusion"]
    digests = [folder_digest(foundation / name) for name in folders]
    assert all(text in card for text in ("It has seen 96 images, in sets of 4", manifest.digest, *digests))
    assert ("dino" in card.split("Parameters:")[0].split("SHA-256 of the folder")[1]) == (variant == "dino")
    terms = metadata_load(model / "README.md")["terms"]
    assert terms[-len(folders) :] == [f"Weights: {name}; licence: not stated" for name in folders]
    assert all(f"- {term}\n" in card for term in terms)


def test_it_looks_at_validation_sets_and_never_at_the_test(
    run: Run, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: set[str] = set()
    get = LocalStore.get

    def watched(self: LocalStore, key: str, *rest: Any) -> Path:
        fetched.add(key)
        return get(self, key, *rest)

    monkeypatch.setattr(LocalStore, "get", watched)
    tracker = Remembering()
    run(tmp_path, tracker=tracker)
    manifest = Manifest.read(dataset.manifest)
    assert fetched == {shard.key for shard in manifest.shards if shard.split != "test"}
    sets = ImageSets(dataset.store, manifest, "validation")
    for place in range(2):
        shown = np.asarray(tracker.pictures[f"preview/{place:02}", 96])
        given = shown[GAP + FRAME :: 2, GAP + FRAME :: 2][:64, :64]  # a sheet shows it at twice its size
        assert np.array_equal(given, sets[place].images[0])


def test_a_flipped_bit_in_any_file_of_a_model_folder_is_named(run: Run, tmp_path: Path) -> None:
    run(tmp_path, "dino")
    model = tmp_path / "model"
    files = [path for path in model.rglob("*") if path.is_file() and path.name != "digests.json"]
    assert len(files) >= 8
    for path in files:
        good = path.read_bytes()
        content = bytearray(good)
        content[-2] ^= 1
        path.write_bytes(content)
        for load in (M2MPipeline.from_pretrained, load_pipeline):
            with pytest.raises(UserError, match=f"{path.name}: damaged|{path.name} is missing or damaged") as caught:
                load(model)
            assert "\n" not in str(caught.value)
        path.write_bytes(good)
    pipeline = load_pipeline(model)
    pipeline.scheduler.register_to_config(clip_sample=True)
    pipeline.save_pretrained(model)  # a folder of its user's own now
    load_pipeline(model)


@pytest.mark.slow
def test_the_same_run_elsewhere_gives_the_same_bytes(run: Run, foundation: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other" / "deeper"
    run(one, "dino")
    shutil.copytree(foundation, tmp_path / "moved")
    run(other, "dino", foundation=tmp_path / "moved")
    assert folder_digest(one / "model") == folder_digest(other / "model")
    assert (one / "curve.csv").read_bytes() == (other / "curve.csv").read_bytes()
    assert all(str(tmp_path) not in path.read_text() for path in (one / "model").rglob("*.json"))


@pytest.mark.slow
def test_the_same_weights_under_another_commit_are_the_same_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all that rests on the model would be made again after a commit that changed none of its bytes."""
    checkout, commits = tmp_path / "checkout", list[str]()
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    subprocess.run(["git", "init", "-q", checkout], check=True)
    monkeypatch.chdir(checkout)
    for commit in ("one", "other"):
        subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", commit], check=True)
        assert revision().commit not in {"unknown", *commits}
        monkeypatch.setattr("m2m.training.run.code_digest", lambda module, commit=commit: f"{module} of {commit}")
        run(tmp_path / commit)
        commits.append(revision().commit)
        assert not any(commits[-1] in path.read_text() for path in (tmp_path / commit / "model").rglob("*.md"))
    assert folder_digest(tmp_path / "one" / "model") == folder_digest(tmp_path / "other" / "model")


@pytest.mark.slow
def test_v_prediction_and_checkpointed_activations_reach_the_model(run: Run, tmp_path: Path) -> None:
    run(tmp_path, common={"prediction_type": "v_prediction", "gradient_checkpointing": True})
    scheduler = json.loads((tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["beta_start"] == 0.00085


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["self", "dino"])
def test_it_goes_on_with_the_same_tracked_run_and_then_starts_another(run: Run, tmp_path: Path, variant: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, variant, tracker=Remembering(fails_at=96))
    assert not (tmp_path / "model").exists()
    tracker = Remembering(id="run-1")
    run(tmp_path, variant, tracker=tracker)
    assert tracker.resumed == ["run-1"]
    assert list(tracker.points) == [96]
    finished = folder_digest(tmp_path / "model")
    run(tmp_path, variant, tracker=tracker)
    assert tracker.resumed == ["run-1", None]
    assert folder_digest(tmp_path / "model") == finished


@pytest.mark.slow
def test_other_parameters_start_afresh_and_say_so(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tracker=Remembering(fails_at=96))
    tracker = Remembering()
    run(tmp_path, common={"weight_decay": 0.02}, tracker=tracker)
    assert tracker.resumed == [None]
    assert list(tracker.points) == [48, 96]
    assert "starts afresh" in caplog.text


@pytest.mark.slow
def test_other_code_starts_afresh_and_says_so(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tracker=Remembering(fails_at=96))
    monkeypatch.setattr("m2m.training.run.code_digest", lambda module: f"of other code than {module}")
    tracker = Remembering()
    run(tmp_path, tracker=tracker)
    assert tracker.resumed == [None]
    assert list(tracker.points) == [48, 96]
    assert "starts afresh" in caplog.text


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("stable-diffusion", "no such folder"),
        ("stable-diffusion/unet", "incomplete or damaged"),
        ("stable-diffusion/vae/diffusion_pytorch_model.safetensors", "incomplete or damaged"),
        ("stable-diffusion/scheduler/scheduler_config.json", "incomplete or damaged"),
        ("dino/model.safetensors", "incomplete or damaged"),
    ],
)
def test_a_foundation_in_which_something_is_missing_is_refused(
    run: Run, foundation: Path, tmp_path: Path, broken: str, words: str
) -> None:
    shutil.copytree(foundation, tmp_path / "foundation")
    path = tmp_path / "foundation" / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path, "dino", foundation=tmp_path / "foundation")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_weights_cut_short_are_refused(run: Run, foundation: Path, tmp_path: Path) -> None:
    shutil.copytree(foundation, tmp_path / "foundation")
    weights = tmp_path / "foundation" / "stable-diffusion" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="incomplete or damaged"):
        run(tmp_path, foundation=tmp_path / "foundation")


@pytest.mark.parametrize(("split", "words"), [("train", "cannot train with"), ("validation", "no validation sets")])
def test_a_manifest_without_the_sets_of_a_split_is_refused(
    run: Run, dataset: Any, tmp_path: Path, split: str, words: str
) -> None:
    manifest = Manifest.read(dataset.manifest)
    left = tuple(shard for shard in manifest.shards if shard.split != split)
    manifest.model_copy(update={"shards": left}).write(tmp_path / "mis.json")
    with pytest.raises(UserError, match=words):
        run(tmp_path, manifest=tmp_path / "mis.json")
