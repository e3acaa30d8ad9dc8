"""A checkout with a small graph of quick stages, and a real Prefect server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.flows.serving import started_server

ROOT = Path(__file__).parents[2]
STAGES = """
stages:
  captions:
    desc: What is drawn.
    cmd: python do.py captions data/captions.txt
    params: [captions]
    outs: [data/captions.txt]
  generate:
    cmd: python do.py generate data/mis.txt
    params: [generate]
    deps: [data/captions.txt]
    outs: [data/mis.txt]
  train:
    matrix:
      variant: [self, dino]
    cmd: python do.py train@${item.variant} models/${item.variant}.txt
    meta:
      slot: gpu
    params: ["train.variant.${item.variant}"]
    deps: [data/mis.txt]
    outs: ["models/${item.variant}.txt"]
  evaluate:
    matrix:
      variant: [self, dino]
    cmd: python do.py evaluate@${item.variant} metrics/${item.variant}.json
    params: [evaluate]
    deps: ["models/${item.variant}.txt"]
    metrics:
      - metrics/${item.variant}.json:
          cache: false
  report:
    cmd: python do.py report reports/index.txt
    deps: [metrics/self.json, metrics/dino.json]
    outs: [reports/index.txt]
"""
DO = '''
"""Stands in for `m2m`: makes an output, at the pace and with the luck that a file sets."""
import json, os, pathlib, subprocess, sys, time, zlib
stage, out = sys.argv[1], pathlib.Path(sys.argv[2])
plan = json.loads(pathlib.Path(os.environ["PLAN"]).read_text()).get(stage, {})
log = pathlib.Path(os.environ["PLAN"]).with_name("log")
with log.open("a") as file:
    run, experiment = os.environ.get("M2M_FLOW_RUN_ID"), os.environ.get("DVC_EXP_NAME")
    print(stage, "begins", time.time(), os.getcwd(), run, experiment, file=file)
tries = log.with_name(f"tries-{stage}")
number = int(tries.read_text()) + 1 if tries.exists() else 1
tries.write_text(str(number))
if plan.get("child"):
    child = subprocess.Popen(["sleep", "300"])
    log.with_name("child").write_text(str(child.pid))
for step in range(plan.get("steps", 0)):
    print(f"{stage}: {step + 1}/{plan['steps']} images, 5 images/s, 0:01 left", file=sys.stderr, flush=True)
    time.sleep(0.1)
time.sleep(plan.get("seconds", 0))
if number <= plan.get("unanswered", 0):
    pathlib.Path(os.environ["M2M_OUTSIDE_NOTE"]).write_text("away")
    sys.exit("m2m: the store does not answer")
if plan.get("recorded"):
    from m2m.runtime import Machine
    with Machine(stage).tracker().run(stage, stage=stage, tags={}):
        pass
if plan.get("wrong"):
    sys.exit("m2m: params.yaml:3: wrong")
out.parent.mkdir(exist_ok=True)
out.write_text(json.dumps({"made": stage, "with": zlib.crc32(pathlib.Path("params.yaml").read_bytes())}))
with log.open("a") as file:
    print(stage, "ends", time.time(), file=file)
'''


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def _deployments() -> str:
    """The project's own, but those whose targets are no stages here."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    stages = set(yaml.safe_load(STAGES)["stages"])
    content["deployments"] = [
        one for one in content["deployments"] if set(one.get("parameters", {}).get("targets", ())) <= stages
    ]
    return yaml.safe_dump(content)


@pytest.fixture
def checkout(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with the project's flows and parameters, and stages that take no time."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    shutil.copyfile(ROOT / "profiles" / "smoke.yaml", folder / "params.yaml")
    (folder / "prefect.yaml").write_text(_deployments())
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "do.py").write_text(DO)
    (folder / ".gitignore").write_text("/data/\n/models/\n/reports/\n/work/\n__pycache__/\n")
    (folder / ".dvcignore").write_text("/work\n")
    bin_ = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    (tmp_path / "plan.json").write_text("{}")
    git(folder, "init", "-q")
    subprocess.run(["dvc", "init", "-q"], cwd=folder, check=True)
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "Start")
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@example.org")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server's API, as long as the test session runs."""
    with started_server(tmp_path_factory.mktemp("prefect")) as api:
        yield api
