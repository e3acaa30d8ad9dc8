"""The sampling stage with tiny models: what it writes and tells, not how long things take."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.page.charts import KEYS, efficiency_table, window
from m2m.params import SamplingParams, Variant
from m2m.runtime import Runtime
from m2m.stages import sampling
from m2m.store import LocalStore
from m2m.tracking import NullTracker

WINDOW = 3
"""Of the tiny models."""
PARAMS = SamplingParams(
    seed=0,
    given=(4, 1, 3, 1),
    solver="ddim",
    num_inference_steps=2,
    guidance_scale=3.0,
    batch_size=2,
    precision="float32",
    repeats=2,
)
CASES = [f"{variant}/given={given}" for variant in ("self", "dino") for given in (1, 3, 4)]


@dataclass
class Notes:
    """A tracker, and its only run, that remember what they were told."""

    told: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def run(self, name: str, *, stage: str, tags: Mapping[str, str], resume_key: str | None = None) -> Iterator[Any]:
        self.told["run"] = (name, stage, dict(tags))
        yield self

    def params(self, values: Mapping[str, object]) -> None:
        self.told["params"] = values

    def metrics(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        self.told["metrics"] = values

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.told.setdefault("artifacts", []).append((path.name, folder))


@dataclass(frozen=True)
class Workplace:
    """Models, and where results go."""

    root: Path
    models: Mapping[Variant, Path]
    stable_diffusion: Path
    notes: Notes

    def run(self, params: SamplingParams = PARAMS, **changed: Any) -> Mapping[str, float | int | str]:
        places = {"metrics": self.root / "sampling.json", "plots": self.root / "plots"}
        options = {"models": self.models, "stable_diffusion": self.stable_diffusion, **places, **changed}
        tracker = options.pop("tracker", self.notes)
        runtime = Runtime(store=LocalStore(self.root / "store"), work=self.root / "work", tracker=tracker)
        return sampling.run(params, runtime=runtime, **options)


@pytest.fixture(scope="module")
def finished(
    make_model: Callable[..., Path], trainable: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workplace, Mapping[str, float | int | str]]:
    models: dict[Variant, Path] = {"self": make_model("self"), "dino": make_model("dino")}
    place = Workplace(tmp_path_factory.mktemp("sampling"), models, trainable / "stable-diffusion", Notes())
    return place, place.run()


@pytest.mark.slow
def test_the_numbers_have_a_figure_for_each_case(finished: tuple[Workplace, Any]) -> None:
    place, numbers = finished
    kept = json.loads((place.root / "sampling.json").read_text())
    assert list(kept) == sorted(numbers)
    parts = ("seconds", "reading_seconds", "ratio", "gflop", "gflop_ratio", "window")
    base = {f"{part}/stable-diffusion" for part in ("seconds", "reading_seconds", "decoding_seconds", "gflop")}
    about = {"images", "repeats", "solver", "num_inference_steps", "guidance_scale", "pixels", "seed", "device"}
    assert set(kept) == {f"{part}/{case}" for part in parts for case in CASES} | base | about | {"spread"}
    assert all(kept[f"seconds/{case}"] > 0 for case in (*CASES, "stable-diffusion"))
    assert (kept["images"], kept["pixels"], kept["solver"]) == (2, 64, "ddim")
    assert set(KEYS) <= set(kept)


@pytest.mark.slow
def test_ratios_are_those_of_the_figures_beside_them(finished: tuple[Workplace, Any]) -> None:
    _, numbers = finished
    for case in CASES:
        assert numbers[f"ratio/{case}"] == numbers[f"seconds/{case}"] / numbers["seconds/stable-diffusion"]
        assert numbers[f"gflop_ratio/{case}"] == numbers[f"gflop/{case}"] / numbers["gflop/stable-diffusion"]


@pytest.mark.slow
def test_operations_grow_with_the_window_and_no_further(finished: tuple[Workplace, Any]) -> None:
    _, numbers = finished
    for variant in ("self", "dino"):
        one, three, four = (numbers[f"gflop/{variant}/given={given}"] for given in (1, 3, 4))
        assert one < three == four
        assert [numbers[f"window/{variant}/given={given}"] for given in (1, 3, 4)] == [1, 3, WINDOW]


@pytest.mark.slow
def test_there_are_a_curve_a_model_and_the_figure(finished: tuple[Workplace, Any]) -> None:
    place, numbers = finished
    plots = place.root / "plots"
    assert {path.name for path in plots.iterdir()} == {"stable-diffusion.csv", "self.csv", "dino.csv", "seconds.svg"}
    for name in ("stable-diffusion", "self", "dino"):
        rows = list(csv.DictReader((plots / f"{name}.csv").read_text().splitlines()))
        assert [row["given"] for row in rows] == ["1", "3", "4"]
        for row in rows:
            case = name if name == "stable-diffusion" else f"{name}/given={row['given']}"
            assert float(row["seconds"]) == pytest.approx(numbers[f"seconds/{case}"], rel=1e-5)
            assert float(row["gflop"]) == pytest.approx(numbers[f"gflop/{case}"], rel=1e-5)
    ET.fromstring((plots / "seconds.svg").read_bytes())


@pytest.mark.slow
def test_the_report_shows_what_was_kept(finished: tuple[Workplace, Any]) -> None:
    place, _ = finished
    numbers = json.loads((place.root / "sampling.json").read_text())
    assert len(efficiency_table(numbers).rows) == 1 + len(CASES)
    assert window(numbers) == WINDOW


@pytest.mark.slow
def test_the_tracker_hears_of_it(finished: tuple[Workplace, Any]) -> None:
    place, numbers = finished
    told = place.notes.told
    tags = {f"model.{variant}": folder_digest(folder) for variant, folder in place.models.items()}
    assert told["run"] == ("sampling", "sampling", tags)
    assert told["params"]["given"] == [4, 1, 3, 1]
    assert told["metrics"].items() <= numbers.items()
    assert {"seconds/stable-diffusion", "ratio/self/given=4", "gflop/dino/given=1"} <= set(told["metrics"])
    assert told["artifacts"] == [("plots", "sampling"), ("sampling.json", "sampling")]


@pytest.mark.slow
def test_it_says_how_far_it_is(finished: tuple[Workplace, Any], tmp_path: Path, capsys: Any) -> None:
    place, _ = finished
    short = PARAMS.model_copy(update={"given": (1,), "repeats": 1})
    place.run(short, metrics=tmp_path / "sampling.json", plots=tmp_path / "plots", tracker=NullTracker())
    assert "sampling: 12/12 images" in capsys.readouterr().err, "three models, two images, a turn and one before"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stable_diffusion": Path("nowhere")}, "nowhere: no Stable Diffusion folder"),
        ({"models": {"self": Path("nowhere")}}, "nowhere: not a model folder"),
        ({"params": PARAMS.model_copy(update={"num_inference_steps": 1001})}, "num_inference_steps is 1001, but the"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    finished: tuple[Workplace, Any], changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    place, _ = finished
    places = {"metrics": tmp_path / "sampling.json", "plots": tmp_path / "plots", "tracker": NullTracker()}
    with pytest.raises(UserError, match=words) as caught:
        place.run(**{**places, **changed})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
