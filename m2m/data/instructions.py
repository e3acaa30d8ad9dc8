"""Illustrated instructions as wikiHow has them: a JSON list, or one JSON object a line, with image files beside it.

Each is ``{"id": …, "goal": "Make tea", "steps": ["Boil water", …], "images": ["tea/1.jpg", …]}``: image i shows step i,
its path relative to the JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m2m.data.captions import text_problem
from m2m.data.folder_sets import divide, fingerprint, shard_id
from m2m.data.task_sets import Pictures, Plan, PlannedSet, Source
from m2m.errors import UserError
from m2m.files import open_regular
from m2m.manifest import Split
from m2m.params import FolderProcedures
from m2m.photos import open_photo, square

SOURCE = Source(name="illustrated instructions", licence="that of their publisher; wikiHow's is CC BY-NC-SA 3.0")
LONGEST_NUMBER = 1000
"""Digits."""
_EXPECTED = "expected a JSON list, or one JSON object a line, of id, goal, steps and images"


class Instructions(BaseModel):
    """One record; what else it holds does not matter."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str | int
    goal: str
    steps: tuple[str, ...] = Field(strict=False)
    images: tuple[str, ...] = Field(strict=False)


def plan_procedures(params: FolderProcedures, *, size: int) -> Plan:
    """A set for each good record: shares of those of path for validation and the test, or the test from test_path.

    Raises:
        UserError: a file cannot be read, or a split is left without procedures.
    """
    bad: list[str] = []
    at_path = _read("path", params.path, bad)
    at_test_path = _read("test_path", params.test_path, bad) if params.test_path else {}
    records = divide(at_path, at_test_path, params, stage="procedures", bad=bad)

    def planned(split: Split) -> Iterator[PlannedSet]:
        file = params.test_path if split == "test" and params.test_path else params.path
        folder = Path(file).parent
        for key, one in records[split].items():
            count = min(len(one.images), params.max_steps)
            files = [folder / name for name in one.images[:count]]
            yield PlannedSet(
                id=shard_id(key),
                caption=one.goal,
                count=count,
                draw=partial(_read_pictures, files, one.steps[:count], size),
                fingerprint=partial(fingerprint, files),
            )

    return Plan(
        source=SOURCE,
        sets={split: [*planned(split)] for split in records},
        images_per_set=params.max_steps,
        bad=tuple(bad),
    )


def _read_pictures(files: list[Path], steps: tuple[str, ...], size: int) -> Pictures:
    """The middle of each picture, (N, size, size, 3), and the ``steps`` that they show."""
    return np.stack([np.asarray(square(open_photo(file), size)) for file in files]), {"steps": [*steps]}


def _read(key: str, path: str, bad: list[str]) -> dict[str, Instructions]:
    """The good records of a file by id; adds to `bad` what is wrong with the others."""
    records: dict[str, Instructions] = {}
    for where, value in _values(key, path, bad):
        try:
            one = Instructions.model_validate(value)
            problem = _problem(one, records)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            problem = f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
        if problem:
            bad.append(f"{path}: {where}: {problem}")
        else:
            records[str(one.id)] = one
    return records


def _problem(one: Instructions, before: dict[str, Instructions]) -> str:
    """What is wrong with a record by itself; its images are looked at when they are read."""
    if str(one.id) in before:
        return f"id {one.id!r} is there already"
    for text in (str(one.id), one.goal, *one.steps, *one.images):
        if problem := text_problem(text):
            return f"procedure {one.id!r}: {text[:40]!r} {problem}"
    if len(one.images) < 2:
        return f"procedure {one.id!r} has {len(one.images)} images; expected at least 2"
    if len(one.steps) < len(one.images):
        return f"procedure {one.id!r} has {len(one.steps)} texts for {len(one.images)} images"
    for name in one.images:
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"procedure {one.id!r}: image {name!r} does not lie beside the file"
    return ""


def _values(key: str, path: str, bad: list[str]) -> Iterator[tuple[str, object]]:
    """Where each record stands, and its content."""
    try:
        with open_regular(Path(path)) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"procedures.{key}: cannot read {path} ({error.strerror}); {_EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"procedures.{key}: {path} is no UTF-8 text (byte {error.start}); {_EXPECTED}") from error
    if text.lstrip().startswith("["):
        try:
            values = _loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"procedures.{key}: {path} is no valid JSON ({error}); {_EXPECTED}") from error
        yield from ((f"record {number}", value) for number, value in enumerate(values, start=1))
        return
    # Not splitlines(), which takes U+2028 and other characters that JSON allows in a string for ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except (ValueError, RecursionError) as error:
            bad.append(f"{path}: line {number}: no valid JSON ({error})")
        else:
            yield f"line {number}", value


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | float:
    """Python refuses to read whole numbers of thousands of digits; where one matters here it is bad in any case."""
    return int(digits) if len(digits) < LONGEST_NUMBER else float(digits)
