"""The evaluate stage with a tiny model, small judges and painted sets: from folders to numbers and pictures."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from mlflow import MlflowClient
from PIL import Image

from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, write_shard
from m2m.engines import LocalEngine, open_engine
from m2m.errors import UserError
from m2m.evaluation import continuations
from m2m.evaluation.continuations import Continuations, Continued, Drawer, keep_drawn
from m2m.files import folder_digest
from m2m.foundation import encoders
from m2m.foundation.text_to_image import learn_tokenizer
from m2m.manifest import Manifest, Split
from m2m.models.unet import ImageSetUNet
from m2m.params import ComparedParams, EvaluateMis, GateParams, LongParams, ProbeParams, TransformerFit
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.progress import progress
from m2m.runtime import Runtime
from m2m.stages import evaluate
from m2m.store import LocalStore
from m2m.tracking import NullTracker, open_tracker
from m2m.workers import ALONE
from m2m.world.grammar import Caption, completions
from m2m.world.pictures import Variation, paint
from tests.cluster import two_nodes

SETS, IMAGES = 6, 8
CAPTIONS = [
    Caption("star", None, None),
    Caption(None, "blue", None),
    Caption(None, None, "neon"),
    Caption("moon", "red", None),
    Caption("heart", "green", "comic"),
    Caption(None, "pink", "flat"),
]
VALIDATION_SETS = 2
PARAMS = EvaluateMis(
    seed=3,
    sets=SETS,
    given=(1, 2, 4),
    generated=4,
    main=2,
    long=LongParams(given=2, generated=8, sets=3),
    compared=ComparedParams(sets=3),
    probes=ProbeParams(sets=2, generated=2),
    validation_sets=VALIDATION_SETS,
    solver="ddim",
    num_inference_steps=1,
    guidance_scale=1.5,
    context_timestep=0,
    drawn_context=1,
    sets_per_batch=4,
    precision="float32",
    gallery_sets=2,
    bootstrap=20,
    gate=GateParams(metric="validation/pattern_score", better="higher", require={"validation/fid": 0.0}),
)


@dataclass(frozen=True)
class Workplace:
    """Paths of one evaluation."""

    root: Path
    inputs: dict[str, Any]

    @property
    def metrics(self) -> Path:
        return self.root / "metrics" / "evaluate-self.json"

    def details(self) -> dict[str, Any]:
        return dict(json.loads((self.plots / "details.json").read_text()))

    @property
    def plots(self) -> Path:
        return self.root / "reports" / "evaluate-self"

    def evaluate(self, params: EvaluateMis = PARAMS, **changed: Any) -> evaluate.Evaluation:
        inputs = {**self.inputs, "untuned": None, "metrics": self.metrics, "plots": self.plots, **changed}
        machine = {"tracker": inputs.pop("tracker", NullTracker()), "cluster": inputs.pop("cluster", None)}
        runtime = Runtime(store=inputs.pop("store"), work=self.root / "work", **machine)
        return evaluate.run(params, "mis", "self", runtime=runtime, **inputs)


def _picture(caption: Caption, random: np.random.Generator) -> np.ndarray:
    """Of a caption and what training shows of what it leaves open."""
    room = completions(caption)
    return paint(room[int(random.integers(len(room)))], Variation.draw(random))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_stable_diffusion: Path) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("evaluate")
    foundation = root / "foundation"
    tokenizer = learn_tokenizer(caption.text() for caption in CAPTIONS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=16, layers=1)
        encoders.save_clip(foundation / "clip", encoders.build_clip(fit, tokenizer), tokenizer)
        unet = ImageSetUNet.from_stable_diffusion(tiny_stable_diffusion, variant="self", max_context=5, context_dim=0)
        M2MPipeline(
            vae=AutoencoderKL.from_pretrained(tiny_stable_diffusion, subfolder="vae"),
            unet=unet,
            scheduler=DDIMScheduler.from_pretrained(tiny_stable_diffusion, subfolder="scheduler", clip_sample=False),
        ).save_pretrained(root / "model")
    shutil.copytree(tiny_stable_diffusion, foundation / "stable-diffusion")
    shutil.copytree(Path(__file__).parents[2] / "models" / "foundation" / "inception", foundation / "inception")

    random = np.random.default_rng(0)

    def painted(split: str, captions: Sequence[Caption]) -> list[ImageSet]:
        return [
            ImageSet(
                id=f"{split}-{index}",
                caption=caption.text(),
                images=np.stack([_picture(caption, random) for _ in range(IMAGES)]),
            )
            for index, caption in enumerate(captions)
        ]

    store, entries = LocalStore(root / "store"), []
    splits: dict[Split, Sequence[Caption]] = {
        "train": CAPTIONS[1:4],
        "validation": CAPTIONS[2 : 2 + VALIDATION_SETS],
        "test": CAPTIONS,
    }
    for split, captions in splits.items():
        entries.append(write_shard(painted(split, captions), root / "shard.tar", split))
        store.put(entries[-1].key, root / "shard.tar", entries[-1].sha256)
    Manifest(schema_version=1, kind="mis", made_by={}, images_per_set=IMAGES, redrawn=0, shards=tuple(entries)).write(
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_of_a_cluster_draw_the_same_pictures(finished: tuple[Workplace, Notes], workplace: Workplace) -> None:
    pytest.importorskip("ray")
    with two_nodes() as nodes:
        stores = {"store": workplace.inputs["store"], "work": workplace.root / "work"}
        workplace.evaluate(cluster=open_engine(nodes.address, device="cpu", ranks=None, **stores))
    assert digests(workplace) == digests(finished[0])


@pytest.mark.slow
def test_the_numbers_file_holds_headlines_and_says_what_they_rest_on(finished: tuple[Workplace, Notes]) -> None:
    workplace, _ = finished
    numbers, details = json.loads(workplace.metrics.read_text()), workplace.details()
    assert list(numbers) == sorted(numbers)
    assert numbers.items() <= details.items()
    assert all(np.isfinite(value) for value in details.values() if not isinstance(value, str))
    assert (numbers["sets"], numbers["images"], numbers["given"], numbers["seed"]) == (SETS, 3 * SETS * 4, 2, 3)
    assert numbers["manifest"] == Manifest.read(workplace.inputs["manifest"]).digest
    assert numbers["network/inception"].startswith("world-classifier@")
    assert set(numbers) == {
        *("sets", "images", "given", "seed", "manifest", "network/inception", "network/clip"),
        *(f"pattern_score/given={given}" for given in (1, 2, 4)),
        *("baseline/ideal/pattern_score/given=2", "relative/diversity", "validation/pattern_score"),
        *("fid/mean", "kid/mean", "inception_score/mean", "clip_text_image/mean", "clip_image_image/mean"),
    }


def test_mean_and_deviation_are_those_over_positions(finished: tuple[Workplace, Notes]) -> None:
    numbers = finished[0].details()
    names = ("fid", "kid", "inception_score", "clip_text_image", "clip_image_image", "diversity")
    for prefix in ("", "baseline/mis/", "baseline/copy/", "baseline/nearest/", "baseline/stable_diffusion/"):
        for name in names:
            positions = [numbers[f"{prefix}{name}/position/{position:02}"] for position in range(1, 5)]
            assert numbers[f"{prefix}{name}/mean"] == pytest.approx(np.mean(positions), rel=1e-4, abs=1e-8)
            assert numbers[f"{prefix}{name}/std"] == pytest.approx(np.std(positions), rel=1e-3, abs=1e-4)
    for name in names:
        assert numbers[f"{name}/given=2/mean"] == numbers[f"{name}/mean"]
        assert f"{name}/given=4/mean" in numbers
    assert "baseline/shuffled/fid/mean" in numbers


def test_copies_are_most_alike_and_least_diverse(finished: tuple[Workplace, Notes]) -> None:
    numbers = finished[0].details()
    assert 0 < numbers["baseline/copy/diversity/mean"] < numbers["baseline/mis/diversity/mean"]
    assert numbers["baseline/copy/spread/place"] < numbers["baseline/mis/spread/place"]
    assert numbers["baseline/copy/clip_image_image/mean"] > numbers["baseline/mis/clip_image_image/mean"]
    for given in (1, 2, 4):
        assert numbers[f"baseline/copy/pattern_score/given={given}"] == 0
        assert numbers[f"baseline/mis/pattern_score/given={given}"] == 1


def test_shares_follow_from_the_other_numbers(finished: tuple[Workplace, Notes]) -> None:
    numbers = finished[0].details()
    share = numbers["diversity/mean"] / numbers["baseline/mis/diversity/mean"]
    assert numbers["relative/diversity"] == pytest.approx(share, rel=1e-4)
    spread = numbers["spread/place"] / numbers["baseline/mis/spread/place"]
    assert numbers["relative/spread/place"] == pytest.approx(spread, rel=1e-4)


def test_the_pattern_is_scored_after_each_number_of_given_pictures(finished: tuple[Workplace, Notes]) -> None:
    numbers = finished[0].details()
    for prefix in ("", "baseline/mis/", "baseline/ideal/", "baseline/nearest/", "baseline/stable_diffusion/"):
        for given in (1, 2, 4):
            score, low, high = (numbers[f"{prefix}pattern_score/given={given}{end}"] for end in ("", "/low", "/high"))
            assert 0 <= low <= high <= 1
            assert 0 <= score <= 1
            for name in ("kept", "free", "fresh"):
                parts = [numbers[f"{prefix}{name}/{part}/given={given}"] for part in ("noun", "colour", "style")]
                assert numbers[f"{prefix}{name}/given={given}"] == pytest.approx(np.mean(parts), abs=1e-5)
                assert f"{prefix}{name}/position/04/given={given}" in numbers
    for more, less in ((2, 1), (4, 2)):
        change = numbers[f"pattern_score/given={more}"] - numbers[f"pattern_score/given={less}"]
        assert numbers[f"difference/given={more}-minus-{less}"] == pytest.approx(change, abs=1e-5)
    late, early = numbers["long/kept/position=5-8"], numbers["long/kept/position=1-2"]
    assert numbers["difference/long/position=5-8-minus-1-2/kept"] == pytest.approx(late - early, abs=1e-5)
    assert "long/kept/position/08/given=2" in numbers


def test_rivals_are_compared_over_the_same_sets(finished: tuple[Workplace, Notes]) -> None:
    numbers = finished[0].details()
    for name, counts in {"independent": (1, 2), "name_then_draw": (1, 2, 4), "painted": (2,)}.items():
        for given in counts:
            assert 0 <= numbers[f"baseline/{name}/pair_agreement/given={given}"] <= 1
            for what in ("pairs",):
                key = f"difference/{name}/{what}/given={given}"
                assert numbers[f"{key}/low"] <= numbers[key] <= numbers[f"{key}/high"]
            assert f"difference/held_out-minus-{name}/pairs/given={given}" in numbers


def test_places_are_probed(finished: tuple[Workplace, Notes]) -> None:
    numbers = finished[0].details()
    for probe in ("a", "b"):
        shares = [numbers[f"places/{probe}/{place}"] for place in range(1, 5)]
        assert numbers[f"places/{probe}/spread"] == pytest.approx(max(shares) - min(shares), abs=1e-5)
    for name, places in {"A": 1, "AB": 2, "ABBBB": 5}.items():
        for at in range(1, places + 1):
            for prefix in ("", "baseline/ideal/"):
                for what in ("noun", "colour", "content", "style"):
                    assert 0 <= numbers[f"{prefix}probe/{name}/at={at}/a/{what}"] <= 1
    minority, majority = (numbers[f"baseline/ideal/probe/ABBBB/at=1/{letter}/style"] for letter in "ab")
    assert minority < majority
    with Image.open(finished[0].plots / "consistency.png") as gallery:
        assert set(json.loads(gallery.info["captions"])) <= {"content consistency", "style consistency"}


def test_plots_are_there(finished: tuple[Workplace, Notes]) -> None:
    workplace, _ = finished
    numbers = workplace.details()
    rows = list(csv.DictReader((workplace.plots / "positions.csv").read_text().splitlines()))
    assert [row["position"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[2]["fid"]) == numbers["fid/position/03"]
    for baseline in ("mis", "copy", "stable_diffusion", "nearest"):
        rows = list(csv.DictReader((workplace.plots / f"positions-{baseline}.csv").read_text().splitlines()))
        assert float(rows[2]["fid"]) == numbers[f"baseline/{baseline}/fid/position/03"]
    for given in (1, 2, 4):
        with Image.open(workplace.plots / f"given-{given}.png") as gallery:
            assert gallery.width > gallery.height
            assert json.loads(gallery.info["captions"]) == [caption.text() for caption in CAPTIONS[:2]]


def test_the_tracker_hears_of_it(finished: tuple[Workplace, Notes]) -> None:
    workplace, notes = finished
    numbers = workplace.details()
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
    assert told["images"] == ["gallery/given-1", "gallery/given-2", "gallery/given-4", "gallery/consistency"]


@pytest.mark.slow
def test_kept_pictures_that_are_damaged_change_no_number_and_what_is_only_compared_is_not_registered(
    finished: tuple[Workplace, Notes], workplace: Workplace
) -> None:
    notes = Notes()
    shutil.copytree(finished[0].root / "work", workplace.root / "work")
    kept = [path for lot in ("unconditional", "named") for path in (workplace.root / "work" / lot).rglob("*.npy")]
    assert kept
    for path in kept:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(content)
    assert workplace.evaluate(tracker=notes, register=False).version is None
    assert "registered" not in notes.notebook.told
    assert digests(workplace) == digests(finished[0])


def test_pictures_of_older_code_are_not_used(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drawn: list[str] = []

    def killed(self: Drawer, job: Continued, advance: Any) -> Any:
        drawn.append(f"given-{job.given}")
        if len(drawn) in (2, 4):
            raise KeyboardInterrupt
        return draw(self, job, advance)

    draw, notes = Drawer.begin, Notes()
    monkeypatch.setattr(Drawer, "begin", killed)
    with pytest.raises(KeyboardInterrupt):
        workplace.evaluate(tracker=notes)
    monkeypatch.setattr(evaluate, "code_digest", lambda *_: "of other code")
    with pytest.raises(KeyboardInterrupt):
        workplace.evaluate(tracker=notes)
    assert drawn == ["given-1"] * 4, "the first batch, drawn by the older code, was drawn again"
    assert notes.resumed == [None, None]
    assert "starts afresh" in caplog.text


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_the_same(
    finished: tuple[Workplace, Notes], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    alive, draw = 3, Drawer.begin

    def draw_until_killed(self: Drawer, job: Continued, advance: Any) -> Any:
        if len(drawn) == alive:
            raise KeyboardInterrupt
        drawn.append(f"given-{job.given}")
        return draw(self, job, advance)

    notes = Notes()
    with monkeypatch.context() as patch:
        patch.setattr(Drawer, "begin", draw_until_killed)
        with pytest.raises(KeyboardInterrupt):
            workplace.evaluate(tracker=notes)
        assert not workplace.metrics.exists()
        assert drawn == ["given-1", "given-1", "given-2"]

        before, drawn[:], alive = len(drawn), [], 1000
        nothing = PARAMS.model_copy(update={"gate": GateParams(metric="beauty", better="higher", require={})})
        with pytest.raises(UserError, match=r"gate.metric is beauty.* validation/fid.* validation/pattern_score"):
            workplace.evaluate(nothing, tracker=notes)
        assert not workplace.metrics.exists()
        # Another gate judges the same pictures.
        assert workplace.evaluate(tracker=notes).version == "7"
    batches = {"given": 3 * 2, "validation": 1, "long": 1, "independent": 2, "painted": 1, "places": 10}
    assert before + len(drawn) == sum(batches.values()), "nothing is drawn twice"
    assert notes.resumed == [None, "run-1", "run-1"]
    assert digests(workplace) == digests(finished[0])
    assert not (workplace.root / "work" / "evaluate-self").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "passes"),
    [([-1, -1, -1, -1], False), ([0, 1, 0, 1], False), ([4, 5, 6, 7], True)],
    ids=["copies of one", "copies of both", "true pictures"],
)
def test_who_copies_given_pictures_cannot_be_champion(
    workplace: Workplace, places: list[int], passes: bool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(_: Any, members: Sequence[ImageSet], *, given: int, images: int, **options: Any) -> np.ndarray:
        drawn = []
        for member in members:
            whole = stored.get(member.id, member).images  # probes hold no more than the given pictures
            chosen = [place % (given if place < given else len(whole)) for place in (places * images)[:images]]
            drawn.append(whole[chosen])
        return np.stack(drawn)

    manifest, store = Manifest.read(workplace.inputs["manifest"]), workplace.inputs["store"]
    splits: tuple[Split, ...] = ("test", "validation")
    readers = [ImageSets(store, manifest, split) for split in splits]
    stored = {one.id: one for sets in readers for one in map(sets.__getitem__, range(len(sets)))}
    monkeypatch.setattr(continuations, "continue_sets", drawn)
    require = {"validation/diversity_of_ceiling": 0.5, "validation/pattern_score": 0.01}
    params = PARAMS.model_copy(
        update={"gate": GateParams(metric="validation/pattern_score", better="higher", require=require)}
    )
    tracker = open_tracker(database, spool=workplace.root / "spool", tags={})
    assert workplace.evaluate(params, tracker=tracker).version == "1"
    found = MlflowClient(database).get_registered_model("m2m-self").aliases
    assert ("champion" in found) == passes
    assert "candidate" in found


def test_pictures_of_a_set_do_not_depend_on_its_batch(inputs: dict[str, Any], tmp_path: Path) -> None:
    pipeline = load_pipeline(inputs["model"])
    sets = ImageSets(inputs["store"], Manifest.read(inputs["manifest"]), "test")

    def drawn(sets_per_batch: int, *, drawn_context: int | None = None) -> np.ndarray:
        params = PARAMS.model_copy(update={"sets_per_batch": sets_per_batch, "drawn_context": drawn_context})
        folder = tmp_path / f"{sets_per_batch}-{drawn_context}"
        draws = Continuations(
            name="lot",
            starts=sets,
            count=SETS,
            given=2,
            generated=3,
            params=params,
            folder=folder,
        )
        drawer = Drawer(load=lambda: (pipeline, pipeline))
        with progress(draws.pictures, "lot", unit="images") as advance:
            assert len([*keep_drawn(LocalEngine(ALONE, "cpu"), drawer, draws.jobs(), advance)]) == -(
                -SETS // sets_per_batch
            )
        return np.stack(list(draws.by_set()))

    four, three = drawn(4), drawn(3)
    assert four.shape == (SETS, 3, 64, 64, 3)
    assert np.abs(four.astype(int) - three).max() <= 2
    alone, first = drawn(4, drawn_context=0), drawn(4, drawn_context=1)
    np.testing.assert_array_equal(alone[:, 0], four[:, 0])
    assert not np.array_equal(alone[:, 1], alone[:, 0]), "each has its own noise"
    np.testing.assert_array_equal(first[:, :2], four[:, :2])
    assert not np.array_equal(first[:, 2], four[:, 2])
    assert not np.array_equal(first[:, 2], alone[:, 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sets": 7}, r"evaluate\.mis\.sets is 7, but the dataset has 6 test sets; lower it, or raise captions\.test"),
        ({"validation_sets": 3}, r"evaluate\.mis\.validation_sets is 3, but the dataset has 2 validation sets"),
        ({"generated": 5}, r"evaluate\.mis\.given \+ evaluate\.mis\.generated is up to 9, more than the 8 images"),
        ({"generated": 1}, r"evaluate\.mis\.generated or long\.generated is 1"),
        ({"compared": ComparedParams(sets=7)}, r"evaluate\.mis\.compared\.sets is 7"),
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
