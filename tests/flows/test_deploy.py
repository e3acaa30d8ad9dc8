"""The process that serves the flows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_starts_no_server_of_prefect_that_anybody_may_use(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    served = subprocess.run(
        [sys.executable, "-m", "flows.deploy", "serve"],
        cwd=ROOT,
        env={**environment, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert served.returncode == 2
    assert served.stderr.startswith("m2m: PREFECT_API_URL is not set; expected ")
    assert len(served.stderr.splitlines()) == 1


def test_a_deployment_says_how_long_it_takes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import deploy

    monkeypatch.setattr(deploy, "LOGS", tmp_path)
    monkeypatch.setattr(deploy, "stages_at_once", lambda: 2)
    before = {made.name: made.description for made in deploy.deployments()}
    assert not any("On this machine" in str(text) for text in before.values()), "nothing ran here yet"
    (tmp_path / "seconds.json").write_text(json.dumps({"train@dino": 600, "train@self": 500, "evaluate@dino": 120}))
    after = {made.name: made.description for made in deploy.deployments()}
    said = " On this machine: {} if all of it is stale, as its stages last took."
    assert after["full"] == f"{before['full']}{said.format('10:10')}"
    assert after["one-variant"] == f"{before['one-variant']}{said.format('6:00')}"
    assert after["nightly-smoke"] == before["nightly-smoke"], "times of other parameters tell nothing"
