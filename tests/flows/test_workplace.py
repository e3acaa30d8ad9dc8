"""An experiment is made beside the checkout, and kept only if it is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.artifacts import summary
from flows.workplace import workplace
from m2m.errors import UserError, made_again
from m2m.params_file import load_params

ALL = ["captions", "generate", "train", "evaluate", "report"]
GUIDE = Path(__file__).parents[2] / "docs" / "orchestration.md"
NOTHING: dict[str, Any] = {"profile": None, "changes": {}}


def run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_without_a_name_it_is_the_checkout_itself(checkout: Path) -> None:
    with workplace(checkout, experiment=None, **NOTHING) as place:
        assert place.folder == checkout
        place.save("nothing", [])
    assert run(checkout, "dvc", "exp", "list", "--names-only").split() == []


@pytest.mark.slow
def test_an_experiment_leaves_the_checkout_alone_and_comes_back_with_everything_skipped(checkout: Path) -> None:
    (checkout / "params.yaml").write_text((checkout / "params.yaml").read_text() + "\n# mine\n")
    before = run(checkout, "git", "status", "--porcelain")
    changes = {"captions.train": 7, "generate.guidance_scale": 2.5}
    with workplace(checkout, experiment="seven", profile="smoke", changes=changes) as place:
        params = load_params(place.folder / "params.yaml")
        assert (params.captions.train, params.generate.guidance_scale) == (7, 2.5)
        run(place.folder, "dvc", "repro")
        place.save("seven captions", ALL)
    assert not place.folder.exists()
    assert len(run(checkout, "git", "worktree", "list").splitlines()) == 1
    assert run(checkout, "git", "status", "--porcelain") == before
    assert run(checkout, "dvc", "exp", "list", "--names-only").split() == ["seven"]

    run(checkout, "git", "checkout", "-q", "params.yaml")
    run(checkout, "dvc", "exp", "apply", "seven")
    assert load_params(checkout / "params.yaml").captions.train == 7
    again = run(checkout, "dvc", "repro")
    assert again.count("didn't change, skipping") == 7
    assert "Running" not in again
    assert "cached" not in again


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.slow
@pytest.mark.parametrize("profile", [None, "smoke", "mine"])
def test_values_that_are_not_committed_are_not_left_out_of_an_experiment(checkout: Path, profile: str | None) -> None:
    """The person who asks for it sees them in the checkout; the worktree is of the last commit."""
    if profile == "mine":
        (checkout / "profiles" / "mine.yaml").write_text((checkout / "profiles" / "smoke.yaml").read_text())
    file = checkout / (f"profiles/{profile}.yaml" if profile else "params.yaml")
    change(file, "guidance_scale: ", "guidance_scale: 1")
    with (
        pytest.raises(UserError, match=r"(params|smoke|mine)\.yaml has values that are not committed.*; commit it, or"),
        workplace(checkout, experiment="half", profile=profile, changes={}),
    ):
        pass
    assert len(run(checkout, "git", "worktree", "list").splitlines()) == 1
    run(checkout, "git", "add", "-A")
    run(checkout, "git", "commit", "-qm", "Mine")
    with workplace(checkout, experiment="half", profile=profile, changes={}) as place:
        assert load_params(place.folder / "params.yaml") == load_params(file)


@pytest.mark.slow
def test_what_an_experiment_left_out_does_not_keep_it_from_coming_back(checkout: Path) -> None:
    """By the command that the docs and a flow run's page name, in a checkout where nothing has been made."""
    with workplace(checkout, experiment="half", profile=None, changes={"captions.train": 7}) as place:
        run(place.folder, "dvc", "repro", "generate")
        place.save("half", ["generate"])
    (named,) = re.findall(r"`(dvc exp apply NAME[^`]*)`", GUIDE.read_text())
    text = "\n".join(summary(checkout, before={}, unfinished={}, links=[], experiment="half"))
    assert re.findall(r"`(dvc exp apply [^`]*)`", text) == [named.replace("NAME", "half")]
    run(checkout, "sh", "-c", named.replace("NAME", "half"))
    assert load_params(checkout / "params.yaml").captions.train == 7
    assert run(checkout, "dvc", "status", "--json").strip() == "{}"


