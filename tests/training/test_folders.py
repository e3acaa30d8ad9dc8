"""A folder is all new, all old, or a refusal in one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from m2m.errors import UserError
from m2m.training.folders import new_folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_it_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with new_folder(tmp_path / "model") as draft:
            (draft / text).write_text(text)
            assert (tmp_path / "model").exists() == (text == "second")
    assert content(tmp_path / "model") == {"second": "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / ".model.new").mkdir()
    (tmp_path / ".model.new" / "half").write_text("half")
    with new_folder(tmp_path / "model") as draft:
        (draft / "whole").write_text("whole")
    assert content(tmp_path / "model") == {"whole": "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), SafetensorError("I/O error: No space left on device (os error 28)")],
    ids=["system", "safetensors"],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_one(tmp_path: Path, error: Exception) -> None:
    with new_folder(tmp_path / "model") as draft:
        (draft / "old").write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*model: the disk is full"), new_folder(tmp_path / "model"):
        raise error
    assert content(tmp_path / "model") == {"old": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_errors_pass_through_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="bad header"), new_folder(tmp_path / "model"):
        raise SafetensorError("bad header")
    assert list(tmp_path.iterdir()) == []
