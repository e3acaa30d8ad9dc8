"""What DVC runs again after which change: DVC is asked, on a copy of the pipeline whose stages only write files."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.cli import main as dvc

from m2m.params_file import load_params

ROOT = Path(__file__).parents[1]
BOTH = ["train --variant self", "train --variant dino", "evaluate --variant self", "evaluate --variant dino", "report"]

STAND_IN = """#!/bin/sh
# Does a stage's part in the graph: notes that it was called, writes outputs that differ from call to call.
echo "$*" >> "$CALLS"
fresh() { mkdir -p "$(dirname "$1")"; date +%N%s > "$1"; }
variant=$3
case $1 in
  foundation) for model in stable-diffusion dino clip inception; do fresh models/foundation/$model/config.json; done ;;
  captions) fresh data/captions.parquet ;;
  generate) fresh data/mis.json; fresh data/mis.md ;;
  train) fresh models/m2m-$variant/model_index.json; fresh reports/train-$variant.csv ;;
  evaluate) mkdir -p metrics; echo "{\\"fid\\": $(date +%N)}" > metrics/evaluate-$variant.json
    fresh reports/evaluate-$variant/positions.csv ;;
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
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.chdir(self.folder)
            for name, value in self._environment.items():
                patch.setenv(name, value)
            assert dvc(list(arguments)) == 0
        return self._calls.read_text().splitlines()

    def change(self, old: str, new: str) -> None:
        params = self.folder / "params.yaml"
        text = params.read_text()
        assert text.count(old) == 1
        params.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The whole pipeline has run once and is committed, as a user's checkout would be."""
    base = tmp_path_factory.mktemp("dag")
    (base / "bin").mkdir()
    (base / "bin" / "m2m").write_text(STAND_IN)
    (base / "bin" / "m2m").chmod(0o755)
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
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "m2m", folder / "m2m", ignore=shutil.ignore_patterns("__pycache__"))
    pipeline = Pipeline(folder, base / "calls", environment)
    pipeline.git("init", "-q")
    assert sorted(pipeline.dvc("repro")) == sorted(["foundation", "captions", "generate", *BOTH])
    pipeline.git("add", ".")
    pipeline.git("commit", "-qm", "All")
    return pipeline


@pytest.fixture
def pipeline(committed: Pipeline) -> Iterator[Pipeline]:
    yield committed
    committed.git("checkout", "-q", ".")
    committed.dvc("checkout", "-q")


def test_nothing_runs_twice(pipeline: Pipeline) -> None:
    assert pipeline.dvc("repro") == []
    assert pipeline.git("status", "--porcelain") == "", "what the pipeline makes is ignored or committed"


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        (
            "    dino:\n      images: ",
            "    dino:\n      images: 1",
            ["train --variant dino", "evaluate --variant dino", "report"],
        ),
        (
            "    self:\n      images: ",
            "    self:\n      images: 1",
            ["train --variant self", "evaluate --variant self", "report"],
        ),
        ("    set_size: 6", "    set_size: 5", BOTH),
        ("  max_redraws: 3", "  max_redraws: 4", ["generate", *BOTH]),
        ("  bootstrap: 1000", "  bootstrap: 2000", BOTH[2:]),
        ("  title: Many-to-many image generation", "  title: M2M", ["report"]),
    ],
    ids=["train.variant.dino", "train.variant.self", "train.common", "generate", "evaluate", "report"],
)
def test_a_parameter_makes_stale_what_follows_from_it(old: str, new: str, stale: list[str], pipeline: Pipeline) -> None:
    pipeline.change(old, new)
    assert sorted(pipeline.dvc("repro")) == sorted(stale)


def test_code_makes_stale_what_it_computes(pipeline: Pipeline) -> None:
    with (pipeline.folder / "m2m" / "evaluation" / "scores.py").open("a") as module:
        module.write("# changed\n")
    assert sorted(pipeline.dvc("repro")) == sorted(BOTH[2:])


def test_a_fresh_clone_has_its_foundation(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.git("clone", "-q", ".", str(tmp_path / "clone"))
    calls = Pipeline(tmp_path / "clone", pipeline._calls, pipeline._environment).dvc("repro")
    assert "foundation" not in calls
    assert len(calls) == 7


def test_an_experiment_with_another_learning_rate(pipeline: Pipeline) -> None:
    calls = pipeline.dvc("exp", "run", "-S", "train.variant.dino.learning_rate=2e-4", "--name", "slower")
    assert calls == ["train --variant dino", "evaluate --variant dino", "report"]
    assert load_params(pipeline.folder / "params.yaml").train.variant.of("dino").learning_rate == 2e-4
    assert "slower" in pipeline.git("for-each-ref", "refs/exps")


def test_every_parameter_belongs_to_a_stage() -> None:
    """And a stage's key in params.yaml is its name."""
    listed = {
        tuple(key.replace("${item.variant}", variant).split("."))
        for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
        for key in stage["params"]
        for variant in ("self", "dino")
    }
    for leaf in _leaves(yaml.safe_load((ROOT / "params.yaml").read_text())):
        assert sum(leaf[: len(key)] == key for key in listed) == 1, f"{'.'.join(leaf)} is read by one stage"


def _leaves(tree: object, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, key))
    else:
        yield keys
