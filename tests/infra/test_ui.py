"""``make ui`` shows what is recorded, and gives no password away."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.ui import environment
from m2m.errors import UserError
from m2m.settings import Settings

CHECKOUT = Path(__file__).parents[2]


def test_it_shows_the_database_where_runs_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "what?"
    subprocess.run(["git", "init", "-q", f"--separate-git-dir={tmp_path / 'git'}", str(folder)], check=True)
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    settings = Settings.from_environment({})
    places = environment(settings)
    assert places["MLFLOW_SERVER_ALLOWED_HOSTS"] == "127.0.0.1:*,localhost:*"
    assert places["MLFLOW_BACKEND_STORE_URI"] == settings.tracking_uri
    assert places["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == (folder / "mlruns").as_uri()


@pytest.mark.parametrize(
    ("uri", "said"), [("none", "nothing is recorded"), ("http://me:secret@place", "http://…@place")]
)
def test_what_it_cannot_show_is_one_line(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        environment(Settings.from_environment({"MLFLOW_TRACKING_URI": uri}))
    assert "secret" not in str(refusal.value)


def test_the_address_of_the_database_is_no_argument() -> None:
    """Everybody on the machine can read arguments, and the address may hold a password."""
    said = subprocess.run(
        ["make", "--no-print-directory", "-n", "ui", "PORT=5001"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.splitlines()[-1] == "python -m infra.ui 5001"
