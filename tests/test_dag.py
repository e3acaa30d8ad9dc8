"""What DVC runs again after which change: DVC is asked, on a copy of the pipeline whose stages only write files.

It runs them where that says more than what it takes to be changed: each stage that runs writes dvc.lock anew, a second.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import networkx
import pytest
import yaml
from dvc.cli import main as dvc
from dvc.repo import Repo

from m2m.params_file import load_params

ROOT = Path(__file__).parents[1]
VARIANTS, TASKS = ("self", "dino"), ("nvs", "vpg")
ITEMS = [(variant, task) for task in TASKS for variant in VARIANTS]


def tuned(*items: tuple[str, str], stages: Sequence[str] = ("finetune", "evaluate")) -> list[str]:
    """The calls that make and measure the fine-tuned models of some variants and tasks."""
    return [f"{stage} --variant {variant} --task {task}" for stage in stages for variant, task in items]


def of_variant(variant: str) -> list[str]:
    """The calls that make and measure all models of a variant."""
    own = [f"train --variant {variant}", f"evaluate --variant {variant} --task mis"]
    return own + tuned(*((variant, task) for task in TASKS))


EVALUATED = [
    *(f"evaluate --variant {one} --task mis" for one in VARIANTS),
    *tuned(*ITEMS, stages=("evaluate",)),
    "report",
]
BOTH = [*of_variant("self"), *of_variant("dino"), "sampling", "report"]

STAND_IN = """#!/bin/sh
# Does a stage's part in the graph: notes that it was called, writes outputs that differ from call to call.
shift 2  # -m m2m.cli
echo "$*" >> "$CALLS"
fresh() { mkdir -p "$(dirname "$1")"; date +%N%s > "$1"; }
variant=$3
item=$variant${5:+-$5}; item=${item%-mis}
case $1 in
  foundation) for part in stable-diffusion/unet stable-diffusion/vae dino clip inception; do
      fresh models/foundation/$part/config.json
    done ;;
  captions) fresh data/captions.parquet; fresh data/captions.parquet.sha256 ;;
  generate) fresh data/mis.json; fresh data/mis.json.sha256; fresh data/mis.md ;;
  views) fresh data/nvs.json; fresh data/nvs.json.sha256; fresh data/nvs.md ;;
  procedures) fresh data/vpg.json; fresh data/vpg.json.sha256; fresh data/vpg.md ;;
  train) fresh models/m2m-$variant/model_index.json; fresh reports/train-$variant.csv ;;
  finetune) fresh models/m2m-$item/model_index.json; fresh reports/finetune-$item.csv ;;
  evaluate) mkdir -p metrics; echo "{\\"fid\\": $(date +%N)}" > metrics/evaluate-$item.json
    fresh reports/evaluate-$item/positions.csv ;;
  sampling) mkdir -p metrics; echo "{\\"seconds\\": $(date +%N)}" > metrics/sampling.json
    fresh reports/sampling/self.csv ;;
  report) fresh reports/index.html ;;
