"""Sets of the tasks from files that somebody else made: renderings of objects, illustrated instructions.

Renderings are as Zero123 (Liu et al., 2023) published those of Objaverse: a folder holds a folder for each object,
named by its id, with ``000.png`` (square, the object cut out), ``000.npy`` (3x4, world to camera, floats) and so on.
The field of view is `m2m.manifest.FIELD_OF_VIEW`, and the object is at the origin of the world: a camera that does not
see it is taken for one of another convention, and refused.

Instructions are as wikiHow has them: a JSON list, or one JSON object a line, with image files beside it. Each is
``{"id": …, "goal": "Make tea", "steps": ["Boil water", …], "images": ["tea/1.jpg", …]}``: image i shows step i, its
path relative to the JSON file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import starmap
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from m2m.data.captions import text_problem
from m2m.data.making import TaskPlan
from m2m.data.shards import DrawnSet, PlannedSet
from m2m.errors import UserError
from m2m.files import open_regular
from m2m.manifest import FIELD_OF_VIEW, SET_ID, Origin, Split
from m2m.params import FolderProcedures, FolderSets, FolderViews
from m2m.photos import is_empty, open_photo, square
from m2m.seeds import derive

T = TypeVar("T")
RENDERINGS = Origin(
    name="renderings of 3D objects", licence="that of each object; Objaverse and Google Scanned Objects say"
)
TO_OPENCV: Final[Mapping[str, NDArray[np.float64]]] = {"opencv": np.eye(3), "blender": np.diag([1.0, -1.0, -1.0])}
"""By a camera's convention the (3, 3) that goes before its world-to-camera matrix to make it OpenCV's."""
LARGEST_CAMERA = 4096
"""Bytes of the largest camera file that is read: 12 numbers need 224."""
TOLERANCE = 1e-3
"""By how much the rows of a rotation may miss being of unit length and at right angles."""
_EXPECTED_FOLDERS = "expected a folder for each object, with 000.png and 000.npy …"
INSTRUCTIONS = Origin(name="illustrated instructions", licence="that of their publisher; wikiHow's is CC BY-NC-SA 3.0")
LONGEST_NUMBER = 1000
"""Digits."""
_EXPECTED_JSON = "expected a JSON list, or one JSON object a line, of id, goal, steps and images"
_PURPOSES: Mapping[Split, str] = {"train": "training", "validation": "validation", "test": "the test"}


def split_of(name: str, *, seed: int, validation_share: float, test_share: float) -> Split:
    """The split of a set, by a hash of its name: it stays, whatever other sets there are."""
    place = derive(seed, "split", name) / 2**63
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def divide(
    at_path: Mapping[str, T], at_test_path: Mapping[str, T], params: FolderSets, *, stage: str, bad: Sequence[str] = ()
) -> dict[Split, dict[str, T]]:
    """The sets of each split by name, in order; none is in two.

    Args:
        at_test_path: those of the test where they have a place of their own.
        stage: where its parameters are, for the message.
        bad: what was wrong with others, for the message.

    Raises:
        UserError: a split is left without sets.
    """
    shares = {"validation_share": params.validation_share, "test_share": 0.0 if params.test_path else params.test_share}
    sets: dict[Split, dict[str, T]] = {split: {} for split in get_args(Split)}
    for name, one in at_path.items():
        if name not in at_test_path:
            sets[split_of(name, seed=params.seed, **shares)][name] = one
    sets["test"].update(at_test_path)
    for split, those in sets.items():
        if not those:
            why = bad[0] if bad else f"check {stage}.validation_share and {stage}.test_share"
            raise UserError(f"{stage}.path: {params.path} leaves no sets for {_PURPOSES[split]}; {why}")
    return sets


def shard_id(name: str) -> str:
    """`name` where it can name files in a shard; else what is left of it, with a hash that keeps it apart."""
    if re.fullmatch(SET_ID, name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:51]}-{digest[:12]}"


def fingerprint(paths: Sequence[Path]) -> JsonValue:
    """Changes when one of the files does: sizes and times, which cost no reading."""
    found: list[JsonValue] = []
    for path in paths:
        found.append([path.name])
        with suppress(OSError, ValueError):  # the reader will name it
            status = path.stat()
            found[-1] = [path.name, status.st_size, status.st_mtime_ns]
    return found


# Renderings


def plan_views(params: FolderViews, *, size: int) -> TaskPlan:
    """A set for each object: shares of those of path for validation and the test, or the test from test_path.

    Args:
        size: pixels of a side that the pictures get.

    Raises:
        UserError: a folder is missing or empty, or a split is left without objects.
    """
    at_path = dict.fromkeys(_objects("path", params.path), Path(params.path))
    names = _objects("test_path", params.test_path) if params.test_path else ()
    objects = divide(at_path, dict.fromkeys(names, Path(params.test_path)), params, stage="views")

    def planned(name: str, folder: Path) -> PlannedSet:
        return PlannedSet(
            id=shard_id(name),
            caption="",
            count=params.views,
            draw=partial(_read_views, folder / name, params.views, size, params.camera_convention),
            fingerprint=partial(_files_of, folder / name, params.views),
        )

    sets = {split: [*starmap(planned, those.items())] for split, those in objects.items()}
    return TaskPlan(origin=RENDERINGS, sets=sets, images_per_set=params.views)


def _read_views(folder: Path, views: int, size: int, convention: str) -> DrawnSet:
    """The first views of one object before white, (N, size, size, 3), and their ``poses`` in OpenCV's axes.

    Raises:
        UserError: a view is missing or bad; names its file.
    """
    images = [_cut_out(folder / f"{view:03}.png", size) for view in range(views)]
    poses = [_read_pose(folder / f"{view:03}.npy", convention) for view in range(views)]
    return np.stack(images), {"poses": [pose.tolist() for pose in poses]}


def read_camera(path: Path) -> NDArray[np.float64]:
    """A world-to-camera matrix (3, 4). No pickle is loaded.

    Raises:
        UserError: there is no such file, or it holds anything else.
    """
    try:
        with open_regular(path) as file:
            content = io.BytesIO(file.read(LARGEST_CAMERA + 1))
        version = np.lib.format.read_magic(content)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(content)
        if shape != (3, 4) or dtype.kind != "f":
            raise UserError(f"{path}: holds {dtype} of shape {shape}; expected a 3x4 matrix of floats, world to camera")
        content.seek(0)
        matrix = np.lib.format.read_array(content, allow_pickle=False).astype(float)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected the camera of a view") from error
    except Exception as error:  # numpy has Python's own tokenizer and parser read the header
        what = " ".join(str(error).split())
        raise UserError(f"{path}: no .npy file of a camera ({what}); expected a 3x4 matrix of floats") from error
    rotation = matrix[:, :3]
    if not np.isfinite(matrix).all():
        raise UserError(f"{path}: the camera has numbers that are not finite")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > TOLERANCE or np.linalg.det(rotation) < 0:
        raise UserError(f"{path}: the first three columns are no rotation; expected world to camera, without scale")
    return np.asarray(matrix)


def sees_origin(matrix: NDArray[np.float64]) -> bool:
    """Whether the world's origin lies before a camera, (3, 4) world to camera in OpenCV's axes, and in its picture."""
    right, down, forward = matrix[:, 3]
    return bool(forward > 0 and max(abs(right), abs(down)) <= forward * math.tan(math.radians(FIELD_OF_VIEW) / 2))


def _read_pose(path: Path, convention: str) -> NDArray[np.float64]:
    """A camera in OpenCV's axes. Raises UserError if it does not see the object."""
    matrix = read_camera(path)
    pose = TO_OPENCV[convention] @ matrix
    if sees_origin(pose):
        return pose
    back = np.column_stack([matrix[:, :3].T, -matrix[:, :3].T @ matrix[:, 3]])
    others = [name for name, axes in TO_OPENCV.items() if sees_origin(axes @ matrix)]
    inverses = [name for name, axes in TO_OPENCV.items() if sees_origin(axes @ back)]
    if others:
        remedy = f"with {others[0]} it would: set views.camera_convention, if all cameras are like this"
    elif inverses:
        remedy = f"it seems to be camera to world ({inverses[0]}); give world to camera, its inverse"
    else:
        remedy = "give world to camera, the object at the origin and in the picture"
    raise UserError(f"{path}: the camera does not see the origin with views.camera_convention {convention}; {remedy}")


