"""The ablations: what they change is there to be changed, and what trains alike is trained once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import ablations.__main__ as ablations
from m2m.params_file import load_params

ROOT = Path(__file__).parents[2]


class Dataset:
    digest = "0" * 64


@pytest.fixture
def all_rows(monkeypatch: pytest.MonkeyPatch) -> list[ablations.Row]:
    monkeypatch.setattr(ablations.Manifest, "read", lambda _: Dataset)
    table, params = (
        yaml.safe_load((ROOT / path).read_text()) for path in ("ablations/ablations.yaml", "profiles/embedded.yaml")
    )
    return list(ablations.rows(table, params))


def test_the_parameters_of_each_row_are_valid_and_each_result_has_its_file(
    all_rows: list[ablations.Row], tmp_path: Path
) -> None:
    for row in all_rows:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(row.params))
        load_params(path)
    assert len({row.result for row in all_rows}) == len(all_rows)


def test_rows_that_train_alike_share_a_model_and_no_others_do(all_rows: list[ablations.Row]) -> None:
    def model(name: str, variant: str = "dino") -> str:
        (row,) = (row for row in all_rows if (row.name, row.variant, row.seed) == (name, variant, 0))
        *_, measured = row.commands(Path("folder"))
        return measured[measured.index("--model") + 1]

    assert model("guidance 1") == model("guidance 2.5") == model("as shipped")
    assert model("as shipped") != model("as shipped", "self")
    others = ["context noise none", "context swap", "window of 4", "clip reads", "from scratch nvs", "from scratch vpg"]
    assert len({model(name) for name in ["as shipped", *others]}) == len(others) + 1


def test_a_result_counts_until_its_parameters_or_its_dataset_change(
    all_rows: list[ablations.Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "RESULTS", tmp_path)
    row = all_rows[0]
    assert not ablations.is_made(row)
    row.result.write_text(json.dumps({"ablation": row.stated()}))
    assert ablations.is_made(row)
    monkeypatch.setattr(Dataset, "digest", "1" * 64)
    assert not ablations.is_made(row)


def test_a_key_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match=r"train\.lr"):
        ablations.with_changes({"train": {"seed": 0}}, {"train.lr": 1})


def test_the_table_shows_scores_with_their_intervals(
    all_rows: list[ablations.Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "RESULTS", tmp_path)
    numbers: dict[str, Any] = {"given": 4, "pattern_score/given=4": 0.5, "kept/given=4": 0.75}
    numbers |= {"pattern_score/given=4/low": 0.25, "pattern_score/given=4/high": 0.625}
    all_rows[0].result.write_text(json.dumps(numbers))
    line = ablations.table_of(all_rows[:1]).splitlines()[-1]
    assert "| 0.500 [0.250, 0.625] |" in line
    assert "| 0.750 |" in line


@pytest.mark.usefixtures("all_rows")
def test_a_row_that_is_not_listed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    make = subprocess.run(["make", "-n", "ablations", "ONLY=as shipped"], check=True, capture_output=True, text=True)
    assert 'python -m ablations --only "as shipped"\n' in make.stdout
    monkeypatch.setattr("sys.argv", ["ablations", "--only", "shipped"])
    with pytest.raises(SystemExit):
        ablations.main()
    assert "no row shipped; there are: as shipped; context noise none" in capsys.readouterr().err
