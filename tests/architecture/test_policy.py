"""What others rely on, written down: layers, names, commands, and the size of a module that reads in one sitting."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from m2m.cli import app
from m2m.params import Params
from m2m.settings import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
PACKAGES = ("ablations", "benchmarks", "flows", "infra", "m2m")
MODULES = sorted(module for package in PACKAGES for module in (ROOT / package).rglob("*.py"))
TRACKING = {"ALL_RUNS", "Chain", "NullTracker", "PastRun", "Run", "Trace", "Tracker"} | {
    "bring_artifacts_along",
    "check_tracking",
    "installed_libraries",
    "open_history",
    "open_tracker",
    "origin_tags",
}


def test_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # In a process of its own: it configures logging, which would silence the loggers of tests that follow.
    subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], check=True)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("m2m", {"ImageSetUNet", "M2MPipeline", "__version__"}),
        ("m2m.store", {"LocalStore", "Store", "open_store"}),
        ("m2m.tracking", TRACKING),
    ],
)
def test_exported_names(module: str, names: set[str]) -> None:
    package = importlib.import_module(module)
    assert set(package.__all__) == names
    assert all(hasattr(package, name) for name in names)


def test_the_command_line() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    surface = {
        name: " ".join(sorted(option for parameter in command.params for option in parameter.opts if option[0] == "-"))
        for name, command in commands.items()
    }
    assert surface == {
        "foundation": "--mirror --out --params",
        "captions": "--out --params",
        "generate": "--captions --foundation --manifest --params",
        "views": "--foundation --manifest --params",
        "procedures": "--foundation --manifest --params",
        "train": "--curve --foundation --manifest --out --params --variant",
        "finetune": "--curve --foundation --from-scratch --manifest --model --out --params --task --variant",
        "evaluate": "--foundation --manifest --metrics --model --params --plots --register --task --variant",
        "sampling": "--foundation --metrics --models --params --plots",
        "report": "--manifest --out --params --to-come",
        "verify": "",
        "export": "--to",
        "sample": "--azimuth --context-timestep --drawn-context --elevation --given-azimuth --given-elevation "
        "--guidance-scale --images --model --num-images --out --seed --solver --steps --task",
        "try": "--examples --models --out",
        "render": "--out --seed --size --views",
        "lineage": "--json",
        "plan": "--back-minutes --bytes-per-image --card --gigabyte-month --gpu-hour --gpus --gpus-per-node --json "
        "--node-hours --pixels --rate --results --simulate --thousand-reads --thousand-writes",
        "check": "--foundation --gpus --results",
    }


def test_a_stage_has_one_name_everywhere() -> None:
    """Its key in params.yaml, its stage in dvc.yaml, its command and its module, with one function `run`."""
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert stages == list(Params.model_fields)
    for stage in stages:
        assert callable(importlib.import_module(f"m2m.stages.{stage}").run)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_reads_in_one_sitting(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 400


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "misc", "manager", "base"}


def test_telemetry_is_off_for_every_process_by_one_table() -> None:
    exported = dict(re.findall(r"^export (\w+) := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert exported.items() >= TELEMETRY_OFF.items()
    assert yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["x-telemetry"] == TELEMETRY_OFF


def test_the_contracts_of_layers_cover_every_package() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert sorted(linter["importlinter"]["root_packages"]) == sorted(linter["mypy"]["files"]) == sorted(PACKAGES)


def test_benchmarks_rest_on_no_tests_and_patch_nothing() -> None:
    test_tools = re.compile(r"^\s*(from|import) (tests|unittest|pytest)\b|monkeypatch", re.MULTILINE)
    for module in (ROOT / "benchmarks").glob("*.py"):
        assert not test_tools.search(module.read_text())


def test_importing_m2m_is_light() -> None:
    code = "import json, sys, m2m; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "m2m" in modules
    assert not {"torch", "diffusers", "transformers", "mlflow", "boto3", "numpy"} & set(modules)
