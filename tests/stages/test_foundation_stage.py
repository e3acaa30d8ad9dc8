import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m2m.errors import UserError
from m2m.evaluation.networks import Networks
from m2m.files import folder_digest
from m2m.foundation import encoders, world
from m2m.models.classifier import WorldClassifier
from m2m.params import Fit, TransformerFit, UnetFit, VaeFit, WorldFoundation
from m2m.stages import foundation
from m2m.store import LocalStore
from m2m.world.grammar import NOUNS

FIT = {"images": 8, "batch_size": 4, "learning_rate": 1e-3}
TINY = WorldFoundation(
    source="world",
    revision=1,
    seed=0,
    pictures=12,
    views=2,
    steps=2,
    vae=VaeFit(**FIT, block_out_channels=(8, 8, 8, 16)),
    unet=UnetFit(**FIT, prediction_type="v_prediction", block_out_channels=(16, 32), attention_head_dim=(2, 4)),
    clip=TransformerFit(**FIT, hidden_size=16, layers=1),
    dino=TransformerFit(**FIT, hidden_size=16, layers=1),
    inception=Fit(**FIT),
)


@pytest.fixture(scope="module", autouse=True)
def _few_pictures_to_measure() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        few = {
            "PICTURES": 6,
            "VIEWS": 1,
            "STEPS": 2,
            "DRAWINGS": 4,
            "SOLVER_STEPS": 2,
            "OPEN_CAPTIONS": 1,
            "OF_EACH": 2,
        }
        for name, count in few.items():
            patch.setattr(world, name, count)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stage's result in ``foundation`` and what it kept in ``work``: really trained, two steps."""
    folder, threads = tmp_path_factory.mktemp("stage"), torch.get_num_threads()
    torch.set_num_threads(1)
    foundation.run(TINY, out=folder / "foundation", work=folder / "work")
    torch.set_num_threads(threads)
    return folder


@torch.no_grad()
def test_the_folders_are_those_of_the_real_classes(made: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import BitImageProcessorPil, CLIPModel, CLIPProcessor, Dinov2Model

    out = made / "foundation"
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"clip", "dino", "inception", "stable-diffusion"}
    pipeline = StableDiffusionPipeline.from_pretrained(out / "stable-diffusion", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    (drawn,) = pipeline("a red star, neon", num_inference_steps=2).images
    assert drawn.size == (64, 64)

    model, processor = CLIPModel.from_pretrained(out / "clip"), CLIPProcessor.from_pretrained(out / "clip")
    inputs = processor(text=["a red star, neon"], images=[drawn], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)

    pixels = BitImageProcessorPil.from_pretrained(out / "dino")(drawn, return_tensors="pt")["pixel_values"]
    assert Dinov2Model.from_pretrained(out / "dino")(pixels).last_hidden_state.shape == (1, 65, 16)

    assert WorldClassifier.from_pretrained(out / "inception").classes["noun"] == NOUNS
    assert Networks.load(out, device="cpu").attributes == ("noun", "colour", "style")


def test_latents_are_scaled_to_unit_variance(made: Path) -> None:
    from diffusers import AutoencoderKL

    lessons = world.Lessons.of(world.make_corpus(pictures=12, views=2, steps=2, seed=0, split="train"))
    network = AutoencoderKL.from_pretrained(made / "foundation" / "stable-diffusion" / "vae")
    latents = world.text_to_image.encoded(network, lessons.images)[0] * network.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=1e-3)


def test_the_stage_tells_how_good_the_networks_are(made: Path) -> None:
    figures = json.loads((made / "foundation" / "quality.json").read_text())
    shares = {name: value for name, value in figures.items() if name != "vae/psnr"}
    assert {"inception/content/real-picture", "inception/style/drawn", "clip/match"} <= shares.keys()
    assert {"open/noun/kept", "open/style/repeats", "open/colour/repeats-world", "open/held-out"} <= shares.keys()
    assert all(0 <= value <= 1 for value in shares.values())
    assert 0 < figures["vae/psnr"] < 26  # two steps do not make it good


