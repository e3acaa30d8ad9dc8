"""Killed at any moment and called again, training ends with the same weights and the same curve, to the bit."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from m2m.files import folder_digest
from m2m.params import TrainCommon, TrainVariant

Common = Callable[..., TrainCommon]
Variant = Callable[..., TrainVariant]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]  # the scenarios are 25 processes, on a machine that may be busy

# 8 steps of 12 images (of 9 on three ranks): points of the curve at 48 and 96 images, checkpoints at 36, 72 and 96.
# When one is replaced, the new one is whole and the old one still there; when another rank is killed, the first waits.
SCENARIOS: dict[str, dict[str, Any]] = {
    "self": {"variant": "self", "ranks": 1, "kills": [("step 4", 0), ("saving 72", 0)]},
    "dino": {"variant": "dino", "ranks": 1, "kills": [("replacing 72", 0), ("step 6", 0)]},
    "self on two ranks": {"variant": "self", "ranks": 2, "kills": [("step 3", 1), ("replacing 72", 0)]},
    "self on three ranks": {"variant": "self", "ranks": 3, "kills": [("step 5", 2)]},
}
COMMON = {"set_size": 3, "max_context": 2, "checkpoint_every": 36, "preview_sets": 1}
PARAMS = {"images": 96}
ON_THREE_RANKS = {"images": 72, "sets_per_step": 3}


@pytest.fixture(scope="module")
def outcomes(
    dataset: Any, foundation: Path, make_common: Common, make_variant: Variant, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """What came of each scenario: its folder, and how its launches ended: one not killed, the killed, the last."""
    launches, folders = [], {}
    for name, scenario in SCENARIOS.items():
        ranks = scenario["ranks"]
        folders[name] = tmp_path_factory.mktemp("scenario")
        launch = {
            "variant": scenario["variant"],
            "ranks": ranks,
            "common": make_common(**{**COMMON, "gradient_accumulation": 1 if ranks == 3 else 2}).model_dump(),
            "params": make_variant(**(ON_THREE_RANKS if ranks == 3 else PARAMS)).model_dump(),
            "manifest": str(dataset.manifest),
            "foundation": str(foundation),
            "store": dataset.store.uri,
        }
        broken = {**launch, "out": str(folders[name] / "broken")}
        launches += [
            {**launch, "out": str(folders[name] / "whole")},
            *({**broken, "killed": moment, "victim": victim} for moment, victim in scenario["kills"]),
            broken,
        ]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("launches.py")],
        input=json.dumps(launches),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {
        name: (folder, [results.pop(0) for _ in (0, *SCENARIOS[name]["kills"], 0)]) for name, folder in folders.items()
    }


def read_curve(path: Path) -> list[list[float]]:
    with path.open() as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_here_and_there_ends_as_one_that_was_not(
    outcomes: dict[str, tuple[Path, list[dict[str, Any]]]], name: str
) -> None:
    folder, (whole, *killed, last) = outcomes[name]
    assert set(whole["codes"]) == set(last["codes"]) == {0}
    for launch, (_, victim) in zip(killed, SCENARIOS[name]["kills"], strict=True):
        assert launch["codes"][victim] == -9
        assert launch["checkpoints"]
    assert whole["steps"] == list(range(8))
    assert all(launch["steps"][0] > 0 for launch in (*killed[1:], last))  # it went on, it did not start again
    assert folder_digest(folder / "broken" / "model") == folder_digest(folder / "whole" / "model")
    assert (folder / "broken" / "curve.csv").read_bytes() == (folder / "whole" / "curve.csv").read_bytes()
    assert not whole["checkpoints"]
    assert not last["checkpoints"]


def test_one_rank_and_two_agree_to_rounding(outcomes: dict[str, tuple[Path, list[dict[str, Any]]]]) -> None:
    one, two = (outcomes[name][0] / "whole" for name in ("self", "self on two ranks"))
    alone, together = (
        load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors") for folder in (one, two)
    )
    differences = [(alone[name] - together[name]).abs().max().item() for name in alone]
    assert max(differences) < 1e-4  # a tenth of what one step moves a weight
    curves = zip(read_curve(one / "curve.csv"), read_curve(two / "curve.csv"), strict=True)
    assert all(ours == pytest.approx(theirs, rel=1e-3) for ours, theirs in curves)
