"""Pictures in, pictures out, and each knows what made it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw
from typer.testing import CliRunner

from m2m.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M2M-Self pipeline folder, untrained."""
    from m2m.params_file import load_params
    from m2m.training.start import from_stable_diffusion as start

    folder = tmp_path_factory.mktemp("sample")
    (folder / "stable-diffusion").symlink_to(tiny_stable_diffusion)
    start(folder, "self", load_params(ROOT / "profiles" / "smoke.yaml").train.common).save_pretrained(
        folder / "m2m-self"
    )
    return folder / "m2m-self"


@pytest.fixture(scope="module")
def views_model(model: Path) -> Path:
    """The same, told from where a picture is seen, and heeding it."""
    import torch

    from m2m.pipeline import load_pipeline
    from m2m.training.start import take_poses

    pipeline = take_poses(load_pipeline(model), seed=0)
    with torch.no_grad():
        pipeline.unet.class_embedding.linear_2.weight.normal_(generator=torch.Generator().manual_seed(0))
    pipeline.save_pretrained(model.with_name("m2m-self-nvs"))
    return model.with_name("m2m-self-nvs")


@pytest.mark.slow  # three models draw at length
def test_whoever_tries_it_sees_all_three_tasks(
    model: Path, views_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("m2m-dino", model), ("m2m-dino-nvs", views_model)):
        (tmp_path / name).symlink_to(folder)
    ask = ["try", "--models", str(tmp_path), "--examples", str(ROOT / "docs/examples")]
    refused = CliRunner().invoke(app, ask)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert f"{tmp_path / 'm2m-self-vpg'}: not a model folder" in refused.stderr
    assert not (tmp_path / "out").exists(), "nothing is drawn for a sheet that will not be whole"
    (tmp_path / "m2m-self-vpg").symlink_to(model)
    tried = CliRunner().invoke(app, ask)
    assert tried.exit_code == 0, tried.output
    assert "out/try/contact-sheet.png: 15 pictures, m2m-dino/001.png to m2m-self-vpg/004.png beside it" in tried.stdout
    with Image.open("out/try/contact-sheet.png") as sheet:
        assert [len(row["images"]) for row in json.loads(sheet.text["m2m"])["rows"]] == [4, 1, 1]
    ask[-1] = str(tmp_path / "nowhere")
    assert "no example pictures in" in CliRunner().invoke(app, ask).stderr


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A photograph and a transparent drawing, of other sizes than the model's."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((120, 90), 60).convert("RGB").save("photo.jpg")
    drawing = Image.new("RGBA", (50, 70))
    ImageDraw.Draw(drawing).ellipse((5, 5, 40, 40), fill="teal")
    drawing.save("drawing.png")
    return ["photo.jpg", "drawing.png"]


def sample(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["sample", "--steps", "2", *map(str, arguments)])


def test_models_are_compared_on_one_sheet(model: Path, pictures: list[str], tmp_path: Path) -> None:
    (tmp_path / "another").symlink_to(model)
    (tmp_path / "aside").mkdir()
    shutil.copytree(model, tmp_path / "aside" / model.name)
    shutil.copytree(model, tmp_path / "other")
    both = ("--model", model, "--model", tmp_path / "other")
    result = sample(*both, "--images", *pictures, "--num-images", 2, "--seed", 5)
    assert result.exit_code == 0, result.output
    assert "out/contact-sheet.png: 4 pictures, m2m-self/001.png to other/002.png beside it" in result.stdout
    with Image.open("out/contact-sheet.png") as sheet, Image.open("out/other/contact-sheet.png") as one:
        assert (sheet.width, sheet.height) == (one.width, 2 * one.height)
        assert ImageChops.difference(sheet.crop((0, one.height, *sheet.size)), one).getbbox() is None
        rows = json.loads(sheet.text["m2m"])["rows"]
    assert [Path(row["model"]["folder"]).name for row in rows] == ["m2m-self", "other"]
    namesakes = ("--model", model, "--model", tmp_path / "aside" / model.name)
    assert "m2m-self/001.png to aside-m2m-self/001.png" in (
        sample(*namesakes, "--images", *pictures, "--num-images", 1).stdout
    )
    refused = sample("--model", model, "--model", tmp_path / "another", "--images", *pictures)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "-m2m-self: their pictures would have one folder" in refused.stderr
    for wrong, words in (("nowhere.png", "no such file"), (pictures[0], "nowhere: not a model folder")):
        refused = sample("--model", model, "--model", "nowhere", "--images", wrong, "--out", "out")
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
        assert words in refused.stderr


