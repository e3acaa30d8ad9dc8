"""Kept pictures are the drawn ones, or they are drawn again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m2m.evaluation.kept import folder_of, note_run, read_or_draw, run_before


def test_pictures_are_drawn_once_and_again_when_they_are_damaged(tmp_path: Path) -> None:
    pictures, drawn = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3), 0

    def draw() -> NDArray[np.uint8]:
        nonlocal drawn
        drawn += 1
        return pictures

    path = tmp_path / "new" / "from-000000.npy"
    for kept in (False, True, True):
        found, was_kept = read_or_draw(path, draw)
        assert np.array_equal(found, pictures)
        assert was_kept == kept
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        content = bytearray(good)
        content[place] ^= 4
        path.write_bytes(content)
        found, was_kept = read_or_draw(path, draw)
        assert np.array_equal(found, pictures)
        assert not was_kept
    path.with_name("from-000000.npy.sha256").unlink()
    assert not read_or_draw(path, draw)[1]


def test_pictures_of_other_things_are_not_taken_and_it_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = folder_of(tmp_path, {"model": "a", "code": "1"})
    assert run_before(first) is None
    note_run(first, "run-1")
    assert run_before(first) == "run-1"
    assert not caplog.text
    assert run_before(folder_of(tmp_path, {"model": "a", "code": "2"})) is None
    assert "starts afresh" in caplog.text
