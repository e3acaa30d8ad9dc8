"""The evaluate stage with a tiny model, small judges and painted sets: from folders to numbers and pictures."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image

from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet, write_shard
from m2m.errors import UserError
from m2m.evaluation import lots, sampling
from m2m.evaluation.table import Evaluation
from m2m.files import folder_digest
from m2m.foundation import contrast
from m2m.foundation.words import learn_tokenizer
from m2m.manifest import Manifest, ShardEntry
from m2m.models.classifier import WorldClassifier
from m2m.models.unet import ImageSetUNet
from m2m.params import EvaluateMis, GateParams, SubsetParams, TransformerFit
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.stages import evaluate
from m2m.store import LocalStore
from m2m.tracking import NullTracker
from m2m.world.grammar import Caption
from m2m.world.pictures import paint
from m2m.world.variation import Variation
from m2m.world.vocabulary import ALL_STYLES, COLOUR_NAMES, NOUNS

SETS, IMAGES = 6, 5
CAPTIONS = [Caption(NOUNS[index], COLOUR_NAMES[index], ALL_STYLES[index % 6]) for index in range(SETS)]
PARAMS = EvaluateMis(
    seed=3,
    sets=SETS,
    given=1,
    generated=4,
    subset=SubsetParams(given=(2, 3), sets=3),
    solver="ddim",
    num_inference_steps=2,
    guidance_scale=1.5,
    context_timestep=0,
    sets_per_batch=4,
    precision="float32",
    gallery_sets=2,
    bootstrap=20,
    gate=GateParams(metric="content_agreement/mean", better="higher"),
)


@dataclass(frozen=True)
class Workplace:
    """Paths of one evaluation."""

    root: Path
    inputs: dict[str, Any]

    @property
    def metrics(self) -> Path:
        return self.root / "metrics" / "evaluate-self.json"

    @property
    def plots(self) -> Path:
        return self.root / "reports" / "evaluate-self"

    def evaluate(self, params: EvaluateMis = PARAMS, **changed: Any) -> Evaluation:
        outputs = {"metrics": self.metrics, "plots": self.plots, "work": self.root / "work", "tracker": NullTracker()}
        return evaluate.run(params, "self", **{**self.inputs, **outputs, "device": "cpu", **changed})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_stable_diffusion: Path) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("evaluate")
    foundation = root / "foundation"
    tokenizer = learn_tokenizer(caption.text() for caption in CAPTIONS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=16, layers=1)
        contrast.save(foundation / "clip", contrast.build(fit, tokenizer), tokenizer)
        classes = {"noun": NOUNS, "colour": COLOUR_NAMES, "style": ALL_STYLES, "step": ("0", "1")}
        WorldClassifier(classes, widths=(8, 16, 16, 8)).save_pretrained(foundation / "inception")
        unet = ImageSetUNet.from_stable_diffusion(tiny_stable_diffusion, variant="self", max_context=4, context_dim=0)
        M2MPipeline(
            vae=AutoencoderKL.from_pretrained(tiny_stable_diffusion, subfolder="vae"),
            unet=unet,
            scheduler=DDIMScheduler.from_pretrained(tiny_stable_diffusion, subfolder="scheduler", clip_sample=False),
        ).save_pretrained(root / "model")
    shutil.copytree(tiny_stable_diffusion, foundation / "stable-diffusion")

    random = np.random.default_rng(0)
    sets = [
        ImageSet(
            id=f"test-{index}",
            caption=caption.text(),
            images=np.stack([paint(caption, Variation.draw(random)) for _ in range(IMAGES)]),
        )
        for index, caption in enumerate(CAPTIONS)
    ]
    store = LocalStore(root / "store")
    stats = write_shard(sets, root / "shard.tar")
    entry = ShardEntry(key=f"shards/{stats.sha256}.tar", split="test", **vars(stats))
    store.put(entry.key, root / "shard.tar", entry.sha256)
    Manifest(schema_version=1, kind="mis", made_by={}, images_per_set=IMAGES, redrawn=0, shards=(entry,)).write(
        root / "mis.json"
    )
    return {"model": root / "model", "foundation": foundation, "manifest": root / "mis.json", "store": store}


@pytest.fixture
def workplace(tmp_path: Path, inputs: dict[str, Any]) -> Workplace:
    return Workplace(tmp_path, inputs)


@dataclass
class Notebook:
    """A run that remembers what it was told."""

    id: str = "run-1"
    told: dict[str, Any] = field(default_factory=dict)

    def server_id(self, *, patience: float) -> str | None:
        raise AssertionError("a stage waits for no server")

    def tags(self, values: Any) -> None:
        raise AssertionError("all that an evaluation is of is known at its start")

    def params(self, values: Any) -> None:
        self.told["params"] = values

    def metrics(self, values: Any, *, step: int | None = None) -> None:
        self.told.setdefault("metrics", {}).update(values)

    def image(self, image: Image.Image, *, key: str, step: int) -> None:
        self.told.setdefault("images", []).append(key)

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()

    def dataset(self, name: str, *, source: str, digest: str, context: str, sets: Any) -> None:
        self.told["dataset"] = (name, digest)

    def register(self, model_folder: Path, name: str, *, metrics: Any, tags: Any, gate: Any) -> str:
        self.told["registered"] = (model_folder, name, metrics, tags, gate)
        return "7"


@dataclass
class Notes:
    """A tracker with one notebook."""

    notebook: Notebook = field(default_factory=Notebook)
    resumed: list[str | None] = field(default_factory=list)

    @contextmanager
    def run(self, name: str, *, stage: str, tags: Any, resume_key: str | None = None) -> Iterator[Notebook]:
        self.resumed.append(resume_key)
        self.notebook.told["run"] = (name, stage, dict(tags))
        yield self.notebook


def digests(workplace: Workplace) -> dict[str, str]:
    files = [workplace.metrics, *workplace.plots.iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Any]) -> tuple[Workplace, Notes]:
    """An evaluation that nothing disturbed, and what its tracker heard."""
    workplace, notes = Workplace(tmp_path_factory.mktemp("finished"), inputs), Notes()
    workplace.evaluate(tracker=notes)
    return workplace, notes


def test_the_numbers_file_is_flat_sorted_and_says_what_it_rests_on(finished: tuple[Workplace, Notes]) -> None:
    workplace, _ = finished
    numbers = json.loads(workplace.metrics.read_text())
    assert list(numbers) == sorted(numbers)
    assert all(np.isfinite(value) for value in numbers.values() if not isinstance(value, str))
    assert (numbers["sets"], numbers["images"], numbers["seed"]) == (SETS, SETS * 4, 3)
    assert numbers["manifest"] == Manifest.read(workplace.inputs["manifest"]).digest
    assert numbers["network/inception"].startswith("world-classifier@")


def test_mean_and_deviation_are_those_over_positions(finished: tuple[Workplace, Notes]) -> None:
    numbers = json.loads(finished[0].metrics.read_text())
    names = ("fid", "inception_score", "clip_text_image", "clip_image_image", "content_agreement", "diversity")
    for prefix in ("", "baseline/mis/", "baseline/copy/"):
        for name in names:
            positions = [numbers[f"{prefix}{name}/position/{position:02}"] for position in range(1, 5)]
            assert numbers[f"{prefix}{name}/mean"] == pytest.approx(np.mean(positions), rel=1e-4, abs=1e-12)
            assert numbers[f"{prefix}{name}/std"] == pytest.approx(np.std(positions), rel=1e-3, abs=1e-4)
    assert f"baseline/stable_diffusion/fid/position/{lots.UNCONDITIONAL_POSITIONS:02}" in numbers
    assert "baseline/shuffled/fid/mean" in numbers


def test_copies_are_most_alike_and_least_diverse(finished: tuple[Workplace, Notes]) -> None:
    numbers = json.loads(finished[0].metrics.read_text())
    assert numbers["baseline/copy/clip_image_image/mean"] == pytest.approx(100)
    assert numbers["baseline/copy/diversity/mean"] == numbers["baseline/copy/spread/place"] == 0
    assert numbers["baseline/mis/diversity/mean"] > 0


def test_shares_follow_from_the_other_numbers(finished: tuple[Workplace, Notes]) -> None:
    numbers = json.loads(finished[0].metrics.read_text())
    share = numbers["diversity/mean"] / numbers["baseline/mis/diversity/mean"]
    assert numbers["relative/diversity"] == pytest.approx(share, rel=1e-4)


def test_more_given_pictures_are_compared_in_pairs(finished: tuple[Workplace, Notes]) -> None:
    numbers = json.loads(finished[0].metrics.read_text())
    for given in (2, 3):
        for name in ("noun", "colour", "content", "style"):
            more, one = (numbers[f"{name}_agreement/given={count}/mean"] for count in (given, 1))
            pair = f"paired/{name}_agreement/given={given}-minus-1"
            assert numbers[f"{pair}/mean"] == pytest.approx(more - one, abs=1e-5)
            assert numbers[f"{pair}/low"] <= numbers[f"{pair}/mean"] <= numbers[f"{pair}/high"]


def test_plots_are_there(finished: tuple[Workplace, Notes]) -> None:
    workplace, _ = finished
    numbers = json.loads(workplace.metrics.read_text())
    rows = list(csv.DictReader((workplace.plots / "positions.csv").read_text().splitlines()))
    assert [row["position"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[2]["fid"]) == numbers["fid/position/03"]
    for given in (1, 2, 3):
        with Image.open(workplace.plots / f"given-{given}.png") as gallery:
            assert gallery.width > gallery.height
            assert json.loads(gallery.info["captions"]) == [caption.text() for caption in CAPTIONS[:2]]


def test_the_tracker_hears_of_it(finished: tuple[Workplace, Notes]) -> None:
    workplace, notes = finished
    numbers = json.loads(workplace.metrics.read_text())
    told = notes.notebook.told
    made_from = {
        "variant": "self",
        "manifest": numbers["manifest"],
        "model": folder_digest(workplace.inputs["model"]),
    }
    assert told["run"] == ("evaluate-self", "evaluate", made_from)
    folder, name, scores, tags, gate = told["registered"]
    assert (folder, name, gate) == (workplace.inputs["model"], "m2m-self", PARAMS.gate)
    assert {key: float(f"{value:.6g}") for key, value in scores.items()}.items() <= numbers.items()
    assert tags == made_from
    assert told["metrics"]["seconds_per_image"] > 0
    assert not any("seconds" in key for key in numbers)
    assert told["images"] == ["gallery/given-1", "gallery/given-2", "gallery/given-3"]


def test_what_is_only_compared_is_not_registered(workplace: Workplace) -> None:
    notes = Notes()
    assert workplace.evaluate(tracker=notes, register=False).version is None
    assert "registered" not in notes.notebook.told
    assert workplace.metrics.exists()


def test_a_killed_evaluation_goes_on_and_ends_the_same(
    finished: tuple[Workplace, Notes], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = sampling.Continuations._draw

    def draw_until_killed(self: sampling.Continuations, members: Any) -> Any:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(self.given)
        return draw(self, members)

    notes = Notes()
    with monkeypatch.context() as patch:
        patch.setattr(sampling.Continuations, "_draw", draw_until_killed)
        with pytest.raises(KeyboardInterrupt):
            workplace.evaluate(tracker=notes)
        assert not workplace.metrics.exists()
        assert drawn == [1, 1, 2]

        before, drawn[:] = len(drawn), []
        nothing = PARAMS.model_copy(update={"gate": GateParams(metric="beauty/mean", better="higher")})
        with pytest.raises(UserError, match=r"gate.metric is beauty/mean.* content_agreement/mean.* fid/mean"):
            workplace.evaluate(nothing, tracker=notes)
        assert not workplace.metrics.exists()
        # Another gate judges the same pictures.
        assert workplace.evaluate(tracker=notes).version == "7"
    assert before + len(drawn) == 4  # two batches with one given picture, one each with two and three
    assert notes.resumed == [None, "run-1", "run-1"]
    assert digests(workplace) == digests(finished[0])
    assert not (workplace.root / "work" / "evaluate-self").exists()


def test_pictures_of_a_set_do_not_depend_on_its_batch(inputs: dict[str, Any], tmp_path: Path) -> None:
    pipeline = load_pipeline(inputs["model"])
    sets = ImageSets(inputs["store"], Manifest.read(inputs["manifest"]), "test")

    def drawn(sets_per_batch: int) -> np.ndarray:
        params = PARAMS.model_copy(update={"sets_per_batch": sets_per_batch})
        folder = tmp_path / str(sets_per_batch)
        draws = sampling.Continuations(
            pipeline=pipeline, sets=sets, count=SETS, given=2, total=4, params=params, folder=folder
        )
        return draws.first(SETS)

    four, three = drawn(4), drawn(3)
    assert four.shape == (SETS, 2, 64, 64, 3)
    assert np.abs(four.astype(int) - three).max() <= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sets": 7}, r"evaluate\.mis\.sets is 7, but there are 6 test sets"),
        ({"generated": 5}, r"evaluate\.mis\.given \+ evaluate\.mis\.generated is 6, more than the 5 images"),
        ({"generated": 1}, r"evaluate\.mis\.generated is 1"),
        ({"subset": SubsetParams(given=(2,), sets=7)}, r"evaluate\.mis\.subset\.sets is 7"),
        ({"subset": SubsetParams(given=(5,), sets=2)}, r"evaluate\.mis\.subset\.given holds 5"),
    ],
)
def test_asking_for_more_than_there_is_is_one_clear_line(
    workplace: Workplace, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        workplace.evaluate(PARAMS.model_copy(update=change))
    assert list(workplace.root.iterdir()) == []


@pytest.mark.parametrize("folder", ["model", "foundation"])
def test_a_missing_folder_is_one_clear_line(workplace: Workplace, folder: str) -> None:
    with pytest.raises(UserError, match=str(workplace.root / "nothing")):
        workplace.evaluate(**{folder: workplace.root / "nothing"})


def test_shuffled_colours_keep_every_pixel_of_a_channel_together() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(3, 2, 8, 8, 3), dtype=np.uint8)
    [(captions, shuffled)] = lots.colours_shuffled([(["a"] * 3, images)], seed=0)
    assert captions == ["a"] * 3
    for before, after in zip(images.reshape(-1, 8, 8, 3), shuffled.reshape(-1, 8, 8, 3), strict=True):
        assert not np.array_equal(before, after)
        assert {before[..., c].tobytes() for c in range(3)} == {after[..., c].tobytes() for c in range(3)}
