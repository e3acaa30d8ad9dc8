"""Procedures in JSON as they come: what can be read is planned, the rest is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m2m.data.instructions import plan_procedures
from m2m.data.task_sets import Plan
from m2m.errors import UserError
from m2m.params import FolderProcedures
from tests.mutations import Reader, survives

FIELDS = {
    **{"source": "folder", "seed": 0, "validation_share": 0.2, "test_path": "", "test_share": 0.3, "max_steps": 4},
    **{"max_bad_fraction": 0.2, "sets_per_shard": 3, "batch_size": 8},
}


def records(count: int = 10) -> list[dict[str, Any]]:
    """Good ones, all with the same two pictures."""
    images = ["0.png", "1.png"]
    return [{"id": n, "goal": f"Goal {n}", "steps": ["one", "two"], "images": images} for n in range(count)]


def plan(path: Path) -> Plan:
    return plan_procedures(FolderProcedures.model_validate({**FIELDS, "path": str(path)}), size=64)


def read(path: Path) -> Plan:
    """All that is asked of a file."""
    made = plan(path)
    for sets in made.sets.values():
        for one in sets:
            assert json.dumps(one.identity)
            assert one.id.encode()
            one.draw()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("0.png", "1.png"):
        Image.new("RGB", (9, 9), "teal").save(tmp_path / name)
    return tmp_path


def dumped(values: list[dict[str, Any]], *, lines: bool) -> str:
    return "\n".join(map(json.dumps, values)) if lines else json.dumps(values)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_only_where_json_lines_do(end: str, folder: Path) -> None:
    values = records()
    values[3]["goal"] = "A\u2028B\u2029C\x85D\x1eE"
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    lines[3] = lines[3].replace("\\u001e", "")
    (folder / "how.jsonl").write_bytes(end.join(lines).encode())
    made = read(folder / "how.jsonl")
    assert made.bad == ()
    assert "A\u2028B\u2029C\x85DE" in {one.caption for sets in made.sets.values() for one in sets}


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"goal": "half \ud800 of it"}, r"procedure 3: 'half \\ud800 of it' holds half of a surrogate pair"),
        ({"steps": ["one", "\udfff"]}, "holds half of a surrogate pair"),
        ({"images": ["0.png", "caf\udce9.png"]}, "holds half of a surrogate pair"),
        ({"id": "\udce9"}, "holds half of a surrogate pair"),
        ({"images": ["0.png", "1\0.png"]}, r"'1\\x00\.png' holds a NUL"),
        ({"goal": "a\0"}, "holds a NUL"),
        ({"id": 10**4000}, r"id\.str: Input should be a valid string"),
    ],
)
def test_text_that_files_and_the_system_do_not_take_is_named(
    lines: bool, change: dict[str, Any], said: str, folder: Path
) -> None:
    values = records()
    values[3].update(change)
    (folder / "how.json").write_text(dumped(values, lines=lines))
    made = read(folder / "how.json")
    (line,) = made.bad
    with pytest.raises(UserError, match=f"how.json: {'line' if lines else 'record'} 4: .*{said}"):
        raise UserError(line)
    assert sum(map(len, made.sets.values())) == 9


@pytest.mark.parametrize("lines", [False, True])
def test_a_number_of_thousands_of_digits_elsewhere_does_not_matter(lines: bool, folder: Path) -> None:
    text = dumped([{**one, "views": "many"} for one in records()], lines=lines).replace('"many"', "9" * 5000, 1)
    (folder / "how.json").write_text(text)
    made = read(folder / "how.json")
    assert made.bad == ()
    assert sum(map(len, made.sets.values())) == 10


def test_a_fifo_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with pytest.raises(UserError, match=r"procedures\.path: cannot read .*fifo \(not a regular file\)"):
        plan(folder / "fifo")


# Damaged files


def reader(*, lines: bool) -> Reader:
    def read_beside(path: Path) -> None:
        beside = [path.parent / name for name in ("0.png", "1.png")]
        try:
            for file in beside:
                Image.new("RGB", (9, 9), "teal").save(file)
            read(path)
        finally:
            for file in beside:
                file.unlink()

    return dumped(records(), lines=lines).encode(), "how.json", read_beside


def list_reader() -> Reader:
    return reader(lines=False)


def lines_reader() -> Reader:
    return reader(lines=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["list_reader", "lines_reader"])
def test_damaged_procedures_are_read_or_named(name: str) -> None:
    survives(f"tests.data.test_instructions:{name}", 200)
