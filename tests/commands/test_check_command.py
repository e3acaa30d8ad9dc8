"""``m2m check`` for a profile: each row against what is really there, and the time that all of it takes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from m2m.cli import app
from m2m.commands import plan
from m2m.commands.check import machine, profile
from m2m.commands.check.profile import GIB, Hint, Need
from m2m.errors import UserError
from m2m.files import file_digest, write_digests
from m2m.foundation.sources import SOURCES, Note, Sources, file_of, folder_of, mirror, pins
from m2m.params import HubFile, HubFoundation, Params
from m2m.params_file import load_params
from m2m.settings import Settings
from m2m.store import LocalStore

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAPER = [
    *("python", "packages", "disk", "device", "gpus", "weights", "captions", "views", "procedures"),
    *("store", "tracking", "outputs"),
]


@pytest.fixture
def m2m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Checks a folder that has profiles, and nothing else."""
    monkeypatch.chdir(tmp_path)
    for name in ("M2M_STORE", "M2M_DEVICE", "M2M_ENGINE", "M2M_WEIGHTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return lambda *arguments: CliRunner().invoke(app, ["check", *arguments, "--results", str(RESULTS)])


@pytest.fixture(scope="module")
def paper() -> Params:
    return load_params(ROOT / "profiles" / "paper.yaml")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(**variables: str) -> Settings:
        return Settings.from_environment(variables, checkout=tmp_path)

    return make


def need(params: Params, **changes: Any) -> Need:
    """As the command line asks."""

    def memory(variant: Any, learning: Any, *, set_size: int, sets: int, gpus: int) -> float | None:
        found = plan.memory(
            variant,
            learning,
            set_size=set_size,
            sets=sets,
            pixels=512,
            gpus=gpus,
            results=changes.get("results", RESULTS),
        )
        return found.value if found else None

    values = {"fetch": "dvc repro foundation", "gpus": None, "memory": memory, "dataset": 0.0}
    return Need(params=params, **values | {key: value for key, value in changes.items() if key != "results"})


def to_do(look: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        look()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The table


def rows(result: Result) -> dict[str, str]:
    return {line[:12].strip(): line[12:] for line in result.stdout.splitlines()}


def test_the_paper_s_profile_on_a_machine_without_anything(m2m: Any, tmp_path: Path) -> None:
    result = m2m("paper")
    assert result.exit_code == 1
    table = rows(result)
    assert [*table] == PAPER
    ready = {name for name, line in table.items() if line.startswith("ok ")}
    assert ready == {"python", "device", "store", "tracking", "outputs"}
    assert all(line.startswith("TO DO ") for name, line in table.items() if name not in ready)
    assert "dataset 119,139)" in table["disk"]
    assert "none here: 64 in all take 47 GiB each (finetune@self-vpg)" in table["gpus"]
    weights = "stable-diffusion, stable-diffusion/safety_checker, dino, clip, inception, perceptual missing"
    assert weights in table["weights"]
    assert table["weights"].endswith("  make profile PROFILE=paper && dvc repro foundation")
    assert table["captions"].endswith("  put Conceptual 12M's file there (docs/scale.md)")
    assert "views.path: data/views_release cannot be read (No such file or directory)" in table["views"]
    assert "procedures.path: data/wikihow.json cannot be read (No such file or directory)" in table["procedures"]
    assert not (tmp_path / "mlflow.db").exists(), "a check makes no database"

    store = rows(m2m("paper", "--gpus", "64"))["store"]
    assert store.startswith("optional")
    assert store.endswith("for several machines: a folder on a disk that all share, or M2M_STORE=s3://bucket/prefix")


def test_by_default_it_is_the_active_parameters_that_are_asked(m2m: Any, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "profiles" / "embedded.yaml", tmp_path / "params.yaml")
    assert [*rows(m2m())] == [*("python", "packages", "disk", "device", "foundation", "store", "tracking", "outputs")]
    shutil.copyfile(ROOT / "profiles" / "paper.yaml", tmp_path / "params.yaml")
    table = rows(m2m())
    assert [*table] == PAPER
    assert table["weights"].endswith("  dvc repro foundation")
    assert rows(m2m("paper"))["weights"] == table["weights"]


def test_a_profile_that_is_none_is_one_line(m2m: Any, tmp_path: Path) -> None:
    assert m2m("papers").stderr.startswith(
        "m2m: no profile 'papers' in profiles/; there are embedded, full, gpu, paper"
    )
    (tmp_path / "params.yaml").write_text("foundation: 3\n")
    result = m2m()
    assert result.exit_code == 2
    assert result.stderr.startswith("m2m: params.yaml:1: ")


# GPUs


def cards(monkeypatch: pytest.MonkeyPatch, count: int, gib: int) -> None:
    """A machine's GPUs, as torch tells of them."""
    card = SimpleNamespace(name="some card", total_memory=gib * GIB)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)


@pytest.mark.parametrize(
    ("count", "gib", "planned", "told"),
    [
        (8, 79, 64, "8 x some card, 79 GiB: 64 in all take 47 GiB each (finetune@self-vpg)"),
        (8, 44, 64, "set finetune.common: gradient_checkpointing true"),
        (1, 25, 64, "set train.common: gradient_checkpointing true, set finetune.common: gradient_checkpointing true"),
        (1, 24, 64, "set train.common: gradient_checkpointing true, finetune.common fits no GPU of this size"),
        (8, 16, 64, "train.common fits no GPU of this size, finetune.common fits no GPU of this size"),
        (8, 79, None, "set train.common: gradient_accumulation 4, set finetune.common: gradient_accumulation 4"),
        (7, 79, None, "plan a number of GPUs that divides 64, the sets of a step (--gpus)"),
    ],
)
def test_gpus_are_held_against_what_the_plan_says(
    count: int,
    gib: int,
    planned: int | None,
    told: str,
    paper: Params,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards(monkeypatch, count, gib)
    looked = lambda: profile.gpus(settings(), need(paper, gpus=planned))  # noqa: E731
    if told.startswith("8 x"):
        assert looked() == told
    else:
        assert told in to_do(looked).partition("; ")[2]


def test_what_is_said_to_change_fits(paper: Params, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 8, 79)
    assert "8 in all take 238 GiB each" in to_do(lambda: profile.gpus(settings(), need(paper)))
    changed = {"gradient_accumulation": 4}
    train, finetune = paper.train, paper.finetune
    params = paper.model_copy(
        update={
            "train": train.model_copy(update={"common": train.common.model_copy(update=changed)}),
            "finetune": finetune.model_copy(update={"common": finetune.common.model_copy(update=changed)}),
        }
    )
    assert (
        profile.gpus(settings(), need(params)) == "8 x some card, 79 GiB: 8 in all take 74 GiB each (finetune@self-vpg)"
    )


def test_gpus_elsewhere_unused_or_unmeasured(
    paper: Params, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards(monkeypatch, 0, 0)
    found = profile.gpus(settings(M2M_ENGINE="head:6379", M2M_RANKS="64"), need(paper))
    assert isinstance(found, Hint)
    assert found.what == "those of head:6379: 64 in all take 47 GiB each (finetune@self-vpg)"
    assert to_do(lambda: profile.gpus(settings(), need(paper, results=tmp_path))).startswith(
        "none here: 64 in all, and nobody measured what they take; go where they are"
    )
    cards(monkeypatch, 8, 79)
    assert to_do(lambda: profile.gpus(settings(M2M_DEVICE="cpu"), need(paper))) == "M2M_DEVICE is cpu; unset it"


# Weights


@pytest.fixture
def fetched(paper: Params, tmp_path: Path) -> HubFoundation:
    """Small files in the place of the published ones, as a fetch leaves them in ``work/hub``; their pins."""
    published, work = paper.foundation, tmp_path / "work" / "hub"
    assert isinstance(published, HubFoundation)
    sources, pinned = Sources(work), {}
    for name, pin in pins(published).items():
        if isinstance(pin, HubFile):
            path = work / "draft"
            path.write_text(f"weights of {name}")
            pinned[name.rpartition("/")[2]] = one = pin.model_copy(update={"sha256": file_digest(path)})
            path.rename(work / file_of(one))
            continue
        folder = folder_of(pin, work)
        folder.mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_text(f"{file} of {name}")
        sources.keep(pin, Note.of(folder, ["config.json", "model.safetensors"]))
    return published.model_copy(update=pinned)


@pytest.fixture
def foundation(fetched: HubFoundation, tmp_path: Path) -> Path:
    """What the stage makes of them."""
    made = tmp_path / "models" / "foundation"
    for name, pin in pins(fetched).items():
        if isinstance(pin, HubFile):
            (made / name).mkdir(parents=True)
            (made / name / "model.safetensors").write_text(f"tensors of {name}")
        else:
            shutil.copytree(folder_of(pin, tmp_path / "work" / "hub"), made / name)
    for name in {name.partition("/")[0] for name in pins(fetched)}:
        write_digests(made / name)
    (made / SOURCES).write_text(json.dumps({name: pin.model_dump() for name, pin in pins(fetched).items()}))
    return made


FETCH = "make profile PROFILE=paper && dvc repro foundation"
ALL = "stable-diffusion, stable-diffusion/safety_checker, dino, clip, inception, perceptual"


def look_for(fetched: HubFoundation, settings: Settings, folder: Path, *, store: bool = True) -> str:
    return profile.weights(fetched, settings, folder, FETCH, lambda: store)


def test_weights_in_the_foundation_s_folder(
    fetched: HubFoundation, foundation: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(settings().work)
    assert look_for(fetched, settings(), foundation) == f"{ALL} in {foundation} (10 of 10 files by hash)"
    damaged = foundation / "dino" / "model.safetensors"
    content = damaged.read_text()
    damaged.write_text(content.upper())
    again = "is missing or damaged; dvc repro --force --single-item foundation"
    assert to_do(lambda: look_for(fetched, settings(), foundation)) == f"{damaged} {again}"
    monkeypatch.setattr(profile, "HASHING", -1.0)
    assert look_for(fetched, settings(), foundation) == f"{ALL} in {foundation} (0 of 10 files by hash)"
    damaged.unlink()
    assert to_do(lambda: look_for(fetched, settings(), foundation)) == f"{damaged} {again}"
    (foundation / SOURCES).write_text("[")
    assert "sources.json is damaged; make it again" in to_do(lambda: look_for(fetched, settings(), foundation))


def test_a_foundation_of_other_weights_is_none(fetched: HubFoundation, foundation: Path, settings: Any) -> None:
    shutil.rmtree(settings().work)
    other = fetched.dino.model_copy(update={"revision": "0" * 40})
    told = to_do(lambda: look_for(fetched.model_copy(update={"dino": other}), settings(), foundation))
    assert told.startswith("stable-diffusion, stable-diffusion/safety_checker, clip, inception, perceptual in ")
    assert told.endswith(f" / dino missing (8 of 8 files by hash); {FETCH}")


def test_weights_that_are_nearer_than_the_hub(fetched: HubFoundation, settings: Any, tmp_path: Path) -> None:
    work, nowhere = tmp_path / "work" / "hub", tmp_path / "models" / "foundation"
    here = to_do(lambda: look_for(fetched, settings(), nowhere))
    assert here == f"{ALL} in {work} (10 of 10 files by hash); {FETCH}"
    store = LocalStore(tmp_path / "data" / "store")
    mirror(fetched, work=work, store=store)
    shutil.copytree(work, tmp_path / "weights")
    shutil.rmtree(work)
    given = settings(M2M_WEIGHTS="weights")
    assert to_do(lambda: look_for(fetched, given, nowhere)).startswith(f"{ALL} in {tmp_path / 'weights'} (10")
    assert to_do(lambda: look_for(fetched, settings(), nowhere)) == f"{ALL} in the store {store.uri}; {FETCH}"
    assert to_do(lambda: look_for(fetched, settings(), nowhere, store=False)) == f"{ALL} missing; {FETCH}"
    dino = tmp_path / "weights" / "facebook--dinov2-large" / fetched.dino.revision / "model.safetensors"
    store.remove(f"files/{file_digest(dino)}")
    others = "stable-diffusion, stable-diffusion/safety_checker, clip, inception, perceptual"
    told = to_do(lambda: look_for(fetched, settings(), nowhere))
    assert told == f"{others} in the store {store.uri} / dino missing; {FETCH}"
    dino.write_text("rotten")
    assert to_do(lambda: look_for(fetched, given, nowhere)) == f"{dino} is missing or damaged; {FETCH}"


# Files that somebody puts there


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"http://a/1.jpg\ta red boat\n" * 300, "0 of its first 200 lines bad"),
        (b"http://a/1.jpg\ta red boat\n" * 2 + b"one column\n", "1 of its first 3 lines bad"),
        (
            b"http://a/1.jpg\ta red boat\n" + b"one column\n" * 3,
            "3 of its first 4 lines are bad: 1 columns instead of 2; ",
        ),
        (b"", "it is empty; see captions.format, or fetch it again"),
        (b"PAR1....", "is a Parquet file, captions.format is tsv; expected lines of an address"),
    ],
)
def test_captions(content: bytes, told: str, paper: Params, tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_bytes(content)
    params: Any = paper.captions.model_copy(update={"path": str(tmp_path / "cc12m.tsv")})
    if told.endswith("lines bad"):
        assert profile.captions(params) == f"{tmp_path / 'cc12m.tsv'}, 0.0 GB, {told}"
    else:
        assert told in to_do(lambda: profile.captions(params))


@pytest.fixture
def views(paper: Params, tmp_path: Path) -> Any:
    """Two objects for training and one for the test, of two views; cameras as Blender has them."""
    for folder in ("train/a", "train/b", "test/c"):
        (tmp_path / folder).mkdir(parents=True)
        for view in range(2):
            Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(tmp_path / folder / f"{view:03}.png")
            np.save(tmp_path / folder / f"{view:03}.npy", np.column_stack([np.eye(3), [0.0, 0.0, -2.0]]))
    places = {"path": str(tmp_path / "train"), "test_path": str(tmp_path / "test")}
    return paper.views.model_copy(update={**places, "views": 2})


def test_views(views: Any, tmp_path: Path) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    assert profile.views(views) == f"{train}, 0 of 2 objects bad, {test}, 0 of 1 objects bad"
    (train / "a" / "001.npy").unlink()
    assert profile.views(views).startswith(f"{train}, 1 of 2 objects bad")
    (test / "c" / "001.npy").unlink()
    told = f"views.test_path: {test / 'c' / '001.npy'} is missing; views.views asks for 2 of each object (docs/data.md)"
    assert to_do(lambda: profile.views(views)) == told
    shutil.rmtree(test / "c")
    assert (
        to_do(lambda: profile.views(views))
        == f"views.test_path: {test} holds no folders; put renderings there (docs/data.md)"
    )
    alone = views.model_copy(update={"test_path": ""})
    assert profile.views(alone) == f"{train}, 1 of 2 objects bad"


def test_cameras_of_another_convention(views: Any, tmp_path: Path) -> None:
    other = views.model_copy(update={"camera_convention": "opencv"})
    assert to_do(lambda: profile.views(other)).endswith(
        "000.npy does not see its object; see views.camera_convention, opencv (docs/data.md)"
    )
    for folder in ("a", "b"):
        (tmp_path / "train" / folder / "000.npy").write_bytes(b"no camera")
    assert "no .npy file of a camera" in to_do(lambda: profile.views(views))


TEA = {"id": "tea", "goal": "Make tea", "steps": ["Boil water", "Pour it"], "images": ["tea/1.jpg", "tea/2.jpg"]}


@pytest.mark.parametrize("content", [json.dumps([TEA, TEA]), f"\ufeff{json.dumps(TEA)}\n{json.dumps(TEA)}\n"])
def test_procedures(content: str, paper: Params, tmp_path: Path) -> None:
    path = tmp_path / "wikihow.json"
    path.write_text(content)
    params: Any = paper.procedures.model_copy(update={"path": str(path)})
    picture = tmp_path / "tea" / "1.jpg"
    told = f"procedures.path: {picture} cannot be read (No such file or directory); put it there (docs/data.md)"
    assert to_do(lambda: profile.procedures(params)) == told
    picture.parent.mkdir()
    picture.write_bytes(b"")
    assert profile.procedures(params) == f"{path}, which begins with 'Make tea'"


@pytest.mark.parametrize("content", ["", "[]", "{", '["tea"]', '{"id": "tea"}', json.dumps({**TEA, "images": []})])
def test_what_begins_with_no_procedure(content: str, paper: Params, tmp_path: Path) -> None:
    (tmp_path / "wikihow.json").write_text(content)
    params: Any = paper.procedures.model_copy(update={"path": str(tmp_path / "wikihow.json")})
    assert "wikihow.json begins with no procedure (" in to_do(lambda: profile.procedures(params))


# Of the machine, as much as a profile says


def test_what_the_disk_has_to_hold(
    paper: Params, settings: Any, foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 50))
    nowhere = tmp_path / "nowhere"
    own = machine.disk(tmp_path, settings(), nowhere, need(paper))
    assert own.endswith("wanted (models 50, a checkpoint 13, weights 8, the dataset 0)")
    told = to_do(lambda: machine.disk(tmp_path, settings(), foundation, need(paper, dataset=1e18)))
    assert "(models 50, a checkpoint 13, weights 0, the dataset 931,322,575); free some, or set M2M_STORE" in told
    remote = settings(M2M_STORE="s3://bucket", MLFLOW_TRACKING_URI="http://host:5000", M2M_CACHE_GB="10")
    (remote.work / "cache" / "shards").mkdir(parents=True)
    with (remote.work / "cache" / "shards" / "one.tar").open("wb") as file:
        file.truncate(4 * 10**9)
    (tmp_path / "models" / "m2m-self").mkdir()
    told = machine.disk(tmp_path, remote, foundation, need(paper, dataset=1e18))
    assert told.endswith("wanted (models 21, a checkpoint 13, weights 0, the cache 6)")


def test_a_database_that_no_node_of_a_cluster_reaches(settings: Any, tmp_path: Path) -> None:
    told = to_do(lambda: machine.tracking(settings(M2M_ENGINE="ray://head:10001")))
    assert told.startswith(f"sqlite:///{tmp_path}/mlflow.db is a file, which no node of a cluster reaches; set ")
    assert machine.tracking(settings(M2M_ENGINE="ray")).endswith("mlflow.db, which the first run makes")
    (tmp_path / "file").write_text("")
    in_a_file = settings(MLFLOW_TRACKING_URI="sqlite:///file/mlflow.db")
    assert to_do(lambda: machine.tracking(in_a_file)).endswith("/file cannot be written; set MLFLOW_TRACKING_URI")


def test_a_store_for_several_machines(paper: Params, settings: Any, s3_server: Any) -> None:
    assert isinstance(machine.store(settings(), need(paper)), str)
    for told in (
        machine.store(settings(), need(paper, gpus=8)),
        machine.store(settings(M2M_RANKS="8"), need(paper)),
        machine.store(settings(M2M_ENGINE="head:6379"), None),
    ):
        assert isinstance(told, Hint)
    shared = machine.store(settings(M2M_STORE=s3_server.uri), need(paper, gpus=8))
    assert isinstance(shared, str)
    assert shared.startswith(f"{s3_server.uri}, a trial in ")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes every question and answers none."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_silent_server_is_not_waited_for(silent: str, settings: Any) -> None:
    to_do(lambda: machine.tracking(settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9")))  # imports what it needs
    began = time.monotonic()
    told = to_do(lambda: machine.tracking(settings(MLFLOW_TRACKING_URI=silent)))
    assert "timed out; start it" in told
    assert time.monotonic() - began < 10


def test_a_cluster_needs_its_package(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("")
    assert machine.packages(tmp_path / "constraints.txt", settings()) == "0 as pinned"
    monkeypatch.setattr(machine, "_version", lambda _: "missing")
    told = to_do(lambda: machine.packages(tmp_path / "constraints.txt", settings(M2M_ENGINE="ray")))
    assert told == "M2M_ENGINE is ray, but ray is missing; pip install -c constraints.txt '.[ray]'"


@pytest.mark.slow
def test_it_waits_for_no_library_but_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "m2m.cli", "check", "paper", "--gpus", "64"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert [line[:12].strip() for line in ran.stdout.splitlines()] == PAPER
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"diffusers", "transformers"}
