"""Killed at any moment and called again, training ends with the same weights and the same curve, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from m2m.files import folder_digest
from m2m.params import TrainCommon, TrainVariant

LAUNCHES = Path(__file__).with_name("launches.py")


@pytest.fixture
def carry_out(
    dataset: Any, foundation: Path, common: Callable[..., TrainCommon], variant: Callable[..., TrainVariant]
) -> Callable[..., list[dict[str, Any]]]:
    """Carries out launches of the training stage, one after the other, each in processes of its own."""

    def call(name: str, *launches: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
        plan = {
            "common": common(**changes).model_dump(),
            "variant": name,
            "params": variant().model_dump(),
            "manifest": str(dataset.manifest),
            "foundation": str(foundation),
            "store": dataset.store.uri,
            "launches": launches,
        }
        done = subprocess.run(
            [sys.executable, LAUNCHES, json.dumps(plan)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


# 12 steps of 16 images: points after steps 2, 5, 8 and 11, checkpoints after 3, 7 and 11 (counted from 0).
@pytest.mark.parametrize(
    ("ranks", "name", "kills"),
    [
        (1, "self", ["step 5", "saving 128"]),
        (1, "dino", ["replacing 128", "step 9"]),
        (2, "self", ["step 4", "replacing 128"]),
    ],
)
def test_a_run_killed_twice_ends_as_one_that_was_not(
    carry_out: Callable[..., list[dict[str, Any]]], tmp_path: Path, ranks: int, name: str, kills: list[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = carry_out(
        name,
        {"ranks": ranks, "out": str(whole)},
        {"ranks": ranks, "out": str(broken), "killed": kills[0]},
        {"ranks": ranks, "out": str(broken), "killed": kills[1]},
        {"ranks": ranks, "out": str(broken)},
        gradient_accumulation=2,
    )
    assert [launch["codes"][0] for launch in done] == [0, -9, -9, 0]
    assert [len(launch["checkpoints"]) > 0 for launch in done] == [False, True, True, False]
    assert done[0]["steps"] == list(range(12))
    assert all(launch["steps"][0] > 0 for launch in done[2:])  # it went on, it did not start again
    assert folder_digest(broken / "model") == folder_digest(whole / "model")
    assert (broken / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()
