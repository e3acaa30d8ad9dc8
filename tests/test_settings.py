"""Where things are, from whichever checkout one asks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from m2m.errors import UserError
from m2m.settings import Caller, Settings, main_checkout, revision, without_password


def git(*arguments: str, at: Path) -> str:
    identity = ("-c", "user.name=M2M", "-c", "user.email=m2m@example.org")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=at, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "main"
    folder.mkdir()
    git("init", "-q", at=folder)
    (folder / "file.txt").write_text("1")
    (folder / "dvc.lock").write_text("1")
    git("add", ".", at=folder)
    git("commit", "-qm", "First", at=folder)
    return folder


def test_without_variables_all_lies_in_the_main_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "sub").mkdir()
    git("worktree", "add", "-q", "--detach", "../tree", at=checkout)
    below_dvc = checkout / ".dvc" / "tmp" / "exps" / "standalone" / "tmpx"
    git("clone", "-q", str(checkout), str(below_dvc), at=checkout)
    for start in (checkout, checkout / "sub", checkout.parent / "tree", below_dvc):
        monkeypatch.chdir(start)
        assert main_checkout() == checkout
        assert Settings.from_environment({}) == Settings(
            store=str(checkout / "data/store"),
            tracking_uri=f"sqlite:///{checkout}/mlflow.db",
            device="auto",
            threads=None,
            work=checkout / "work",
        )


def test_outside_of_git_it_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main_checkout(tmp_path) == tmp_path
    assert str(revision(tmp_path)) == "unknown"
    monkeypatch.setenv("PATH", "")
    assert main_checkout(tmp_path) == tmp_path


def test_variables_say_otherwise(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    told = Settings.from_environment(
        {
            "M2M_STORE": "s3://bucket/prefix",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
            "M2M_DEVICE": "cuda:1",
            "M2M_THREADS": "2",
            "M2M_PARENT_RUN": "a",
            "M2M_FLOW_RUN_ID": "b",
            "M2M_FLOW_RUN_URL": "http://c",
            "DVC_EXP_NAME": "d",
        }
    )
    assert told.caller == Caller(parent_run="a", flow_run="b", flow_run_url="http://c", experiment="d")
    assert (told.store, told.tracking_uri) == ("s3://bucket/prefix", "http://127.0.0.1:5000")
    assert (told.device, told.threads) == ("cuda:1", 2)


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("M2M_STORE", "/elsewhere", "/elsewhere"),
        ("M2M_STORE", "shards", "{main}/shards"),
        ("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/m.db", "sqlite:////elsewhere/m.db"),
        ("MLFLOW_TRACKING_URI", "sqlite:///runs/m.db", "sqlite:///{main}/runs/m.db"),
        ("MLFLOW_TRACKING_URI", "postgresql+psycopg://u:p@db/m", "postgresql+psycopg://u:p@db/m"),
        ("MLFLOW_TRACKING_URI", "none", "none"),
        ("MLFLOW_TRACKING_URI", "", "sqlite:///{main}/mlflow.db"),
    ],
)
def test_relative_places_start_at_the_main_checkout(
    name: str, value: str, result: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    told = Settings.from_environment({name: value})
    assert (told.store if name == "M2M_STORE" else told.tracking_uri) == result.format(main=checkout)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", "mlruns"),
        ("MLFLOW_TRACKING_URI", "ftp://place"),
        ("MLFLOW_TRACKING_URI", "sqlite://"),
        ("M2M_DEVICE", "tpu"),
        ("M2M_THREADS", "0"),
        ("M2M_THREADS", "many"),
    ],
)
def test_what_cannot_be_is_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is '{value}'.*; expected "):
        Settings.from_environment({name: value})


def test_passwords_are_not_shown() -> None:
    with pytest.raises(UserError) as refusal:
        Settings.from_environment({"MLFLOW_TRACKING_URI": "ftp://me:secret@place"})
    assert "secret" not in str(refusal.value)
    assert without_password("http://me:secret@place/x") == "http://…@place/x"
    assert without_password("sqlite:////home/a@b/m.db") == "sqlite:////home/a@b/m.db"


def test_the_revision_knows_whether_code_was_changed(checkout: Path) -> None:
    commit = git("rev-parse", "HEAD", at=checkout)
    (checkout / "dvc.lock").write_text("2")  # what the pipeline writes is no change of the code
    (checkout / "new.txt").write_text("untracked")
    assert str(revision(checkout)) == commit
    (checkout / "file.txt").write_text("2")
    assert str(revision(checkout)) == f"{commit}-dirty"
    assert revision(checkout).dirty