def _files_of(folder: Path, views: int) -> JsonValue:
    return fingerprint([folder / f"{view:03}.{kind}" for view in range(views) for kind in ("png", "npy")])


def _cut_out(path: Path, size: int) -> NDArray[np.uint8]:
    photo = open_photo(path)
    if not photo.has_transparency_data:
        raise UserError(f"{path}: is of mode {photo.mode}; expected RGBA, the object cut out")
    if is_empty(photo):
        raise UserError(f"{path}: shows nothing, all of it is transparent; expected an object")
    if photo.width != photo.height:
        raise UserError(f"{path}: has {photo.width} x {photo.height} pixels; expected a square picture")
    return np.asarray(square(photo, size))


def _objects(key: str, path: str) -> list[str]:
    """The names of the objects' folders, in order."""
    try:
        names = sorted(entry.name for entry in Path(path).iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"views.{key}: cannot read {path} ({error.strerror}); {_EXPECTED_FOLDERS}") from error
    if not names:
        raise UserError(f"views.{key}: {path} holds no folders; {_EXPECTED_FOLDERS}")
    return names


# Instructions


class Instructions(BaseModel):
    """One record; what else it holds does not matter."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str | int
    goal: str
    steps: tuple[str, ...] = Field(strict=False)
    images: tuple[str, ...] = Field(strict=False)


def plan_procedures(params: FolderProcedures, *, size: int) -> TaskPlan:
    """A set for each good record: shares of those of path for validation and the test, or the test from test_path.

    Raises:
        UserError: a file cannot be read, or a split is left without procedures.
    """
    bad: list[str] = []
    at_path = _records("path", params.path, bad)
    at_test_path = _records("test_path", params.test_path, bad) if params.test_path else {}
    records = divide(at_path, at_test_path, params, stage="procedures", bad=bad)
    of_test = params.test_path or params.path

    def planned(key: str, one: Instructions, folder: Path) -> PlannedSet:
        count = min(len(one.images), params.max_steps)
        files = [folder / name for name in one.images[:count]]
        return PlannedSet(
            id=shard_id(key),
            caption=one.goal,
            count=count,
            draw=partial(_read_pictures, files, one.steps[:count], size),
            fingerprint=partial(fingerprint, files),
        )

    sets: dict[Split, list[PlannedSet]] = {}
    for split, those in records.items():
        folder = Path(of_test if split == "test" else params.path).parent
        sets[split] = [planned(key, one, folder) for key, one in those.items()]
    return TaskPlan(origin=INSTRUCTIONS, sets=sets, images_per_set=params.max_steps, bad=tuple(bad))


def _read_pictures(files: list[Path], steps: tuple[str, ...], size: int) -> DrawnSet:
    """The middle of each picture, (N, size, size, 3), and the ``steps`` that they show."""
    return np.stack([np.asarray(square(open_photo(file), size)) for file in files]), {"steps": [*steps]}


def _records(key: str, path: str, bad: list[str]) -> dict[str, Instructions]:
    """The good records of a file by id; adds to `bad` what is wrong with the others."""
    records: dict[str, Instructions] = {}
    for where, value in _values(key, path, bad):
        try:
            one = Instructions.model_validate(value)
            problem = _fault(one, records)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            problem = f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
        if problem:
            bad.append(f"{path}: {where}: {problem}")
        else:
            records[str(one.id)] = one
    return records


def _fault(one: Instructions, before: dict[str, Instructions]) -> str:
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
        raise UserError(f"procedures.{key}: cannot read {path} ({error.strerror}); {_EXPECTED_JSON}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"procedures.{key}: {path} is no UTF-8 text (byte {error.start}); {_EXPECTED_JSON}") from error
    if text.lstrip().startswith("["):
        try:
            values = _loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"procedures.{key}: {path} is no valid JSON ({error}); {_EXPECTED_JSON}") from error
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


def _number(digits: str) -> int | float:
    """Python refuses to read whole numbers of thousands of digits; where one matters here it is bad in any case."""
    return int(digits) if len(digits) < LONGEST_NUMBER else float(digits)


_loads = partial(json.loads, parse_int=_number)
