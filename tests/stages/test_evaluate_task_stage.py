"""The evaluation of fine-tuned models, with tiny ones: from folders to numbers, galleries and what turns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2m.errors import UserError
from m2m.evaluation.continuations import Continued, Drawer
from m2m.evaluation.nvs import FRAMES
from m2m.files import folder_digest
from m2m.manifest import Manifest
from m2m.params import EvaluateNvs, EvaluateVpg, GateParams
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.runtime import Runtime
from m2m.stages import evaluate
from m2m.tracking import NullTracker
from m2m.workers import ALONE, Workers

DRAWING: dict[str, Any] = {
    "seed": 3,
    "solver": "ddim",
    "num_inference_steps": 1,
    "guidance_scale": 1.5,
    "context_timestep": 0,
    "drawn_context": None,
    "sets_per_batch": 2,
    "precision": "float32",
    "gallery_sets": 2,
    "bootstrap": 20,
    "sets": 3,
    "validation_sets": 2,
}
PARAMS = {
    "nvs": EvaluateNvs(
        **DRAWING,
        given=(1, 2),
        gate=GateParams(metric="validation/psnr/given=1/mean", better="higher", require={}),
    ),
    "vpg": EvaluateVpg(**DRAWING, gate=GateParams(metric="validation/fid/mean", better="lower", require={})),
}
DRAWN = {"nvs": 3 * (3 + 2 + 3) + 2 * 3, "vpg": 2 * (5 + 4 + 5) + 5 + 4}
"""Pictures in all, by both models; the test procedures have 6, 5 and 6 steps, those of validation 6 and 5."""


@dataclass
class Workplace:
    """Paths of the evaluations of one folder."""

    root: Path
    inputs: Callable[[str], dict[str, Any]]

    def evaluate(self, task: Any, **changed: Any) -> evaluate.Evaluation:
        options = {**self.inputs(task), "metrics": self.metrics(task), "plots": self.plots(task), **changed}
        params, tracker = options.pop("params", PARAMS[task]), options.pop("tracker", NullTracker())
        shared = {"tracker": tracker, "workers": options.pop("workers", ALONE)}
        runtime = Runtime(store=options.pop("store"), work=self.root / "work", **shared)
        return evaluate.run(params, task, "self", runtime=runtime, **options)

    def metrics(self, task: str) -> Path:
        return self.root / f"{task}.json"

    def plots(self, task: str) -> Path:
        return self.root / task

    def details(self, task: str) -> dict[str, Any]:
        return dict(json.loads((self.plots(task) / "details.json").read_text()))

    def digests(self, task: str) -> dict[str, str]:
        files = [self.metrics(task), *self.plots(task).iterdir()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass
class Notes:
    """A tracker of one run that remembers what it was told."""

    id: str = "run-1"
    told: dict[str, Any] = field(default_factory=dict)
    resumed: list[str | None] = field(default_factory=list)

    @contextmanager
    def run(self, name: str, *, stage: str, tags: Any, resume_key: str | None = None) -> Iterator[Notes]:
        self.resumed.append(resume_key)
        self.told["run"] = (name, stage, dict(tags))
        yield self

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
        self.told["registered"] = (model_folder, name, metrics)
        return "7"


@pytest.fixture(scope="module")
def inputs(views: Any, procedures: Any, make_model: Callable[..., Path], judges: Path) -> Callable[[str], Any]:
    def of(task: Any) -> dict[str, Any]:
        dataset = views if task == "nvs" else procedures
        models = {"model": make_model("self", task), "untuned": make_model("self")}
        return {**models, "foundation": judges, "manifest": dataset.manifest, "store": dataset.store}

    return of


@pytest.fixture
def workplace(tmp_path: Path, inputs: Callable[[str], Any]) -> Workplace:
    return Workplace(tmp_path, inputs)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, inputs: Callable[[str], Any]
) -> tuple[Workplace, dict[str, Notes]]:
    """Both tasks' evaluations that nothing disturbed, and what their trackers heard."""
    workplace, notes = Workplace(tmp_path_factory.mktemp("finished"), inputs), {"nvs": Notes(), "vpg": Notes()}
    for task, tracker in notes.items():
        workplace.evaluate(task, tracker=tracker)
    return workplace, notes


