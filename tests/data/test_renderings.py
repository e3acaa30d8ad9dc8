"""Renderings as they come: what shows the object to a camera that sees it is read, anything else is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from m2m.data.renderings import plan_views, read_camera
from m2m.data.task_sets import PlannedSet
from m2m.errors import UserError
from m2m.params import FolderViews
from m2m.world.cameras import TO_OPENCV, Camera, sees_origin
from tests.mutations import Reader, survives

CAMERAS = [Camera(30.0, 20.0), Camera(200.0, -10.0, distance=1.7), Camera(285.0, 50.0)]


def drawing() -> Image.Image:
    """A red disc, cut out."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=(250, 0, 0, 255))
    return picture


def inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vstack([matrix, [0, 0, 0, 1]]))[:3]


def planned(folder: Path, convention: str = "opencv", views: int = 3, **written: Any) -> list[PlannedSet]:
    """The sets of three objects, all alike."""
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
        for view, camera in enumerate(CAMERAS[:views]):
            drawing().save(folder / name / f"{view:03}.png")
            np.save(folder / name / f"{view:03}.npy", written.get("of", lambda matrix: matrix)(camera.matrix()))
    fields = {"source": "folder", "seed": 1, "sets_per_shard": 1, "batch_size": 1, "path": str(folder), "test_path": ""}
    shares = {"validation_share": 0.4, "test_share": 0.3, "max_bad_fraction": 0.0}
    params = FolderViews.model_validate({**fields, **shares, "views": views, "camera_convention": convention})
    plan = plan_views(params, size=64, conventions=TO_OPENCV, sees=sees_origin)
    return [one for sets in plan.sets.values() for one in sets]


@pytest.mark.parametrize("convention", ["opencv", "blender"])
def test_cameras_that_see_the_object_are_read(convention: str, tmp_path: Path) -> None:
    one, *_ = planned(tmp_path, convention, of=lambda matrix: TO_OPENCV[convention] @ matrix)
    images, extras = one.draw()
    assert images.shape == (3, 64, 64, 3)
    np.testing.assert_allclose(extras["poses"], [camera.matrix() for camera in CAMERAS])


@pytest.mark.parametrize(
    ("convention", "of", "said"),
    [
        ("opencv", lambda matrix: TO_OPENCV["blender"] @ matrix, "with blender it would: set views.camera_convention"),
        ("blender", lambda matrix: matrix, "with opencv it would: set views.camera_convention"),
        ("opencv", inverse, r"it seems to be camera to world \(opencv\); give world to camera"),
        ("blender", inverse, r"it seems to be camera to world \(opencv\); give world to camera"),
        (
            "blender",
            lambda matrix: inverse(TO_OPENCV["blender"] @ matrix),
            r"camera to world \(blender\); give world to",
        ),
        ("opencv", lambda matrix: matrix + [[0, 0, 0, 5]] * 3, "give world to camera, the object at the origin and in"),
    ],
)
def test_cameras_that_do_not_see_it_are_named_with_the_setting(
    convention: str, of: Any, said: str, tmp_path: Path
) -> None:
    for one in planned(tmp_path, convention, of=of):
        with pytest.raises(
            UserError, match=f"does not see the origin with views.camera_convention {convention}; .*{said}"
        ) as error:
            one.draw()
        assert str(error.value).startswith(f"{tmp_path / one.id / '000.npy'}: ")


@pytest.mark.parametrize(
    "made",
    [
        lambda picture: picture.quantize(16),  # as pngquant has it: a palette, and tRNS for it
        lambda picture: picture.convert("LA"),
        lambda picture: (picture.convert("RGB"), {"transparency": (0, 0, 0)}),
        lambda picture: (picture.convert("L"), {"transparency": 0}),
    ],
)
def test_transparency_of_every_kind_cuts_the_object_out(made: Any, tmp_path: Path) -> None:
    one, *_ = planned(tmp_path)
    saved = made(drawing())
    picture, options = saved if isinstance(saved, tuple) else (saved, {})
    picture.save(tmp_path / one.id / "000.png", **options)
    images, _ = one.draw()
    assert images[0, 2, 2].tolist() == [255, 255, 255]
    assert images[0, 32, 32].max() < 255 or images[0, 32, 32].tolist() == [250, 0, 0]
    with Image.open(tmp_path / one.id / "000.png") as stored:
        assert stored.mode != "RGBA"


def test_a_picture_that_shows_nothing_is_named(tmp_path: Path) -> None:
    one, *_ = planned(tmp_path)
    for mode in ("RGBA", "LA"):
        Image.new(mode, (64, 64)).save(tmp_path / one.id / "001.png")
        with pytest.raises(UserError, match=r"001\.png: shows nothing, all of it is transparent; expected an object"):
            one.draw()


def camera_reader() -> Reader:
    file = io.BytesIO()
    np.save(file, Camera(30.0, 20.0).matrix())
    return file.getvalue(), "000.npy", read_camera


@pytest.mark.fuzz
def test_damaged_cameras_are_read_or_named() -> None:
    survives("tests.data.test_renderings:camera_reader", 200)
