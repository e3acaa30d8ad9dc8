"""Which set is for what hangs on its name alone."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest

from m2m.data.folder_sets import divide, split_of
from m2m.errors import UserError
from m2m.manifest import Split
from m2m.params import FolderSets

NAMES = [f"object {number}" for number in range(2000)]


def params(**changes: Any) -> FolderSets:
    fields = {"source": "folder", "seed": 0, "path": "here", "validation_share": 0.1, "test_path": ""}
    rest = {"test_share": 0.2, "max_bad_fraction": 0.0, "sets_per_shard": 1, "batch_size": 1}
    return FolderSets.model_validate({**fields, **rest, **changes})


def divided(names: list[str], tested: list[str] | None = None, **changes: Any) -> dict[str, Split]:
    """The split of each name."""
    at_path, at_test_path = dict.fromkeys(names, "path"), dict.fromkeys(tested or [], "test_path")
    sets = divide(at_path, at_test_path, params(test_path="there" if tested else "", **changes), stage="views")
    assert list(sets) == list(get_args(Split))
    pairs = [(name, split) for split, those in sets.items() for name in those]
    assert len(pairs) == len(dict(pairs)), "none is in two"
    assert {sets["test"][name] for name in tested or []} <= {"test_path"}
    return dict(pairs)


def test_each_split_has_its_share_and_all_sets_are_in_one() -> None:
    splits = divided(NAMES)
    assert splits.keys() == set(NAMES)
    counts = Counter(splits.values())
    assert abs(counts["validation"] - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert abs(counts["test"] - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5
    assert divided(NAMES, seed=1) != splits


def test_a_set_stays_in_its_split_when_others_come_or_go() -> None:
    before = divided(NAMES[:500])
    after = divided([*NAMES[250:], *(f"another {number}" for number in range(100))])
    assert all(after[name] == before[name] for name in NAMES[250:500])


def test_a_larger_share_for_validation_takes_from_training_alone() -> None:
    before, after = divided(NAMES), divided(NAMES, validation_share=0.3)
    changed = {(before[name], after[name]) for name in NAMES if before[name] != after[name]}
    assert changed == {("train", "validation")}


def test_validation_comes_from_path_where_the_test_has_a_place_of_its_own() -> None:
    before = divided(NAMES, test_share=0.0, tested=["elsewhere"])
    assert Counter(before.values())["test"] == 1
    assert before == divided(NAMES, test_share=0.2, tested=["elsewhere"]), "test_share has nothing to say there"
    looked_at = next(name for name in NAMES if before[name] == "validation")
    after = divided(NAMES, tested=["elsewhere", looked_at])
    assert after == {**before, looked_at: "test"}


@pytest.mark.parametrize(
    ("changes", "purpose"),
    [({"validation_share": 0.0}, "validation"), ({"test_share": 0.0}, "the test"), ({"seed": 0}, "training")],
)
def test_a_split_without_sets_is_refused(changes: dict[str, Any], purpose: str) -> None:
    tested = [name for name in NAMES if split_of(name, seed=0, validation_share=0.1, test_share=0.2) == "train"]
    names = [name for name in NAMES if name not in tested] if purpose == "training" else NAMES
    with pytest.raises(
        UserError, match=rf"views\.path: here leaves no sets for {purpose}; check views\.validation_share"
    ):
        divided(names, **changes)
    with pytest.raises(UserError, match=f"leaves no sets for {purpose}; line 1 is bad"):
        divide(dict.fromkeys(names), {}, params(**changes), stage="views", bad=["line 1 is bad", "line 2 is bad"])
