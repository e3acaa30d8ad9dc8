"""The command line hands each stage what it asks for, and says in one line what is wrong."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import m2m.commands as m2m_commands
from m2m.cli import app
from m2m.commands.check.machine import _extras
from m2m.errors import UserError

ROOT = Path(__file__).parents[1]
PARAMS = str(ROOT / "profiles" / "smoke.yaml")


@pytest.fixture
def m2m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command in an empty folder that is no git checkout."""
    monkeypatch.chdir(tmp_path)
    for name in ("M2M_STORE", "M2M_DEVICE", "M2M_THREADS", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


COMMANDS = {path.stem for path in Path(m2m_commands.__file__).parent.glob("*.py")}


class Call:
    """Stands in for the `run` of a stage, or of another command: takes what that takes, and remembers it."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, result: object = None) -> None:
        package = "commands" if name in COMMANDS else "stages"
        module = importlib.import_module(f"m2m.{package}.{name}")
        self._signature, self._result = inspect.signature(module.run), result
        self.given: dict[str, Any] = {}
        monkeypatch.setattr(module, "run", self)

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        self.given = dict(self._signature.bind(*args, **kwargs).arguments)
        return self._result


def test_foundation(m2m: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    call = Call("foundation", monkeypatch)
    assert m2m("foundation", "--params", PARAMS).exit_code == 0
    assert call.given["params"].source == "world"
    assert call.given["out"] == Path("models/foundation")
    assert call.given["work"] == tmp_path / "work"
    assert (call.given["store"], call.given["mirror"]) == (None, False), "what is trained here needs none"


def test_published_weights_may_come_from_the_store_or_a_folder(
    m2m: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call = Call("foundation", monkeypatch, "30 files, 8.6 GB, are in the store")
    monkeypatch.setenv("M2M_WEIGHTS", "weights")
    result = m2m("foundation", "--params", ROOT / "profiles" / "paper.yaml", "--mirror")
    assert result.stdout.splitlines()[0].endswith("inception, perceptual")
    assert result.stdout.splitlines()[1] == "30 files, 8.6 GB, are in the store"
    assert call.given["store"].uri == str(tmp_path / "data/store")
    assert (call.given["weights"], call.given["mirror"]) == (tmp_path / "weights", True)


def test_captions(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("captions", monkeypatch, 0)
    result = m2m("captions", "--params", PARAMS)
    assert "data/captions.parquet: 12 captions for training, 4 for validation, 8 for the test, 0 lines" in result.stdout
    assert call.given["params"].train == 12
    assert call.given["out"] == Path("data/captions.parquet")


def test_generate(m2m: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = SimpleNamespace(kind="mis", sets={"train": 12, "validation": 4, "test": 8}, images_per_set=4, shards=(1, 2))
    call = Call("generate", monkeypatch, made)
    result = m2m("generate", "--params", PARAMS)
    assert "data/mis.json: 12 train sets, 4 validation sets, 8 test sets of 4 images in 2 shards" in result.stdout
    assert call.given["stable_diffusion"] == Path("models/foundation/stable-diffusion")
    assert call.given["inception"] == Path("models/foundation/inception")
    assert call.given["runtime"].store.uri == str(tmp_path / "data/store")
    assert call.given["runtime"].device == "cpu"


@pytest.mark.parametrize(("stage", "kind", "images"), [("views", "nvs", "4"), ("procedures", "vpg", "up to 4")])
def test_the_sets_of_a_task(stage: str, kind: str, images: str, m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(kind=kind, sets={"train": 6, "validation": 2, "test": 4}, images_per_set=4, shards=(1, 2))
    call = Call(stage, monkeypatch, made)
    result = m2m(stage, "--params", PARAMS)
    assert (
        f"data/{kind}.json: 6 train sets, 2 validation sets, 4 test sets of {images} images in 2 shards"
        in result.stdout
    )
    assert call.given["stable_diffusion"] == Path("models/foundation/stable-diffusion")
    assert call.given["runtime"].processes >= 1


@pytest.mark.parametrize("variant", ["self", "dino"])
def test_train(variant: str, m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("train", monkeypatch, SimpleNamespace(images_seen=96, held_out_loss=0.5))
    result = m2m("train", "--params", PARAMS, "--variant", variant)
    assert f"models/m2m-{variant}: 96 images seen" in result.stdout
    assert call.given["variant"] == variant
    assert call.given["out"] == Path(f"models/m2m-{variant}")
    assert call.given["curve"] == Path(f"reports/train-{variant}.csv")


def test_evaluate(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("evaluate", monkeypatch, SimpleNamespace(numbers={"fid/mean": 1.0}, version="3"))
    command = ("evaluate", "--params", PARAMS, "--variant", "dino")
    assert "registered as m2m-dino version 3" in m2m(*command).stdout
    assert call.given["register"]
    assert (call.given["task"], call.given["untuned"]) == ("mis", None)
    assert call.given["manifest"] == Path("data/mis.json")
    assert call.given["metrics"] == Path("metrics/evaluate-dino.json")
    assert call.given["plots"] == Path("reports/evaluate-dino")
    m2m(*command, "--no-register")
    assert not call.given["register"]


@pytest.mark.parametrize(("variant", "task"), [("self", "nvs"), ("dino", "vpg")])
def test_finetune(variant: str, task: str, m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("finetune", monkeypatch, SimpleNamespace(images_seen=96, held_out_loss=0.5))
    command = ("finetune", "--params", PARAMS, "--variant", variant, "--task", task)
    assert f"models/m2m-{variant}-{task}: 96 images seen" in m2m(*command).stdout
    assert (call.given["task"], call.given["variant"], call.given["scratch"]) == (task, variant, None)
    assert call.given["model"] == Path(f"models/m2m-{variant}")
    assert call.given["manifest"] == Path(f"data/{task}.json")
    assert call.given["curve"] == Path(f"reports/finetune-{variant}-{task}.csv")
    m2m(*command, "--from-scratch", "--out", "elsewhere")
    assert (call.given["model"], call.given["out"]) == (Path("models/foundation"), Path("elsewhere"))
    assert call.given["scratch"].max_context > 0


@pytest.mark.parametrize("task", ["nvs", "vpg"])
def test_evaluate_of_a_task(task: str, m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("evaluate", monkeypatch, SimpleNamespace(numbers={"fid/mean": 1.0}, version="3"))
    command = ("evaluate", "--params", PARAMS, "--variant", "dino", "--task", task)
    assert f"registered as m2m-dino-{task} version 3" in m2m(*command).stdout
    assert call.given["metrics"] == Path(f"metrics/evaluate-dino-{task}.json")
    assert call.given["plots"] == Path(f"reports/evaluate-dino-{task}")
    assert (call.given["model"], call.given["untuned"]) == (Path(f"models/m2m-dino-{task}"), Path("models/m2m-dino"))
    assert call.given["register"]
    m2m(*command, "--no-register")
    assert not call.given["register"]


def test_sampling(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("sampling", monkeypatch, {"ratio/self/given=4": 1.25, "ratio/dino/given=4": 1.0})
    result = m2m("sampling", "--params", PARAMS, "--models", "elsewhere")
    assert "metrics/sampling.json: an image after 4 given ones takes 1.25 (self), 1.00 (dino) times" in result.stdout
    assert call.given["models"] == {"self": Path("elsewhere/m2m-self"), "dino": Path("elsewhere/m2m-dino")}
    assert call.given["stable_diffusion"] == Path("models/foundation/stable-diffusion")
    assert call.given["plots"] == Path("reports/sampling")


def test_report(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("report", monkeypatch)
    assert m2m("report", "--params", PARAMS).stdout == "reports/index.html\n"
    items = call.given["items"]
    assert [(one.variant, one.task) for one in items] == [
        (v, t) for t in ("mis", "nvs", "vpg") for v in ("self", "dino")
    ]
    assert items[1].curve == Path("reports/train-dino.csv")
    assert call.given["sampling"] == Path("metrics/sampling.json")
    assert items[5].metrics == Path("reports/evaluate-dino-vpg/details.json")
    assert [*items[2].beside.values()] == [
        Path("ablations/results/from-scratch-nvs-self-seed-0.json"),
        Path("models/released/reports/evaluate-self-nvs/details.json"),
    ]
    assert not call.given["to_come"]
    m2m("report", "--params", PARAMS, "--out", "page.html", "--to-come", "evaluate@self", "--to-come", "sampling")
    assert (call.given["out"], call.given["to_come"]) == (Path("page.html"), ["evaluate@self", "sampling"])


def test_verify(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("verify", monkeypatch, "1 shards: all whole")
    assert "all whole" in m2m("verify", "data/other.json").stdout
    assert call.given["manifest"] == Path("data/other.json")


def test_export(m2m: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    call = Call("export", monkeypatch, "1 shards, 2 sets")
    assert m2m("export", "data/other.json", "--to", "folder").stdout == "folder: 1 shards, 2 sets\n"
    assert (call.given["manifest"], call.given["to"]) == (Path("data/other.json"), Path("folder"))
    assert call.given["store"].uri == str(tmp_path / "data/store")
    assert "Missing option '--to'" in m2m("export").stderr


def test_sample_takes_pictures_as_a_shell_gives_them(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("sample", monkeypatch, [Path("001.png"), Path("out/contact-sheet.png")])
    m2m("sample", "--model", "models/m2m-self", "--images", "a.png", "b.jpg", "c.webp", "--num-images", 6)
    assert call.given["job"].images == [Path("a.png"), Path("b.jpg"), Path("c.webp")]
    assert call.given["job"].model == Path("models/m2m-self")
    assert call.given["job"].drawing.num_images == 6
    m2m("sample", "--images", "a.png", "--images", "b.jpg")
    assert call.given["job"].images == [Path("a.png"), Path("b.jpg")]


# What goes wrong


def one_line(result: Result) -> str:
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("the manifest is empty"), 2, "m2m: the manifest is empty"),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/x"),
            2,
            "m2m: cannot write data/x: No space left on device",
        ),
        (OSError(errno.EROFS, "Read-only file system"), 2, "m2m: cannot write to the disk: Read-only file system"),
        (KeyboardInterrupt(), 130, "m2m: interrupted; the same command goes on where it was"),
    ],
)
def test_what_people_can_mend_is_one_line(
    error: BaseException, code: int, said: str, m2m: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("m2m.stages.captions.run", fail)
    result = m2m("captions", "--params", PARAMS)
    assert result.exit_code == code
    assert one_line(result) == said


def test_our_own_mistakes_keep_their_traceback(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("m2m.stages.captions.run", fail)
    result = m2m("captions", "--params", PARAMS)
    assert isinstance(result.exception, OSError)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["captions", "--params", "nowhere.yaml"], "m2m: nowhere.yaml: cannot be read: No such file or directory"),
        (["generate", "--params", PARAMS], "m2m: "),
        (["train", "--params", PARAMS, "--variant", "self"], "m2m: "),
        (["evaluate", "--params", PARAMS, "--variant", "self"], "m2m: "),
        (["finetune", "--params", PARAMS, "--variant", "self", "--task", "nvs"], "m2m: cannot read manifest data/nvs"),
        (["evaluate", "--params", PARAMS, "--variant", "self", "--task", "vpg"], "m2m: cannot read manifest data/vpg"),
        (["sampling", "--params", PARAMS], "m2m: models/foundation/stable-diffusion: no Stable Diffusion folder"),
        (["verify"], "m2m: cannot read manifest data/mis.json"),
        (["export", "--to", "mis"], "m2m: cannot read manifest data/mis.json"),
        (["sample", "--images", "nowhere.png"], "m2m: nowhere.png: no such file"),
        (["sample"], "m2m: no pictures given"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(
    command: list[str], said: str, m2m: Any, tmp_path: Path
) -> None:
    result = m2m(*command)
    assert result.exit_code == 2
    assert one_line(result).startswith(said)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "value"), [("MLFLOW_TRACKING_URI", "mlruns"), ("M2M_DEVICE", "cuda:7"), ("M2M_STORE", "ftp://place")]
)
def test_a_wrong_setting_is_named(name: str, value: str, m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    result = m2m("generate", "--params", PARAMS)
    assert result.exit_code == 2
    assert one_line(result).startswith("m2m: ")


def test_a_setting_reaches_torch(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("M2M_THREADS", "1")
    monkeypatch.setenv("M2M_DEVICE", "cpu")
    Call("foundation", monkeypatch)
    try:
        m2m("foundation", "--params", PARAMS)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("device", "workers"), [("cpu", 3), ("cuda", 1)])
def test_a_cpu_has_a_worker_a_thread_and_a_gpu_has_one(
    device: str, workers: int, m2m: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("M2M_THREADS", "3")
    monkeypatch.setenv("M2M_DEVICE", device)
    call = Call("generate", monkeypatch, SimpleNamespace(sets={}, images_per_set=4, shards=()))
    try:
        m2m("generate", "--params", PARAMS)
        assert call.given["runtime"].workers.count == workers
        assert torch.get_num_threads() == (1 if device == "cpu" else 3)
    finally:
        torch.set_num_threads(before)


# m2m check


def test_what_only_an_extra_needs_is_optional(m2m: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2m.commands.check.machine._extras", lambda: {"of-an-extra": "postgres"})
    typer = importlib.metadata.version("typer")
    (tmp_path / "constraints.txt").write_text(f"typer=={typer}\nof-an-extra==2\n")
    (line,) = (line for line in m2m("check").stdout.splitlines() if line.startswith("packages"))
    assert line.split(maxsplit=2)[1:] == [
        "ok",
        "1 as pinned; optional, and not there: of-an-extra, of the extra postgres",
    ]


def test_the_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _extras() == {"psycopg2-binary": "postgres", "ray": "ray"}

    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert _extras() == {}, "a checkout whose package nobody installed"


def test_check_says_what_to_do(m2m: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("torch==0.1\nnothing-like-this==1.0\nof-ours==2\nanother==3\n")
    (tmp_path / "mount").write_text("")
    monkeypatch.setenv("M2M_STORE", str(tmp_path / "mount" / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("m2m.commands.check.machine.FREE_SPACE", 2**60)
    result = m2m("check")
    assert result.exit_code == 1
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["python"].startswith("ok")
    assert lines["packages"].endswith("of-ours missing, not 2 and 1 more  run make setup")
    assert "of 1,073,741,824 wanted" in lines["disk"]
    assert lines["disk"].endswith("free some, or set M2M_STORE")
    assert lines["foundation"].endswith("or make it: dvc repro foundation")
    assert lines["store"].startswith("TO DO")
    assert ": connection refused  " in lines["tracking"]
    assert lines["tracking"].endswith("start it, or set MLFLOW_TRACKING_URI to another, or to none")
    assert lines["outputs"].startswith("optional  not looked at")


def test_check_is_content_with_a_ready_machine(m2m: Any, tmp_path: Path) -> None:
    from importlib.metadata import version

    from m2m.commands.check.machine import FOUNDATION

    (tmp_path / "constraints.txt").write_text(f"# pins\npydantic=={version('pydantic')}\n")
    for name in FOUNDATION:
        (tmp_path / "models/foundation" / name).parent.mkdir(parents=True)
        (tmp_path / "models/foundation" / name).write_text("{}")
    result = m2m("check")
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["ok"] * 8
    assert result.exit_code == 0


def test_check_names_what_other_libraries_made(m2m: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from m2m.files import folder_digest
    from m2m.tracking import installed_libraries

    for name in ("m2m-self", "m2m-dino"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model_index.json").write_text(f'"{name}"')
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    now = ", ".join(f"{name} {version}" for name, version in installed_libraries().items())
    before = now.replace(f"torch {installed_libraries()['torch']}", "torch 2.0.0", 1)
    experiment = client.create_experiment("train")
    for name, libraries in (("m2m-self", before), ("m2m-self", now), ("m2m-dino", now), ("m2m-dino", before)):
        tags = {"model": folder_digest(tmp_path / "models" / name), "libraries": libraries, "dvc.stage": "train@x"}
        client.create_run(experiment, tags=tags, start_time=len(client.search_runs([experiment])) + 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (line,) = [line for line in m2m("check").stdout.splitlines() if line.startswith("outputs")]
    assert line.split()[1:3] == ["TO", "DO"]
    assert "made by other libraries: models/m2m-dino (by torch 2.0.0)  " in line
    assert line.endswith("keep them, or make them anew: dvc repro --force")
    assert "m2m-self" not in line, "the newest run that made it counts"


def test_check_asks_for_the_right_python(m2m: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2m.commands.check.machine.sys", SimpleNamespace(version_info=(3, 14, 0)))
    monkeypatch.setenv("M2M_DEVICE", "cuda")
    lines = m2m("check").stdout.splitlines()
    assert "make setup PYTHON=python3.11" in lines[0]
    assert "constraints.txt is not there" in lines[1]
    assert "finds no GPU" in lines[3]


def test_help_and_completion_answer_at_once() -> None:
    for arguments in (["--help"], ["train", "--help"], ["--show-completion", "bash"]):
        before = os.times().children_user
        command = [sys.executable, "-X", "importtime", "-m", "m2m.cli", *arguments]
        # The shell is then the one that is named, not one looked for above this process, where there may be none.
        named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=named)
        imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
        assert "typer" in imported
        assert not imported & {"torch", "mlflow", "diffusers", "transformers", "pyarrow", "numpy", "dvc"}
        assert os.times().children_user - before < 1, "seconds of computing"