@pytest.mark.slow
def test_what_nothing_has_changed_for_is_made_again_by_the_command_that_messages_name(checkout: Path) -> None:
    run(checkout, "dvc", "repro")
    assert "Running stage" not in run(checkout, "dvc", "repro", "generate")
    assert "Running stage 'generate'" in run(checkout, *made_again("generate").split())
    assert run(checkout, *made_again("train").split()).count("Running stage 'train@") == 2


@pytest.mark.slow
def test_dvc_is_asked_once_what_it_would_run(checkout: Path) -> None:
    with workplace(checkout, experiment=None, **NOTHING) as place:
        assert len(place.find_changed(ALL)) == 7
        run(checkout, "dvc", "repro")
        assert place.find_changed(ALL) == []
        params = checkout / "params.yaml"
        params.write_text(params.read_text().replace("learning_rate: 3.0e-4", "learning_rate: 2.0e-4"))
        assert place.find_changed(ALL) == ["train@self", "train@dino"]
        writers = {str(checkout / "models" / "self.txt"): {"pid": os.getpid(), "cmd": "a stage"}}
        (checkout / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": writers}))
        with pytest.raises(UserError, match="dvc status --json failed"):
            place.find_changed(ALL)


@pytest.mark.slow
def test_what_is_not_up_to_date_is_not_saved(checkout: Path) -> None:
    with workplace(checkout, experiment="half", **NOTHING) as place:
        run(place.folder, "dvc", "repro", "generate")
        with pytest.raises(UserError, match=r"half is not saved: .*train@self.* is not up to date"):
            place.save("half", ALL)
    assert run(checkout, "dvc", "exp", "list", "--names-only").split() == []


@pytest.mark.slow
def test_two_at_once_both_come_through(checkout: Path) -> None:
    def make(number: int) -> None:
        with workplace(checkout, experiment=f"n{number}", profile=None, changes={"captions.train": number}) as place:
            run(place.folder, "dvc", "repro")
            place.save(f"{number} captions", ALL)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, (5, 6)))
    assert sorted(run(checkout, "dvc", "exp", "list", "--names-only").split()) == ["n5", "n6"]
    run(checkout, "dvc", "exp", "apply", "n6")
    assert load_params(checkout / "params.yaml").captions.train == 6


def test_what_a_killed_run_left_is_cleared_away(checkout: Path) -> None:
    left = checkout / "work" / "experiments" / "again"
    run(checkout, "git", "worktree", "add", "--detach", str(left), "HEAD")
    (left / "half-made").write_text("")
    with workplace(checkout, experiment="again", **NOTHING) as place:
        assert place.folder == left
        assert not (left / "half-made").exists()


@pytest.mark.parametrize(
    ("name", "profile", "changes", "words"),
    [
        ("a b", None, {}, "cannot name an experiment"),
        ("a/b", None, {}, "cannot name an experiment"),
        ("wrong", None, {"captions.train": 0}, r"params.yaml:\d+: captions.train"),
        ("wrong", "smoke", {"evaluate.mis.guidance_scale": 0.5}, r"params.yaml:\d+: evaluate.mis.guidance_scale"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    checkout: Path, name: str, profile: str | None, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words), workplace(checkout, experiment=name, profile=profile, changes=changes):
        pass
    assert len(run(checkout, "git", "worktree", "list").splitlines()) == 1


@pytest.mark.slow
def test_a_name_that_is_taken_is_refused(checkout: Path) -> None:
    with workplace(checkout, experiment="mine", **NOTHING) as place:
        with (
            pytest.raises(UserError, match="mine is being run already"),
            workplace(checkout, experiment="mine", **NOTHING),
        ):
            pass
        run(place.folder, "dvc", "repro")
        place.save("mine", ["report"])
    with (
        pytest.raises(UserError, match="there is an experiment mine already"),
        workplace(checkout, experiment="mine", **NOTHING),
    ):
        pass
