"""Where things are, from whichever checkout one asks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import sqlalchemy

from m2m.errors import UserError
from m2m.settings import (
    Caller,
    Settings,
    main_checkout,
    revision,
    sqlite_file,
    without_password,
    without_secrets,
)


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
            engine="local",
            ranks=None,
            device="auto",
            threads=None,
            cache_bytes=64 * 10**9,
            work=checkout / "work",
        )


def test_a_submodule_is_its_own_main_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = checkout.parent / "parent"
    git("init", "-q", str(parent), at=checkout)
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(checkout), "libs/m2m", at=parent)
    module = parent / "libs" / "m2m"
    git("worktree", "add", "-q", "--detach", str(checkout.parent / "tree"), at=module)
    for start in (module, checkout.parent / "tree"):
        assert main_checkout(start) == module
    (module / "sub").mkdir()
    monkeypatch.chdir(module / "sub")
    assert Settings.from_environment({}).store == str(module / "data/store")


def test_a_git_directory_that_lies_apart_is_no_checkout(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    (tmp_path / "elsewhere").mkdir()
    git("init", "-q", "--separate-git-dir", str(tmp_path / "elsewhere" / "git"), str(folder), at=tmp_path)
    git("commit", "-qm", "First", "--allow-empty", at=folder)
    git("worktree", "add", "-q", "--detach", str(folder / "work" / "tree"), at=folder)
    git("worktree", "add", "-q", "--detach", str(tmp_path / "tree"), at=folder)
    assert main_checkout(folder) == main_checkout(folder / "work" / "tree") == folder
    assert main_checkout(tmp_path / "tree") == tmp_path / "tree", "git does not know the other one from here"


@pytest.mark.parametrize("bare", ["m2m.git", "m2m/.git", "m2m/.bare"])
def test_worktrees_of_a_bare_repository_share_the_oldest_one(bare: str, checkout: Path) -> None:
    folder = checkout.parent
    git("clone", "-q", "--bare", str(checkout), str(folder / bare), at=folder)
    for age, name in enumerate(["old", "a-new"]):
        git("worktree", "add", "-q", "--detach", str(folder / name), at=folder / bare)
        made = folder / bare / "worktrees" / name / "commondir"
        os.utime(made, (1_700_000_000 + age, 1_700_000_000 + age))
    starts = (folder / "old", folder / "a-new", folder / bare)
    assert {main_checkout(start) for start in starts} == {folder / "old"}
    shutil.rmtree(folder / "old")
    assert main_checkout(folder / "a-new") == folder / "a-new"


def test_settings_are_those_of_a_checkout_wherever_one_stands(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = Settings.from_environment({"M2M_WEIGHTS": "weights"}, checkout=checkout)
    assert (told.work, told.tracking_uri) == (checkout / "work", f"sqlite:///{checkout}/mlflow.db")
    assert told.weights == checkout / "weights"
    assert Settings.from_environment({"M2M_WEIGHTS": "/mnt/weights"}, checkout=checkout).weights == Path("/mnt/weights")


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


def test_the_cache_is_told_in_gigabytes() -> None:
    assert Settings.from_environment({"M2M_CACHE_GB": "5"}).cache_bytes == 5 * 10**9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", "mlruns"),
        ("MLFLOW_TRACKING_URI", "ftp://place"),
        ("MLFLOW_TRACKING_URI", "sqlite://"),
        ("M2M_DEVICE", "tpu"),
        ("M2M_THREADS", "0"),
        ("M2M_THREADS", "many"),
        ("M2M_CACHE_GB", "0"),
        ("M2M_CACHE_GB", "lots"),
        ("M2M_ENGINE", "spark"),
        ("M2M_ENGINE", "host"),
        ("M2M_RANKS", "0"),
    ],
)
def test_what_cannot_be_is_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is '{value}'.*; expected "):
        Settings.from_environment({name: value})


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////home/a@b/m.db", "sqlite:////home/a@b/m.db"),
        ("none", "none"),
        ("http://me:secret@place/x", "http://…@place/x"),
        ("http://secret@place", "http://…@place"),
        ("http://me:top@secret@place:5000/x", "http://…@place:5000/x"),
        ("postgresql://me:top/secret@place/m", "postgresql://…@place/m"),
        ("mysql+pymysql://me:top#secret@place/m", "mysql+pymysql://…@place/m"),
        ("http://me:top?secret@place", "http://…"),
        ("http://secret?top@place", "http://…"),
        ("http:me:secret@place", "…@place"),
        ("http://place?token=secret", "http://place?…"),
        ("postgresql://place/m?user=a@b&password=secret", "postgresql://place/m?…&…"),
        ("postgresql://place/m?sslmode=require&password=top@secret", "postgresql://place/m?sslmode=require&…"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?…"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
    said = f"(HTTPConnectionPool) {uri}/api/2.0 failed: url '{uri}'; at {uri.partition('://')[2]}"
    assert "secret" not in without_secrets(said, uri)
    with pytest.raises(UserError) as refusal:
        Settings.from_environment({"MLFLOW_TRACKING_URI": f"ftp-{uri}"})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("name", ["feature%2Fx", "hash#1", "what?", "a b", "a@b"])
def test_an_address_of_a_file_says_which_file_whatever_its_name(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = checkout.rename(checkout.with_name(name))
    monkeypatch.chdir(home)
    for value, file in (("", "mlflow.db"), ("sqlite:///sub/m.db?timeout=3", "sub/m.db")):
        uri = Settings.from_environment({"MLFLOW_TRACKING_URI": value}).tracking_uri
        assert sqlite_file(uri) == home / file
        (home / "sub").mkdir(exist_ok=True)
        with sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (a INT)"))
        assert (home / file).stat().st_size
        assert [path.name for path in checkout.parent.iterdir()] == [name]


def test_the_revision_knows_whether_code_was_changed(checkout: Path) -> None:
    commit = git("rev-parse", "HEAD", at=checkout)
    (checkout / "dvc.lock").write_text("2")  # what the pipeline writes is no change of the code
    (checkout / "new.txt").write_text("untracked")
    assert str(revision(checkout)) == commit
    (checkout / "file.txt").write_text("2")
    assert str(revision(checkout)) == f"{commit}-dirty"
    assert revision(checkout).dirty
