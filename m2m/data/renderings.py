"""Renderings of objects as Zero123 (Liu et al., 2023) published those of Objaverse.

A folder holds a folder for each object, named by its id, with ``000.png`` (square, the object cut out), ``000.npy``
(3x4, world to camera, floats), ``001.png`` … The field of view is `m2m.world.cameras.FIELD_OF_VIEW`, and the object is
at the origin of the world: a camera that does not see it is taken for one of another convention, and refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from m2m.data.folder_sets import divide, fingerprint, shard_id
from m2m.data.task_sets import Pictures, Plan, PlannedSet, Source
from m2m.errors import UserError
from m2m.files import open_regular
from m2m.manifest import Split
from m2m.params import FolderViews
from m2m.photos import is_empty, open_photo, square

Sees: TypeAlias = Callable[[NDArray[np.float64]], bool]

SOURCE = Source(
    name="renderings of 3D objects", licence="that of each object; Objaverse and Google Scanned Objects say"
)
LARGEST_CAMERA = 4096
"""Bytes of the largest camera file that is read: 12 numbers need 224."""
TOLERANCE = 1e-3
"""By how much the rows of a rotation may miss being of unit length and at right angles."""
_EXPECTED = "expected a folder for each object, with 000.png and 000.npy …"


def plan_views(params: FolderViews, *, size: int, conventions: Mapping[str, NDArray[np.float64]], sees: Sees) -> Plan:
    """A set for each object: shares of those of path for validation and the test, or the test from test_path.

    Args:
        size: pixels of a side that the pictures get.
        conventions: by the name of one of the files' camera axes, (3, 3), what takes them to OpenCV's.
        sees: whether a camera, (3, 4) world to camera in OpenCV's axes, sees the origin.

    Raises:
        UserError: a folder is missing or empty, or a split is left without objects.
    """
    at_path = dict.fromkeys(_objects("path", params.path), Path(params.path))
    names = _objects("test_path", params.test_path) if params.test_path else ()
    read_pose = partial(_read_pose, convention=params.camera_convention, conventions=conventions, sees=sees)
    objects = divide(at_path, dict.fromkeys(names, Path(params.test_path)), params, stage="views")

    def planned(split: Split) -> Iterator[PlannedSet]:
        for name, folder in objects[split].items():
            yield PlannedSet(
                id=shard_id(name),
                caption="",
                count=params.views,
                draw=partial(read_views, folder / name, views=params.views, size=size, read_pose=read_pose),
                fingerprint=partial(_fingerprint, folder / name, params.views),
            )

    return Plan(source=SOURCE, sets={split: [*planned(split)] for split in objects}, images_per_set=params.views)


def read_views(folder: Path, *, views: int, size: int, read_pose: Callable[[Path], NDArray[np.float64]]) -> Pictures:
    """The first views of one object before white, (N, size, size, 3), and their ``poses`` in OpenCV's axes.

    Args:
        read_pose: gives the camera in a file, (3, 4) world to camera in OpenCV's axes.

    Raises:
        UserError: a view is missing or bad; names its file.
    """
    images = [_read_picture(folder / f"{view:03}.png", size) for view in range(views)]
    poses = [read_pose(folder / f"{view:03}.npy") for view in range(views)]
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


def _read_pose(
    path: Path, *, convention: str, conventions: Mapping[str, NDArray[np.float64]], sees: Sees
) -> NDArray[np.float64]:
    """A camera in OpenCV's axes. Raises UserError if it does not see the object."""
    matrix = read_camera(path)
    pose = conventions[convention] @ matrix
    if sees(pose):
        return pose
    back = np.column_stack([matrix[:, :3].T, -matrix[:, :3].T @ matrix[:, 3]])
    others = [name for name, axes in conventions.items() if sees(axes @ matrix)]
    inverses = [name for name, axes in conventions.items() if sees(axes @ back)]
    if others:
        remedy = f"with {others[0]} it would: set views.camera_convention, if all cameras are like this"
    elif inverses:
        remedy = f"it seems to be camera to world ({inverses[0]}); give world to camera, its inverse"
    else:
        remedy = "give world to camera, the object at the origin and in the picture"
    raise UserError(f"{path}: the camera does not see the origin with views.camera_convention {convention}; {remedy}")


def _fingerprint(folder: Path, views: int) -> JsonValue:
    return fingerprint([folder / f"{view:03}.{kind}" for view in range(views) for kind in ("png", "npy")])


def _read_picture(path: Path, size: int) -> NDArray[np.uint8]:
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
        raise UserError(f"views.{key}: cannot read {path} ({error.strerror}); {_EXPECTED}") from error
    if not names:
        raise UserError(f"views.{key}: {path} holds no folders; {_EXPECTED}")
    return names
