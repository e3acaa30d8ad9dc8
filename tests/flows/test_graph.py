"""The graph of stages is DVC's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.graph import read_graph, select, with_descendants
from m2m.errors import UserError

ROOT = Path(__file__).parents[2]


def test_stages_come_after_what_they_depend_on(checkout: Path) -> None:
    stages = read_graph(checkout)
    places = {stage.name: place for place, stage in enumerate(stages)}
    assert set(places) == {
        *("captions", "generate", "train@self", "train@dino", "evaluate@self", "evaluate@dino", "report")
    }
    for stage in stages:
        assert all(places[parent] < places[stage.name] for parent in stage.parents)
    by_name = {stage.name: stage for stage in stages}
    assert by_name["report"].parents == ("evaluate@dino", "evaluate@self")
    assert by_name["captions"].description == "What is drawn."
    assert {stage.name for stage in stages if stage.slot == "gpu"} == {"train@self", "train@dino"}


def test_a_new_stage_shows_up(checkout: Path) -> None:
    with (checkout / "dvc.yaml").open("a") as file:
        file.write(
            "  publish:\n    cmd: cp reports/index.txt out.txt\n    deps: [reports/index.txt]\n    outs: [out.txt]\n"
        )
    assert read_graph(checkout)[-1].name == "publish"
    assert read_graph(checkout)[-1].parents == ("report",)


def test_the_projects_own_graph_names_its_slots() -> None:
    stages = {stage.name: stage for stage in read_graph(ROOT)}
    assert stages["train@dino"].parents == ("foundation", "generate")
    assert {name for name, stage in stages.items() if stage.slot} >= {"generate", "train@self", "evaluate@dino"}
    assert all(stage.slot in (None, "gpu") for stage in stages.values())


def test_descendants_are_all_that_follows(checkout: Path) -> None:
    stages = read_graph(checkout)
    assert with_descendants(stages, []) == set()
    assert with_descendants(stages, ["train@self"]) == {"train@self", "evaluate@self", "report"}


def test_a_dvc_file_that_cannot_be_read_is_one_line(checkout: Path) -> None:
    (checkout / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"dvc\.yaml") as raised:
        read_graph(checkout)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("targets", "items", "wanted"),
    [
        ([], None, 7),
        (["generate"], None, ["captions", "generate"]),
        (["train"], None, ["captions", "generate", "train@dino", "train@self"]),
        (["evaluate@self"], None, ["captions", "evaluate@self", "generate", "train@self"]),
        (["train"], ["dino"], ["captions", "generate", "train@dino"]),
        ([], ["self"], ["captions", "evaluate@self", "generate", "train@self"]),
    ],
)
def test_targets_take_what_they_depend_on_with_them(
    checkout: Path, targets: list[str], items: list[str] | None, wanted: list[str] | int
) -> None:
    names = sorted(stage.name for stage in select(read_graph(checkout), targets, items=items))
    assert (len(names) if isinstance(wanted, int) else names) == wanted


@pytest.mark.parametrize(
    ("targets", "items", "words"),
    [
        (["trian"], None, "there is no stage trian; dvc.yaml has captions, generate"),
        (["report"], ["self"], "nothing is left to run of report"),
        (["train@self"], ["dino"], "nothing is left to run of train@self"),
    ],
)
def test_what_cannot_be_run_is_named(checkout: Path, targets: list[str], items: list[str] | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        select(read_graph(checkout), targets, items=items)
