"""A caption is left out for the words of a list, as whole words in any case, and for nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from m2m.data.blocklist import Blocklist
from m2m.errors import UserError

LISTED = """# words that a test minds
weed

  Rocket Launcher\t
c++
mother-in-law
ÉCLAIR
#weapons
☠
"""


@pytest.fixture
def blocklist(tmp_path: Path) -> Blocklist:
    (tmp_path / "list.txt").write_text(LISTED, encoding="utf-8")
    return Blocklist.read(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "text",
    [
        *("weed", "A garden of WEED.", "(weed)", "no-weed-here", "ｗｅｅｄ in wide letters"),
        *("a rocket launcher", "the rocket \t LAUNCHER's crew", "rocket\u00a0launcher"),
        *("written in C++, again", "my mother-in-law", "an éclair", "an e\u0301clair", "danger ☠", "☠☠"),
    ],
)
def test_an_entry_is_found_as_whole_words_in_any_case_and_form(text: str, blocklist: Blocklist) -> None:
    assert blocklist.blocks(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "seaweed", "weeds", "weed_killer", "rocket", "launcher rocket", "rocket, launcher", "rocketlauncher"),
        *("c", "vitamin c", "c+", "mother in law", "eclair", "# words that a test minds", "weapons", "#weapons"),
    ],
)
def test_nothing_else_is(text: str, blocklist: Blocklist) -> None:
    assert not blocklist.blocks(text)


def test_a_list_is_known_by_its_content(blocklist: Blocklist) -> None:
    assert blocklist.sha256 == hashlib.sha256(LISTED.encode()).hexdigest()


def test_a_mark_at_the_start_and_other_line_ends_are_no_part_of_a_word(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("weed\r\nbomb\r\n".encode("utf-8-sig"))
    found = Blocklist.read(tmp_path / "list.txt")
    assert [found.blocks(text) for text in ("some weed", "a bomb", "a\r")] == [True, True, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"one\ntwo\n\xff\xfe\n", "is not UTF-8 in line 3; expected UTF-8 text"),
        ("weed\n".encode("utf-16"), "is not UTF-8 in line 1"),
        (b"", "holds no word; expected UTF-8 text, a word or phrase a line"),
        (b"# all\n\n  # of it\n", "holds no word"),
    ],
)
def test_what_is_no_list_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"captions\.blocklist: .*list\.txt {said}") as caught:
        Blocklist.read(tmp_path / "list.txt")
    assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, said in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
        (Path("a\0b"), "not the name of a file"),
    ):
        with pytest.raises(UserError, match=f"captions.blocklist: cannot read .*: {said}; expected UTF-8") as caught:
            Blocklist.read(path)
        assert "\n" not in str(caught.value)