esac
"""


class Pipeline:
    """A checkout with the real dvc.yaml, params.yaml and code."""

    def __init__(self, folder: Path, calls: Path, environment: dict[str, str]) -> None:
        self.folder, self._calls, self._environment = folder, calls, environment

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self._environment, check=True, capture_output=True, text=True
        ).stdout

    def dvc(self, *arguments: str) -> list[str]:
        """Runs dvc, in this process to save its imports; returns the stages that ran, as they were called."""
        self._calls.write_text("")
        with self.inside():
            assert dvc(list(arguments)) == 0
        return self._calls.read_text().splitlines()

    def stale(self) -> list[str]:
        """The stages that DVC finds changed and what depends on them, as they would be called, sorted."""
        with self.inside(), Repo() as repo:
            changed = repo.status()
            graph = repo.index.graph
            stages = {stage for stage in graph if stage.addressing in changed}
            stages |= {dependent for stage in stages for dependent in networkx.ancestors(graph, stage)}
        return sorted(stage.cmd.removeprefix("python -m m2m.cli ") for stage in stages)

    @contextmanager
    def inside(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.chdir(self.folder)
            for name, value in self._environment.items():
                patch.setenv(name, value)
            yield

    def change(self, key: str, value: object) -> None:
        """Gives a parameter another value."""
        params = self.folder / "params.yaml"
        tree = yaml.safe_load(params.read_text())
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section[part]
        assert section[name] != value
        section[name] = value
        params.write_text(yaml.safe_dump(tree))


def copy_graph(folder: Path) -> None:
    """The project's own, with the embedded profile's parameters, whatever those of this checkout are."""
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "profiles" / "embedded.yaml", folder / "params.yaml")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The whole pipeline has run once and is committed, as a user's checkout would be."""
    base = tmp_path_factory.mktemp("dag")
    (base / "bin").mkdir()
    (base / "bin" / "python").write_text(STAND_IN)
    (base / "bin" / "python").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(base / "calls"),
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": str(base / "gitconfig"),
        "DVC_GLOBAL_CONFIG_DIR": str(base / "dvc"),
        "DVC_SYSTEM_CONFIG_DIR": str(base / "dvc"),
        "DVC_SITE_CACHE_DIR": str(base / "cache"),
    }
    (base / "gitconfig").write_text("[user]\nname = M2M\nemail = m2m@example.org\n[init]\ndefaultBranch = main\n")
    folder = base / "checkout"
    copy_graph(folder)
    shutil.copytree(ROOT / "ablations", folder / "ablations")
    shutil.copytree(ROOT / "models/released/reports", folder / "models/released/reports")
    shutil.copytree(ROOT / "m2m", folder / "m2m", ignore=shutil.ignore_patterns("__pycache__"))
    pipeline = Pipeline(folder, base / "calls", environment)
    pipeline.git("init", "-q")
    assert sorted(pipeline.dvc("repro")) == sorted(["foundation", "captions", "generate", "views", "procedures", *BOTH])
    pipeline.git("add", ".")
    pipeline.git("commit", "-qm", "All")
    return pipeline


@pytest.fixture
def pipeline(committed: Pipeline) -> Iterator[Pipeline]:
    yield committed
    committed.git("checkout", "-q", ".")
    committed.dvc("checkout", "-q")


@pytest.mark.slow
def test_nothing_runs_twice(pipeline: Pipeline) -> None:
    assert pipeline.dvc("repro") == []
    assert pipeline.git("status", "--porcelain") == "", "what the pipeline makes is ignored or committed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "stale"),
    [
        ("train.variant.dino.images", 48, [*of_variant("dino"), "sampling", "report"]),
        ("finetune.nvs.self.images", 48, [*tuned(("self", "nvs")), "report"]),
        ("views.views", 9, ["views", *tuned(("self", "nvs"), ("dino", "nvs")), "report"]),
        ("evaluate.nvs.bootstrap", 2000, [*tuned(*ITEMS[:2], stages=("evaluate",)), "report"]),
        ("sampling.repeats", 1, ["sampling", "report"]),
        ("report.title", "M2M", ["report"]),
    ],
)
def test_a_parameter_makes_stale_what_follows_from_it(
    key: str, value: object, stale: list[str], pipeline: Pipeline
) -> None:
    pipeline.change(key, value)
    assert pipeline.stale() == sorted(stale)


@pytest.mark.slow
def test_code_makes_stale_what_it_computes(pipeline: Pipeline) -> None:
    for name, stale in (
        ("evaluation/metrics.py", EVALUATED),
        ("evaluation/efficiency.py", ["sampling", "report"]),
        ("training/card.md.jinja", []),
        ("commands/plan.py", []),
    ):
        module = pipeline.folder / "m2m" / name
        text = module.read_text()
        module.write_text(text + "# changed\n")
        assert pipeline.stale() == sorted(stale), name
        module.write_text(text)