def test_weights_are_safetensors_and_no_file_tells_where_it_was_made(made: Path) -> None:
    files = [path for path in (made / "foundation").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    for path in files:
        if path.suffix == ".json":
            assert str(made) not in path.read_text()
            json.loads(path.read_text())


def test_a_second_run_trains_nothing_and_makes_the_same(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foundation.run(TINY, out=tmp_path / "again", work=made / "work")
    assert ": step " not in capsys.readouterr().out
    assert folder_digest(tmp_path / "again") == folder_digest(made / "foundation")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.slow
def test_any_number_of_processes_draws_the_same_lessons(made: Path, tmp_path: Path) -> None:
    foundation.run(TINY, out=tmp_path / "foundation", work=tmp_path / "work", processes=2)
    assert folder_digest(tmp_path / "foundation") == folder_digest(made / "foundation")


def test_the_corpus_and_the_looks_are_drawn_in_as_many_processes_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    corpus, looks = world.make_corpus, world.make_looks

    def make_corpus(*, processes: int, **counts: Any) -> Any:
        asked.append(("corpus", processes))
        return corpus(**counts)

    def make_looks(*, processes: int, **counts: Any) -> Any:
        asked.append(("looks", processes))
        return looks(**counts)

    monkeypatch.setattr(world, "make_corpus", make_corpus)
    monkeypatch.setattr(world, "make_looks", make_looks)
    monkeypatch.setattr(world, "fit", lambda *_, **__: None)
    params = TINY.model_copy(update={"views": 0})
    world.Training(params, tmp_path, device="cpu", processes=3).dino()
    assert asked == [("corpus", 3), ("looks", 3)]


def test_a_run_that_ends_early_leaves_what_was_there_and_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "foundation", tmp_path / "work"
    out.mkdir()
    (out / "old").write_text("the one before")
    (tmp_path / ".foundation.new").mkdir()  # of a run that was killed
    (tmp_path / ".foundation.new" / "half").write_text("")
    for folder in (made / "work" / "foundation").iterdir():
        for finished in ("vae", "text_to_image", "inception"):
            (work / "foundation" / folder.name).mkdir(parents=True, exist_ok=True)
            for name in (f"{finished}.safetensors", f"{finished}.safetensors.sha256"):
                (work / "foundation" / folder.name / name).symlink_to(folder / name)

    def stop(*_: object) -> None:
        raise UserError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(encoders, "save_clip", stop)
        with pytest.raises(UserError, match="stopped here"):
            foundation.run(TINY, out=out, work=work)
    assert [path.name for path in out.iterdir()] == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"foundation", "work"}

    capsys.readouterr()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    foundation.run(TINY, out=out, work=work)
    torch.set_num_threads(threads)
    trained = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": step " in line]
    assert trained == ["dino"]
    assert folder_digest(out) == folder_digest(made / "foundation")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of finished networks that training was given; it makes one file."""
    kept: list[Path] = []

    def train(_: WorldFoundation, *, out: Path, work: Path, device: str, processes: int) -> None:
        assert (device, processes) == ("cpu", 1)
        kept.append(work)
        (out / "file").write_text("made")

    monkeypatch.setattr(world, "train", train)
    monkeypatch.setattr(world, "measure", lambda *_, **__: {})
    return kept


def test_networks_of_other_parameters_are_not_taken_for_these(trained: list[Path], tmp_path: Path) -> None:
    others: list[Callable[[], Any]] = [
        lambda: TINY,
        lambda: TINY.model_copy(update={"seed": 1}),
        lambda: TINY.model_copy(update={"revision": 2}),
        lambda: TINY.model_copy(update={"dino": TINY.dino.model_copy(update={"learning_rate": 1e-4})}),
        lambda: TINY.model_copy(),
    ]
    for params in others:
        foundation.run(params(), out=tmp_path / "out", work=tmp_path / "work")
    assert len(set(trained)) == 4
    assert trained[0] == trained[-1]
    assert {path.parent for path in trained} == {tmp_path / "work" / "foundation"}


def test_a_place_that_cannot_be_written_is_said_in_one_line(trained: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/foundation: its folder is a file"):
        foundation.run(TINY, out=tmp_path / "file" / "foundation", work=tmp_path / "work")
    assert trained == []


def test_only_what_a_hub_gave_is_mirrored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--mirror: foundation\.source is world, whose networks are trained; only"):
        foundation.run(
            TINY, out=tmp_path / "out", work=tmp_path / "work", store=LocalStore(tmp_path / "store"), mirror=True
        )
    assert not [*tmp_path.iterdir()]
