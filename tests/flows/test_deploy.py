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
    from flows.graph import read_graph
    from m2m.progress import clock

    monkeypatch.setattr(deploy, "LOGS", tmp_path)
    monkeypatch.setattr(deploy, "stages_at_once", lambda: 2)
    before = {made.name: made.description for made in deploy.deployments()}
    assert not any("On this machine" in str(text) for text in before.values()), "nothing ran here yet"
    stages = [stage.name for stage in read_graph(ROOT)]
    seconds = {**dict.fromkeys(stages, 60), "train@dino": 600}
    del seconds["foundation"]  # it comes with the repository
    (tmp_path / "seconds.json").write_text(json.dumps(seconds))
    after = {made.name: made.description for made in deploy.deployments()}
    said = " On this machine about {}, if all of it is stale."
    assert after["full"] == f"{before['full']}{said.format(clock((60 * (len(stages) - 2) + 600) / 2))}"
    assert after["dataset"] == f"{before['dataset']}{said.format('2:00')}", "captions, generate, views and procedures"
    assert after["nightly-smoke"] == before["nightly-smoke"], "times of other parameters tell nothing"
    del seconds["captions"]
    (tmp_path / "seconds.json").write_text(json.dumps(seconds))
    assert {made.name: made.description for made in deploy.deployments()} == before, "no guess from a part"