@pytest.mark.slow
@pytest.mark.parametrize("task", ["nvs", "vpg"])
def test_the_numbers_file_holds_headlines_and_says_what_they_rest_on(
    finished: tuple[Workplace, dict[str, Notes]], task: str
) -> None:
    workplace, notes = finished
    numbers, told = json.loads(workplace.metrics(task).read_text()), notes[task].told
    details = workplace.details(task)
    assert numbers.items() <= details.items()
    assert PARAMS[task].gate.metric in numbers
    assert len([key for key in numbers if "/" in key and not key.startswith("network/")]) <= 12
    assert list(numbers) == sorted(numbers)
    assert all(np.isfinite(value) for value in numbers.values() if not isinstance(value, str))
    manifest = Manifest.read(workplace.inputs(task)["manifest"]).digest
    assert (numbers["sets"], numbers["seed"], numbers["manifest"]) == (3, 3, manifest)
    assert numbers["images"] == (12 if task == "nvs" else 17)
    assert numbers["network/inception"].startswith("world-classifier@")
    assert numbers.get("network/perceptual") == (numbers["network/inception"] if task == "nvs" else None)
    model = folder_digest(workplace.inputs(task)["model"])
    tags = {"variant": "self", "task": task, "manifest": manifest, "model": model}
    assert told["run"] == (f"evaluate-self-{task}", "evaluate", tags)
    assert told["dataset"] == (task, manifest)
    folder, name, scores = told["registered"]
    assert (folder, name) == (workplace.inputs(task)["model"], f"m2m-self-{task}")
    assert {key: float(f"{value:.6g}") for key, value in scores.items()}.items() <= details.items()
    assert told["metrics"]["seconds_per_image"] > 0
    assert not (workplace.root / "work" / f"evaluate-self-{task}").exists()


@pytest.mark.slow
def test_views_are_measured_by_view_and_angle_beside_what_must_be_beaten(
    finished: tuple[Workplace, dict[str, Notes]],
) -> None:
    workplace, notes = finished
    numbers = workplace.details("nvs")
    for name in ("psnr", "ssim", "perceptual"):
        for prefix, given in (
            ("", 1),
            ("", 2),
            ("baseline/nearest/", 1),
            ("baseline/nearest/", 2),
            ("baseline/untuned/", 1),
        ):
            key = f"{prefix}{name}/given={given}"
            drawn = [numbers[f"{key}/view/{view:02}"] for view in range(given + 1, 5)]
            assert numbers[f"{key}/mean"] == pytest.approx(np.mean(drawn), rel=1e-4, abs=1e-6)
            assert any(found.startswith(f"{key}/angle/") for found in numbers)
        pair = f"paired/{name}/given=2-minus-1"
        assert numbers[f"{pair}/low"] <= numbers[f"{pair}/mean"] <= numbers[f"{pair}/high"]
        both = [numbers[f"{name}/given=1/view/{view:02}"] for view in (3, 4)]
        assert numbers[f"{pair}/mean"] == pytest.approx(numbers[f"{name}/given=2/mean"] - np.mean(both), abs=1e-4)
    assert notes["nvs"].told["images"] == ["gallery/given-1", "gallery/given-2"]
    with Image.open(workplace.plots("nvs") / "turntable.gif") as turntable:
        assert turntable.n_frames == FRAMES
        assert turntable.width == 2 * turntable.height, "two objects beside each other"
    assert {path.name for path in workplace.plots("nvs").iterdir()} == {
        *("details.json", "digests.json", "given-1.png", "given-2.png", "turntable.gif")
    }


@pytest.mark.slow
def test_steps_are_measured_by_position_beside_what_bounds_them(
    finished: tuple[Workplace, dict[str, Notes]],
) -> None:
    workplace, _ = finished
    numbers = workplace.details("vpg")
    for prefix in ("", "baseline/true/", "baseline/untuned/", "baseline/repeated/"):
        assert f"{prefix}fid/mean" in numbers
        for name in ("step_order", "clip_image_image"):
            positions = [numbers[f"{prefix}{name}/position/{place:02}"] for place in range(1, 6)]
            assert numbers[f"{prefix}{name}/std"] == pytest.approx(np.std(positions), rel=1e-3, abs=1e-4)
            of_sets = np.average(positions, weights=[3, 3, 3, 3, 2])  # one of three procedures is a step shorter
            assert numbers[f"{prefix}{name}/mean"] == pytest.approx(of_sets, rel=1e-4, abs=1e-4)
    assert numbers["baseline/repeated/clip_image_image/mean"] == pytest.approx(100)
    assert numbers["baseline/true/fid/mean"] == pytest.approx(0, abs=1e-4)
    with Image.open(workplace.plots("vpg") / "given-1.png") as gallery:
        assert len(json.loads(gallery.info["captions"])) == 2
    assert {path.name for path in workplace.plots("vpg").iterdir()} == {"details.json", "digests.json", "given-1.png"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["nvs", "vpg"])
