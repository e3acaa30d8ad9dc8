"""What is released is small, whole wherever it is read from, and says where it comes from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from infra import release
from m2m.cli import app
from m2m.errors import UserError
from m2m.files import check_digests, write_digests
from m2m.params import GateParams
from m2m.pipeline import M2MPipeline
from m2m.settings import Caller, Revision
from m2m.tracking import open_tracker, origin_tags
from tests.drawing import photos

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LINKS = ("image_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors")


RELEASED = Path(release.__file__).parents[1] / "models" / "released"
"""What comes with the repository."""


def test_what_comes_with_the_repository_is_whole_small_and_says_where_it_comes_from() -> None:
    models = sorted(path.parent for path in RELEASED.glob("*/model_index.json"))
    tuned = [f"m2m-{variant}-{task}" for variant in ("dino", "self") for task in ("nvs", "vpg")]
    assert [model.name for model in models] == sorted(["m2m-dino", "m2m-self", *tuned])
    assert sum(path.lstat().st_size for path in RELEASED.rglob("*")) < 45e6
    params = yaml.safe_load((RELEASED / "params.yaml").read_text())  # of the commit that made them
    for model in models:
        assert not any(path.suffix in {".bin", ".pt", ".pkl"} for path in model.iterdir())
        links = [path for path in model.rglob("*") if path.is_symlink()]
        assert all(path.resolve().is_relative_to(RELEASED.parent / "foundation") for path in links)
        check_digests(model)
        variant, _, task = model.name.removeprefix("m2m-").partition("-")
        training = params["finetune"][task][variant] if task else params["train"]["variant"][variant]
        card = (model / "README.md").read_text()
        assert f"It has seen {training['images']} images" in card
        told = CliRunner().invoke(app, ["lineage", str(model)])
        assert told.exit_code == 0, told.output
        assert "data/mis.json" in told.stdout
        assert "models/foundation" in told.stdout


@pytest.fixture
def released(
    make_pipeline: Any, tiny_stable_diffusion: Path, tiny_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkout in which an M2M-DINO was trained, and what is released of it: models/released/m2m-dino."""
    monkeypatch.chdir(tmp_path)
    made = Path("made")
    make_pipeline("dino").save_pretrained(made / "models/m2m-dino")
    for name, source in (("stable-diffusion", tiny_stable_diffusion), ("dino", tiny_dino)):
        shutil.copytree(source, f"models/foundation/{name}")
    (made / "models/m2m-dino/README.md").write_text("---\nlicense: mit\n---\n\n# M2M-DINO\n")
    write_digests(made / "models/m2m-dino")
    stages = {
        "foundation": {"outs": [{"path": "models/foundation", "md5": "d" * 32}]},
        "generate": {"outs": [{"path": "data/mis.json", "md5": "a" * 32}]},
        "train@dino": {
            "deps": [
                {"path": "data/mis.json", "md5": "a" * 32},
                {"path": "m2m/seeds.py", "md5": "b" * 32},
                {"path": "models/foundation/dino", "md5": "e" * 32},
            ],
            "outs": [{"path": "models/m2m-dino", "md5": "c" * 32}],
        },
    }
    files = {
        "params.yaml": "train: {}\n",
        "dvc.lock": yaml.safe_dump({"stages": stages}),
        "metrics/evaluate-dino.json": json.dumps({"fid/mean": 1.5, "manifest": "ff"}),
        "reports/evaluate-dino/details.json": "{}",
    }
    for name, text in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    git = ["git", "-c", "user.name=m2m", "-c", "user.email=m2m@localhost"]
    (made / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "made"]):
        subprocess.run([*git, *command], cwd=made, check=True)
    assert release.run(made) == [Path("models/released/m2m-dino")]
    return Path("models/released/m2m-dino")


def draw(folder: Path) -> np.ndarray[Any, Any]:
    pipeline = M2MPipeline.from_pretrained(folder)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.image_encoder)} == {torch.float32}
    pictures = pipeline(photos(2), num_images=2, num_inference_steps=2, generator=0, output_type="np").images
    return np.stack(pictures)


