"""A clone of this checkout with the local stack up, and a browser that may ask no other host than this machine.

``M2M_UI_CHECKOUT`` names a folder for the clone that stays: with all that the smoke profile makes, applied.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "work" / "screenshots"
PATIENCE = 60_000
"""Milliseconds for a page to show what it should; machines are noisy."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The local stack of a clone, and the clone."""

    folder: Path
    prefect: str
    mlflow: str
    environment: dict[str, str]

    @property
    def key(self) -> str:
        """What signs in to Prefect."""
        return (self.folder / "data" / "prefect.key").read_text().strip()

    def run(self, *command: str) -> str:
        """What a command says in the clone."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, **body: Any) -> Any:
        """What Prefect's API answers."""
        key = base64.b64encode(self.key.encode()).decode()
        headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
        question = Request(f"{self.prefect}/api/{path}", json.dumps(body).encode(), headers)
        with urlopen(question, timeout=60) as answer:
            return json.load(answer)

    def ask_mlflow(self, path: str, **body: Any) -> Any:
        """What MLflow's API answers."""
        address = f"{self.mlflow}/api/2.0/mlflow/{path}"
        with urlopen(Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    return program


@pytest.fixture(scope="session")
def stack(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """What `make up` starts, in a clone, so that nobody's checkout is touched."""
    folder = Path(os.environ.get("M2M_UI_CHECKOUT") or tmp_path_factory.mktemp("ui") / "m2m")
    _clone(folder)
    with closing(socket.socket()) as one, closing(socket.socket()) as two, closing(socket.socket()) as three:
        for probe in (one, two, three):
            probe.bind(("127.0.0.1", 0))
        prefect, mlflow, s3 = (probe.getsockname()[1] for probe in (one, two, three))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ports = {"M2M_PREFECT_PORT": str(prefect), "M2M_MLFLOW_PORT": str(mlflow), "M2M_S3_PORT": str(s3)}
    stack = Stack(
        folder=folder,
        prefect=f"http://127.0.0.1:{prefect}",
        mlflow=f"http://127.0.0.1:{mlflow}",
        # The clone's own code, not that for which the environment was set up.
        environment={**os.environ, **ports, "PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"},
    )
    try:
        stack.run(sys.executable, "-m", "infra.local", "up")
        yield stack
    finally:
        stack.run(sys.executable, "-m", "infra.local", "down")


def _clone(folder: Path) -> None:
    """Clones this checkout as it is, with what is not committed yet."""

    def git(at: Path, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True).stdout

    git(ROOT, "clone", "--quiet", str(ROOT), str(folder))
    for name in filter(None, git(ROOT, "ls-files", "-z", "-m", "-o", "--exclude-standard").split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@example.org")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "As it is")


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Names of hosts lead nowhere.
        only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=chromium, args=[only_here])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that is looked at once more when the test is done, and whose every request went to this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 1600}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    asked: set[str] = set()
    context.on("request", lambda each: asked.add(each.url))
    # Shown by pytest if the test fails.
    context.on("requestfailed", lambda each: print("no answer:", each.method, each.url, each.failure))
    context.on("response", lambda each: each.ok or print("answer:", each.status, each.request.method, each.url))
    page = context.new_page()
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png", full_page=True)
    context.close()
    foreign = [url for url in asked if urlsplit(url).scheme not in ("data", "blob") and _host(url) != "127.0.0.1"]
    assert not foreign
    assert any(_host(url) == "127.0.0.1" for url in asked)


def _host(url: str) -> str | None:
    return urlsplit(url).hostname