def test_any_picture_leads_to_the_command_that_draws_it_again(model: Path, pictures: list[str], tmp_path: Path) -> None:
    result = sample("--model", model, "--images", *pictures, "--num-images", 3, "--seed", 5)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "001.png",
        "002.png",
        "003.png",
        "contact-sheet.png",
    ]
    with Image.open("out/002.png") as second, Image.open("out/003.png") as third:
        assert second.size == third.size == (64, 64)
        note = json.loads(second.text["m2m"])
        assert second.tobytes() != third.tobytes()
        assert 'digitalsourcetype/trainedAlgorithmicMedia"' in second.text["XML:com.adobe.xmp"]
    with Image.open("out/contact-sheet.png") as sheet:  # which shows what was given, too
        assert 'digitalsourcetype/compositeWithTrainedAlgorithmicMedia"' in sheet.text["XML:com.adobe.xmp"]
    assert note["seed"] == 5
    assert note["number"] == 2
    assert note["num_inference_steps"] == 2
    assert [image["file"] for image in note["images"]] == pictures
    assert len(note["model"]["sha256"]) == 64
    program, command, *arguments = shlex.split(note["command"])
    assert (program, command) == ("m2m", "sample")
    assert CliRunner().invoke(app, ["sample", *arguments, "--out", "again"]).exit_code == 0
    for name in ("001.png", "002.png", "003.png", "contact-sheet.png"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()


def test_the_contact_sheet_shows_all_in_order(model: Path, pictures: list[str]) -> None:
    sample("--model", model, "--images", *pictures, "--num-images", 8)
    with Image.open("out/contact-sheet.png") as sheet, Image.open("out/008.png") as last:
        side, pitch = 128, 138  # a picture twice as big, its frame and the gap
        assert sheet.size == (10 * pitch + 4, pitch + 4)
        left = sheet.width - side - 3 - 4
        shown = sheet.crop((left, 7, left + side, 7 + side))
        assert shown.tobytes() == last.resize((side, side), Image.Resampling.NEAREST).tobytes()


def test_how_many_drawn_pictures_later_ones_read(
    model: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that changes in the pictures, the pipeline's own tests tell: here it has to arrive, and to be noted."""
    from m2m.pipeline import M2MPipeline

    asked, draw = [], M2MPipeline.__call__

    def remember(self: M2MPipeline, *args: Any, **options: Any) -> Any:
        asked.append(options["drawn_context"])
        return draw(self, *args, **options)

    monkeypatch.setattr(M2MPipeline, "__call__", remember)
    ask = ["--model", model, "--images", *pictures, "--num-images", 1]
    for words in ([], ["--drawn-context", "all"], ["--drawn-context", 2]):
        result = sample(*ask, *words)
        assert result.exit_code == 0, result.output
        with Image.open("out/001.png") as first:
            note = json.loads(first.text["m2m"])
        assert note["drawn_context"] == asked[-1]
        assert f"--drawn-context {words[-1] if words else 'all'} " in note["command"]
    assert asked == [None, None, 2]


@pytest.mark.parametrize("number", ["-1", "many", "1.5"])
def test_a_number_of_drawn_pictures_that_there_cannot_be(number: str, pictures: list[str]) -> None:
    result = sample("--images", *pictures, "--drawn-context", number)
    assert result.exit_code == 2
    assert "is no number of drawn pictures; expected 0, 1" in result.stderr


def test_views_are_drawn_from_where_they_are_asked_for_and_turn(views_model: Path, pictures: list[str]) -> None:
    ask = ["--model", views_model, "--task", "nvs", "--images", *pictures, "--given-azimuth", 45, "--elevation", 5]
    result = sample(*ask, "--azimuth", 30, "--azimuth", -60.5)
    assert result.exit_code == 0, result.output
    names = ["001.png", "002.png", "contact-sheet.png", "turntable.gif"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    with Image.open("out/turntable.gif") as turntable, Image.open("out/002.png") as second:
        assert turntable.n_frames == len(pictures) + 2
        note = json.loads(second.text["m2m"])
    assert (note["azimuth"], note["given_azimuth"], note["elevation"]) == ([30.0, -60.5], [45.0], 5.0)
    _, _, *arguments = shlex.split(note["command"])
    assert CliRunner().invoke(app, ["sample", *arguments, "--out", "again"]).exit_code == 0
    for name in names:
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()

    sample(*ask, "--azimuth", 30, "--azimuth", 90, "--out", "elsewhere")
    assert Path("elsewhere/001.png").read_bytes() != Path("out/001.png").read_bytes(), "its note names another command"
    with Image.open("elsewhere/001.png") as same, Image.open("out/001.png") as first:
        assert same.tobytes() == first.tobytes()
    with Image.open("elsewhere/002.png") as other, Image.open("out/002.png") as second:
        assert other.tobytes() != second.tobytes()


def test_without_a_place_views_go_around_and_are_drawn_again_by_the_note(
    views_model: Path, pictures: list[str]
) -> None:
    ask = ["--model", views_model, "--task", "nvs", "--images", pictures[0]]
    assert sample(*ask, "--num-images", 3).exit_code == 0
    around = [word for azimuth in (90, 180, 270) for word in ("--azimuth", azimuth)]
    assert sample(*ask, *around, "--out", "named").exit_code == 0
    with Image.open("out/003.png") as third, Image.open("named/003.png") as named:
        assert third.tobytes() == named.tobytes()
        _, _, *arguments = shlex.split(json.loads(third.text["m2m"])["command"])
    assert CliRunner().invoke(app, ["sample", *arguments, "--out", "again"]).exit_code == 0
    assert Path("again/003.png").read_bytes() == Path("out/003.png").read_bytes()


@pytest.mark.parametrize(
    ("views", "arguments", "said"),
    [
        (True, [], "m2m: the model draws views of an object; say --task nvs, and --azimuth"),
        (True, ["--task", "vpg"], "m2m: the model draws views of an object; say --task nvs, and --azimuth"),
        (False, ["--task", "nvs"], "m2m: the model draws no views; name another --model, or leave --task out"),
        (True, ["--task", "nvs", "--given-azimuth", "9"], "m2m: 1 of --given-azimuth for 1 given pictures; name one"),
        (True, ["--task", "nvs", "--images", "drawing.png"], "m2m: 0 of --given-azimuth for 2 given pictures; name"),
        (True, ["--task", "nvs", "--elevation", "91"], "m2m: Camera(azimuth="),
    ],
)
def test_views_that_cannot_be_drawn_are_one_line(
    views: bool, arguments: list[str], said: str, model: Path, views_model: Path, pictures: list[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = sample("--model", views_model if views else model, "--images", "photo.jpg", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(said)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "photo.jpg", "--num-images", "0"], "m2m: --num-images is 0; ask for at least 1"),
        ([], "m2m: no pictures given; name at least one"),
        (["--images", "text.txt"], "m2m: text.txt: not a picture"),
        (["--images", "bomb.png"], "m2m: bomb.png: would unpack to more than"),
        (["--images", "nowhere.png"], "m2m: nowhere.png: no such file"),
        (["--images", "photo.jpg", "--context-timestep", "1000"], "m2m: the model has 1000 timesteps"),
        (["--images", "photo.jpg", "--model", "nowhere"], "m2m: nowhere: not a model folder"),
        (["--images", "photo.jpg", "--model", "broken"], "m2m: broken: incomplete or damaged"),
        (["--images", "photo.jpg", "--out", "text.txt/out"], "m2m: cannot write text.txt/out/001.png"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    arguments: list[str], said: str, model: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("text.txt").write_text("no picture")
    Path("broken").mkdir()
    Path("broken/model_index.json").write_text((model / "model_index.json").read_text())
    Image.new("L", (300, 300)).save("bomb.png")
    if "bomb.png" in arguments:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80_000)
    before = sorted(tmp_path.rglob("*"))
    result = sample(*(() if "--model" in arguments else ("--model", model)), *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(said)
    assert sorted(tmp_path.rglob("*")) == before


def test_given_pictures_are_not_drawn_over(model: Path, pictures: list[str]) -> None:
    Path("out").mkdir()
    for name in ("001.png", "contact-sheet.png"):
        Image.open(pictures[1]).save(Path("out", name))
        kept = Path("out", name).read_bytes()
        result = sample("--model", model, "--images", pictures[0], f"out/../out/{name}")
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith(
            f"m2m: out/../out/{name} is given and would be overwritten by a drawn picture; name anoth"
        )
        assert Path("out", name).read_bytes() == kept
        Path("out", name).rename(f"given-{name}")
    assert not [*Path("out").iterdir()]
    Path("given-001.png").rename("out/009.png")
    assert sample("--model", model, "--images", "out/009.png", "--num-images", 2).exit_code == 0
    assert Path("out/002.png").exists()


def test_bytes_that_are_no_text_may_stand_in_a_file_name(model: Path, pictures: list[str]) -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.png")
    Path(pictures[1]).rename(name)
    result = sample("--model", model, "--images", name, "--num-images", 1, "--out", os.fsdecode(b"\xe9"))
    assert result.exit_code == 0, result.output
    assert "\\udce9/contact-sheet.png: 1 pictures" in result.stdout
    with Image.open(Path(os.fsdecode(b"\xe9"), "001.png")) as drawn:
        note = json.loads(drawn.text["m2m"])
    assert note["images"][0]["file"] == name
    assert shlex.split(note["command"])[-1] == name