def test_a_released_model_draws_as_the_one_that_was_trained(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {tensor.dtype for tensor in load_file(released / WEIGHTS).values()} == {torch.float16}
    links = sorted(path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_symlink())
    assert links == list(LINKS), "what it shares with the foundation is there once"
    expected = draw(Path("made/models/m2m-dino"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # links are relative to the folder, not to where one stands
    assert np.abs(draw(tmp_path / released) - expected).max() < 0.01
    text = (tmp_path / released / "README.md").read_text()
    assert "| `fid/mean` | 1.5 |" in text
    assert "license: mit" in text


def test_saved_or_registered_it_is_whole(released: Path, database: str, tmp_path: Path) -> None:
    M2MPipeline.from_pretrained(released).save_pretrained(tmp_path / "saved")
    tracker = open_tracker(database, spool=tmp_path / "spool", tags=origin_tags(Caller(), Revision("c" * 40, False)))
    gate = GateParams(metric="fid/mean", better="lower", require={})
    with tracker.run("evaluate-dino", stage="evaluate", tags={}, resume_key=None) as run:
        run.register(released, "m2m-dino", metrics={"fid/mean": 1.0}, tags={}, gate=gate)
    (registered,) = (path.parent for path in (tmp_path / "mlruns").rglob("model_index.json"))
    shutil.rmtree("models/foundation")
    for folder in (tmp_path / "saved", registered):
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert draw(folder).shape == (2, 64, 64, 3)


def test_what_is_damaged_or_half_copied_is_one_line(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, "copy/m2m-dino", symlinks=True)
    with pytest.raises(
        UserError, match=r"image_encoder/model.safetensors: a link to \S+, which is not there; .*cp -rL"
    ):
        M2MPipeline.from_pretrained("copy/m2m-dino")
    shutil.copytree(released, "whole/m2m-dino")
    assert draw(tmp_path / "whole/m2m-dino").shape == (2, 64, 64, 3)
    encoder = Path("models/foundation/dino/model.safetensors")
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        UserError, match=r"image_encoder/model.safetensors: damaged, its SHA-256 .* restore it from git"
    ):
        M2MPipeline.from_pretrained(released)
    with pytest.raises(
        UserError, match=r"made/models/m2m-dino/image_encoder/model.safetensors: not of models/foundation"
    ):
        release.run(Path("made"))
    (released.parent / "params.yaml").write_text("of the release before")
    shutil.rmtree("made/reports/evaluate-dino")
    with pytest.raises(UserError, match="made/reports/evaluate-dino is missing; evaluate the model first"):
        release.run(Path("made"))
    Path("made/reports/evaluate-dino").mkdir()
    Path("made/code.py").write_text("2")
    with pytest.raises(UserError, match=r"made: code\.py is not as in its commit"):
        release.run(Path("made"))
    assert (released.parent / "params.yaml").read_text() == "of the release before"
    assert (released / "model_index.json").is_file(), "what was released before stays"
    with pytest.raises(UserError, match="copy/models: no trained model is there"):
        release.run(Path("copy"))


def test_where_it_comes_from_is_told(released: Path) -> None:
    told = CliRunner().invoke(app, ["lineage", str(released)])
    assert told.exit_code == 0, told.output
    assert "train@dino" in told.stdout
    assert f"data/mis.json {'a' * 12}" in told.stdout
    assert "m2m/seeds.py" not in told.stdout, "code is told by the commit"
    assert f"models/foundation/dino {'e' * 12}" in told.stdout
    again = told.stdout.partition("again")[2].strip().removesuffix(" && dvc repro train@dino")
    git = ["git", "-c", "user.name=m2m", "-c", "user.email=m2m@localhost", "-C", "made"]
    shutil.copytree(released.parent, "made/models/released", symlinks=True)
    for command in (["add", "models/released"], ["commit", "-q", "-m", "the release comes later"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run(again, shell=True, cwd="made", check=True)
    assert Path("made/params.yaml").read_text() == "train: {}\n"
    assert not Path("made/models/released").exists(), "the code is that of its commit"
    as_json = json.loads(CliRunner().invoke(app, ["lineage", str(released), "--json"]).stdout)
    assert as_json["stages"]["generate"]["made"] == {"data/mis.json": "a" * 32}
    for text in ("", "stages: 1", "stages: {train@dino: {}}", "["):
        (released.parent / "dvc.lock").write_text(text)
        told = CliRunner().invoke(app, ["lineage", str(released)])
        assert (told.exit_code, len(told.stderr.splitlines())) == (2, 1)
        assert "do not tell where it comes from; restore a released one from git" in told.stderr


@pytest.mark.slow  # it builds a wheel, and another process learns of the whole of torch
def test_the_wheel_draws_outside_of_the_repository(released: Path, tmp_path: Path) -> None:
    root, source = Path(release.__file__).parents[1], tmp_path / "source"
    shutil.copytree(root / "m2m", source / "m2m", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", "wheels", str(source)], check=True)
    (wheel,) = Path("wheels").glob("m2m-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", "site", str(wheel)], check=True)
    shutil.copytree(released, "elsewhere/m2m-dino")
    Image.new("RGB", (40, 40), "teal").save("elsewhere/photo.png")
    code = "import m2m, sys; sys.argv[0] = 'm2m'; print(m2m.__file__); from m2m.cli import main; main()"
    ask = ["sample", "--model", "m2m-dino", "--images", "photo.png", "--num-images", "1", "--steps", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-c", code, *ask]
    drawn = subprocess.run(command, cwd="elsewhere", env=environment, capture_output=True, text=True, check=False)
    assert drawn.returncode == 0, drawn.stderr
    assert str(tmp_path / "site/m2m/__init__.py") in drawn.stdout
    assert Path("elsewhere/out/contact-sheet.png").is_file()


def test_a_released_model_stands_in_for_one_that_was_not_trained(released: Path) -> None:
    photo = "photo.png"
    Image.new("RGB", (40, 40), "teal").save(photo)
    asked = ["sample", "--images", photo, "--num-images", "1", "--steps", "1"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "m2m: models/m2m-dino was not trained here: models/released/m2m-dino takes its place" in result.stderr
    shutil.copytree("made/models/m2m-dino", "models/m2m-dino")
    assert "takes its place" not in CliRunner().invoke(app, asked).stderr
