"""People's meshes become renderings; what cannot be read is named and left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from typer.testing import CliRunner

from m2m.cli import app
from m2m.commands import render
from m2m.data.folder_sets import read_camera
from m2m.errors import UserError


def box(colour: tuple[int, int, int] | None = None) -> Any:
    mesh = trimesh.creation.box((1, 2, 3))
    if colour:
        mesh.visual.vertex_colors = [*colour, 255]
    return mesh


def textured(colour: tuple[int, int, int]) -> Any:
    mesh = trimesh.creation.box((1, 2, 3))
    uv = np.random.default_rng(0).uniform(size=(len(mesh.vertices), 2))
    material = trimesh.visual.material.SimpleMaterial(diffuse=(255, 255, 255), image=Image.new("RGB", (8, 8), colour))
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return mesh


def mean_colour(folder: Path) -> np.ndarray[Any, Any]:
    rgba = np.asarray(Image.open(folder / "000.png"))
    return np.asarray(rgba[rgba[..., 3] == 255][:, :3].mean(axis=0))


def run(*meshes: Path, out: Path) -> list[str]:
    return render.run(meshes, out=out, views=2, size=64, seed=0)


def test_meshes_of_every_format_keep_their_colours(tmp_path: Path) -> None:
    meshes = [tmp_path / name for name in ("a.glb", "b.ply", "c.stl", "d.obj", "e.glb")]
    for mesh, path in zip(
        [textured((0, 200, 0)), box((200, 0, 0)), box(), textured((0, 0, 200)), None], meshes, strict=True
    ):
        if mesh is not None:
            mesh.export(path)
    trimesh.Scene([box((200, 0, 0))]).export(meshes[4])
    assert run(*meshes, out=tmp_path / "out") == []
    for name, channel in (("a", 1), ("b", 0), ("d", 2), ("e", 0)):
        colour = mean_colour(tmp_path / "out" / name)
        assert colour[channel] > 100 + np.delete(colour, channel).max()
    assert np.ptp(mean_colour(tmp_path / "out" / "c")) < 1
    assert sorted(path.name for path in (tmp_path / "out" / "a").iterdir()) == [
        "000.npy",
        "000.png",
        "001.npy",
        "001.png",
    ]


def test_an_object_stands_upright_within_the_picture(tmp_path: Path) -> None:
    """A glTF file's y axis points up, as z does in the world."""
    tall = {"z.ply": (1, 1, 4), "y.glb": (1, 4, 1)}
    for name, size in tall.items():
        trimesh.creation.box(size).export(tmp_path / name)
    run(*(tmp_path / name for name in tall), out=tmp_path / "out")
    for name in ("z", "y"):
        assert read_camera(tmp_path / "out" / name / "000.npy")[2, 3] < 0, "Blender's camera looks along -z"
        alpha = np.asarray(Image.open(tmp_path / "out" / name / "000.png"))[..., 3]
        rows, columns = (np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0))
        assert np.ptp(rows) > 1.5 * np.ptp(columns)
        assert 0 < rows[0] < rows[-1] < 63


def test_the_same_mesh_gives_the_same_bytes(tmp_path: Path) -> None:
    box((9, 99, 200)).export(tmp_path / "a.ply")
    for out in ("one", "two"):
        run(tmp_path / "a.ply", out=tmp_path / out)
    for name in ("000.png", "001.npy"):
        assert (tmp_path / "one/a" / name).read_bytes() == (tmp_path / "two/a" / name).read_bytes()


def test_a_bad_mesh_is_named_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box().export(tmp_path / "good.stl")
    (tmp_path / "cut.glb").write_bytes(b"glTF" + bytes(50))
    (tmp_path / "empty.obj").write_text("o nothing\n")
    (tmp_path / "flat.ply").write_text("once upon a time")
    (tmp_path / "photo.jpg").write_bytes(b"")
    names = ["good.stl", "cut.glb", "empty.obj", "flat.ply", "photo.jpg", "missing.glb"]
    made = run(*(tmp_path / name for name in names), out=tmp_path / "out")
    assert len(made) == 5
    for name, line in zip(names[1:], made, strict=True):
        assert line.startswith(str(tmp_path / name))
        assert line in caplog.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]
    with pytest.raises(UserError, match=r"no mesh could be rendered: .*cut\.glb"):
        run(tmp_path / "cut.glb", out=tmp_path / "out")
    with pytest.raises(UserError, match="give each mesh once"):
        run(tmp_path / "good.stl", tmp_path / "good.stl", out=tmp_path / "out")


def test_a_mesh_that_would_end_the_process_does_not_end_the_batch(tmp_path: Path) -> None:
    box().export(tmp_path / "good.stl")
    (tmp_path / "bad.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999\n")
    made = run(tmp_path / "bad.obj", tmp_path / "good.stl", out=tmp_path / "out")
    assert len(made) == 1
    assert "bad.obj: line 4" in made[0]


def test_a_mesh_of_which_nothing_is_seen_is_left_out(tmp_path: Path) -> None:
    box().export(tmp_path / "good.stl")
    glass = box()
    glass.visual.face_colors = [255, 0, 0, 0]
    glass.export(tmp_path / "glass.ply")
    made = run(tmp_path / "glass.ply", tmp_path / "good.stl", out=tmp_path / "out")
    assert len(made) == 1
    assert "glass.ply: nothing of it is seen" in made[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


def test_meshes_that_share_a_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """As Google's scanned objects lie; a mesh of a name of its own keeps that."""
    meshes = [tmp_path / name for name in ("gso/shoe/meshes/model.obj", "gso/cup/meshes/model.obj", "a/chair.stl")]
    meshes += [tmp_path / "a/lamp.stl", tmp_path / "a/lamp.ply"]
    for path in meshes:
        path.parent.mkdir(parents=True, exist_ok=True)
        box().export(path)
    run(*meshes, out=tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["chair", "cup-meshes-model", "lamp-ply", "lamp-stl", "shoe-meshes-model"]


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    box().export(tmp_path / "a.ply")
    arguments = ["render", str(tmp_path / "a.ply"), "--out", str(tmp_path / "out"), "--views", "2", "--size", "32"]
    result = CliRunner().invoke(app, arguments)
    assert result.stdout == f"{tmp_path / 'out'}: 1 meshes rendered from 2 sides, 0 left out\n"
    result = CliRunner().invoke(app, ["render"])
    assert result.exit_code == 2
    assert "no meshes given" in result.stderr