def test_several_workers_load_both_models_once_and_draw_the_same(
    finished: tuple[Workplace, dict[str, Notes]], workplace: Workplace, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries make networks with switches that all threads share: two that load at the same time break each other."""
    loading, loads = Lock(), list[Path]()

    def load(folder: Path, **how: Any) -> M2MPipeline:
        assert loading.acquire(blocking=False), "another thread is loading"
        try:
            loads.append(folder)
            return load_pipeline(folder, **how)
        finally:
            loading.release()

    monkeypatch.setattr(evaluate, "load_pipeline", load)
    workplace.evaluate(task, tracker=Notes(), workers=Workers(2))
    assert len(loads) == 2
    assert workplace.digests(task) == finished[0].digests(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["nvs", "vpg"])
def test_a_killed_evaluation_goes_on_and_ends_the_same(
    finished: tuple[Workplace, dict[str, Notes]], workplace: Workplace, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    alive, draw = 3, Drawer.begin

    def draw_until_killed(self: Drawer, job: Continued, advance: Any) -> Any:
        if len(drawn) == alive:
            raise KeyboardInterrupt
        pictures, seconds = draw(self, job, advance)
        drawn.append(pictures.shape[0] * pictures.shape[1])
        return pictures, seconds

    notes = Notes()
    monkeypatch.setattr(Drawer, "begin", draw_until_killed)
    with pytest.raises(KeyboardInterrupt):
        workplace.evaluate(task, tracker=notes)
    assert not workplace.metrics(task).exists()
    alive = 1000
    assert workplace.evaluate(task, tracker=notes).version == "7"
    around = 2 * (FRAMES - 1) if task == "nvs" else 0  # the objects that are shown from all sides
    assert sum(drawn) == DRAWN[task] + around, "nothing is drawn twice"
    assert notes.resumed == [None, "run-1"]
    assert workplace.digests(task) == finished[0].digests(task)


@pytest.mark.slow
def test_what_is_only_compared_is_not_registered(workplace: Workplace) -> None:
    notes = Notes()
    small = PARAMS["vpg"].model_copy(update={"sets": 2})
    assert workplace.evaluate("vpg", tracker=notes, params=small, register=False).version is None
    assert "registered" not in notes.told
    assert workplace.metrics("vpg").exists()


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("nvs", {"sets": 4}, r"evaluate\.nvs\.sets is 4, but the dataset has 3 test sets; lower it, or make more"),
        ("vpg", {"validation_sets": 3}, r"validation_sets is 3, but the dataset has 2 validation sets"),
        ("vpg", {"sets": 4}, r"evaluate\.vpg\.sets is 4, but the dataset has 3 test sets; lower it, or make more"),
        ("nvs", {"given": (1, 4)}, r"evaluate\.nvs\.given is \[1, 4\]; expected fewer and more"),
        ("nvs", {"given": (2, 1)}, r"evaluate\.nvs\.given is \[2, 1\]; expected fewer and more"),
    ],
)
def test_asking_for_more_than_there_is_is_one_clear_line(
    workplace: Workplace, task: str, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        workplace.evaluate(task, params=PARAMS[task].model_copy(update=change))
    assert "\n" not in str(caught.value)
    assert list(workplace.root.iterdir()) == []


@pytest.mark.parametrize("folder", ["model", "untuned", "foundation"])
def test_a_missing_folder_is_one_clear_line(workplace: Workplace, folder: str) -> None:
    with pytest.raises(UserError, match=str(workplace.root / "nothing")):
        workplace.evaluate("vpg", **{folder: workplace.root / "nothing"})
    assert list(workplace.root.iterdir()) == []