@pytest.mark.slow
def test_a_judge_makes_stale_what_it_measures(pipeline: Pipeline) -> None:
    """Which ones there are is the foundation's affair: its folder is what the evaluation depends on."""
    folder = pipeline.folder / "models" / "foundation" / "perceptual"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert pipeline.dvc("commit", "-f", "foundation") == []
    assert pipeline.stale() == sorted(EVALUATED)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_fresh_clone_has_its_foundation(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.git("clone", "-q", ".", str(tmp_path / "clone"))
    calls = Pipeline(tmp_path / "clone", pipeline._calls, pipeline._environment).dvc("repro")
    assert "foundation" not in calls
    assert len(calls) == 18


@pytest.mark.slow
def test_an_experiment_with_another_learning_rate(pipeline: Pipeline) -> None:
    calls = pipeline.dvc("exp", "run", "-S", "train.variant.dino.learning_rate=2e-4", "--name", "slower")
    assert sorted(calls) == sorted([*of_variant("dino"), "sampling", "report"])
    assert load_params(pipeline.folder / "params.yaml").train.variant.of("dino").learning_rate == 2e-4
    assert "slower" in pipeline.git("for-each-ref", "refs/exps")


def test_every_parameter_belongs_to_a_stage() -> None:
    """And a stage's key in params.yaml is its name."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    listed = {(name, tuple(key.split("."))) for name, stage in graph.items() for key in _params(stage)}
    assert all(key[0] == name for name, key in listed)
    for leaf in _leaves(yaml.safe_load((ROOT / "profiles" / "embedded.yaml").read_text())):
        assert sum(leaf[: len(key)] == key for _, key in listed) == 1, f"{'.'.join(leaf)} is read by one stage"


def _params(stage: dict[str, Any]) -> Iterator[str]:
    """The keys that a stage reads, or all items of one together."""
    items = list(stage.get("foreach", {}).values())
    items = items or [
        dict(zip(stage.get("matrix", {}), values, strict=True)) for values in product(*stage.get("matrix", {}).values())
    ]
    for item in items:
        for key in stage.get("do", stage)["params"]:
            yield re.sub(r"\$\{item\.(\w+)\}", lambda name, item=item: item[name[1]], key)


def _leaves(tree: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, key))
    else:
        yield keys


def test_what_is_laid_over_each_other_is_made_by_stages(pipeline: Pipeline) -> None:
    shown = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    files = {file for plot in shown for one in plot.values() for file in one["y"]}
    with pipeline.inside(), Repo() as repo:
        plots = [out.fs_path for stage in repo.index.stages for out in stage.outs if out.plot]
    made = [Path(path).relative_to(pipeline.folder) for path in plots]
    assert [file for file in files if not any(Path(file).is_relative_to(path) for path in made)] == []


def test_the_command_of_every_stage_looks_into_the_working_folder_first() -> None:
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        assert stage.get("do", stage)["cmd"].startswith(f"python -m m2m.cli {name.partition('@')[0]}")


class Checkout:
    """A commit of the real code and graph. `PYTHONPATH` leads elsewhere, as what another checkout installed does."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.ran = folder, folder.with_name("ran")
        copy_graph(folder)
        shutil.copytree(ROOT / "m2m", folder / "m2m", ignore=shutil.ignore_patterns("__pycache__"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("RAN", str(self.ran))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR"):
            patch.setenv(name, str(folder.with_name(name)))
        self.run("git", "init", "-q")
        self.run("git", "add", ".")
        self.run("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "All")

    def run(self, *command: str, at: Path | None = None) -> None:
        done = subprocess.run(command, cwd=at or self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def change(self, folder: Path) -> None:
        """A change of code, which notes whose it is when it runs."""
        with (folder / "m2m" / "stages" / "captions.py").open("a") as module:
            module.write('\nimport os\nwith open(os.environ["RAN"], "a") as ran:\n    ran.write(__file__ + "\\n")\n')


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path / "checkout", monkeypatch)


def test_a_worktree_runs_its_own_code(checkout: Checkout, tmp_path: Path) -> None:
    worktree = tmp_path / "worktree"
    checkout.run("git", "worktree", "add", "-q", str(worktree))
    checkout.change(worktree)
    checkout.run("dvc", "repro", "-q", "captions", at=worktree)
    assert checkout.ran.read_text().splitlines() == [str(worktree / "m2m" / "stages" / "captions.py")]


@pytest.mark.slow
def test_the_installed_command_runs_the_code_of_where_it_is_called(checkout: Checkout) -> None:
    checkout.change(checkout.folder)
    script = str(Path(sys.executable).with_name("m2m"))
    for folder in (checkout.folder, checkout.folder / "m2m"):
        params, out = checkout.folder / "params.yaml", checkout.folder / "data" / "captions.parquet"
        checkout.run(script, "captions", "--params", str(params), "--out", str(out), at=folder)
    assert checkout.ran.read_text().splitlines() == [str(checkout.folder / "m2m" / "stages" / "captions.py")] * 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--queue", "--temp"])
def test_an_experiment_elsewhere_runs_its_own_code(checkout: Checkout, way: str) -> None:
    checkout.run("git", "config", "user.name", "A")
    checkout.run("git", "config", "user.email", "a@example.org")
    checkout.change(checkout.folder)
    checkout.run("dvc", "exp", "run", way, "--name", "changed", "captions")
    if way == "--queue":
        checkout.run("dvc", "exp", "run", "--run-all")
    (ran,) = checkout.ran.read_text().splitlines()
    assert Path(ran).is_relative_to(checkout.folder / ".dvc" / "tmp" / "exps")
