"""Objects with their cameras, from the world or from a folder: the same bytes every time, and bad files by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from pydantic import TypeAdapter

from m2m.commands import render, verify
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.diffusion.stable_diffusion import LatentEncoder, image_size
from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest, Split
from m2m.params import FolderViews, WorldViews
from m2m.runtime import Runtime
from m2m.stages import views
from m2m.store import LocalStore
from m2m.workers import ALONE, Workers
from m2m.world.cameras import Camera
from m2m.world.grammar import parse
from m2m.world.meshes import RADIUS
from tests.projection import intrinsics

WORLD = {
    **{"source": "world", "seed": 0, "train": 3, "validation": 1, "test": 2, "views": 3},
    **{"orbit": 2, "start_within": 180, "sets_per_shard": 2, "batch_size": 4, "latents": "float32"},
}
FOLDER = {
    **{"source": "folder", "seed": 0, "validation_share": 0.41, "test_share": 0.0, "max_bad_fraction": 0.4},
    **{"camera_convention": "blender", "views": 2, "sets_per_shard": 2, "batch_size": 4, "latents": "float16"},
}
"""Of the four objects rendered below, 1 and 3 are for validation, unless one is for the test."""


class Workplace:
    """Where one dataset is made."""

    def __init__(self, folder: Path, stable_diffusion: Path) -> None:
        self.manifest = folder / "data" / "nvs.json"
        self.work = folder / "work"
        self.store = LocalStore(folder / "store")
        self.stable_diffusion = stable_diffusion

    def run(self, fields: dict[str, Any], *, workers: Workers = ALONE, processes: int = 1) -> Manifest:
        return views.run(
            TypeAdapter(WorldViews | FolderViews).validate_python(fields),
            stable_diffusion=self.stable_diffusion,
            manifest=self.manifest,
            runtime=Runtime(store=self.store, work=self.work, workers=workers, processes=processes),
        )

    def sets(self) -> dict[str, ImageSet]:
        manifest = Manifest.read(self.manifest)
        return {one.id: one for split in get_args(Split) for one in ImageSets(self.store, manifest, split)}


@pytest.fixture(scope="module")
def made(tiny_stable_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A dataset of the world that was made without incident."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = Workplace(tmp_path_factory.mktemp("made"), tiny_stable_diffusion)
    place.run(WORLD)
    torch.set_num_threads(threads)
    return place


@pytest.fixture
def place(tiny_stable_diffusion: Path, tmp_path: Path) -> Workplace:
    return Workplace(tmp_path, tiny_stable_diffusion)


def test_the_world_gives_objects_with_poses_and_latents(made: Workplace) -> None:
    manifest = Manifest.read(made.manifest)
    assert (manifest.kind, manifest.images_per_set) == ("nvs", 3)
    assert list(manifest.sets.items()) == [("train", 3), ("validation", 1), ("test", 2)]
    assert image_size(made.stable_diffusion) == 64
    encode = LatentEncoder(made.stable_diffusion, device="cpu")
    for one in made.sets().values():
        assert one.images.shape == (3, 64, 64, 3)
        assert np.shape(one.extras["poses"]) == (3, 3, 4)
        assert parse(one.caption).split == one.id.split("-")[1]
        torch.testing.assert_close(torch.tensor(one.latents), torch.tensor(encode(one.images)), atol=1e-4, rtol=1e-4)
    assert ", 18 images, " in verify.run(made.manifest, store=made.store)
    card = made.manifest.with_suffix(".md").read_text()
    assert "Each set shows one object from 3 cameras. The images have 64 x 64 pixels" in card
    assert "| train | 3 | 2 |" in card
    assert "No set's subject is in two splits." in card
    assert "| validation | 1 | 1 |" in card
    assert manifest.made_by["vae"] == {"licence": "not stated", "sha256": folder_digest(made.stable_diffusion / "vae")}
    assert "Licence of the weights that encoded the latents: not stated." in card
    assert {one.generator for one in made.sets().values()} == {None}, "no model drew them"


@pytest.mark.slow
def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(
    made: Workplace, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, left = LocalStore.put, [2]

    def failing(self: LocalStore, *args: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        put(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", failing)
        with pytest.raises(KeyboardInterrupt):
            place.run(WORLD)
    assert not place.manifest.exists()
    place.run(WORLD, workers=Workers(2), processes=2)
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    assert place.manifest.with_suffix(".md").read_bytes() == made.manifest.with_suffix(".md").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(LatentEncoder, "__init__", None)  # what is finished needs no network
        place.run(WORLD)
    assert place.manifest.read_bytes() == made.manifest.read_bytes()
    finished = [*place.store.objects("records/views/")]
    monkeypatch.setattr(views, "code_digest", lambda *_: "of other code")
    place.run(WORLD)
    assert len([*place.store.objects("records/views/")]) == 2 * len(finished) > 0


def test_an_orbit_of_more_views_than_there_are_is_refused(place: Workplace) -> None:
    with pytest.raises(UserError, match=r"views\.orbit is 4; expected at most views\.views, 3"):
        place.run({**WORLD, "orbit": 4})


# Folders


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four renderings of one mesh: a red box above, a blue one below."""
    folder = tmp_path_factory.mktemp("rendered")
    red, blue = (trimesh.creation.box((0.4, 0.4, 0.4)) for _ in range(2))
    red.visual.vertex_colors, blue.visual.vertex_colors = [255, 0, 0, 255], [0, 0, 255, 255]
    red.apply_translation((0.8, 0.3, 0.9))
    blue.apply_translation((-0.8, -0.3, -0.9))
    names = [f"object {n}" for n in range(4)]
    for name in names:
        trimesh.util.concatenate([red, blue]).export(folder / f"{name}.ply")
    bad = render.run([folder / f"{name}.ply" for name in names], out=folder / "views", views=3, size=128, seed=1)
    assert bad == []
    return folder / "views"


@pytest.fixture
def folders(rendered: Path, tmp_path: Path) -> dict[str, Any]:
    """Parameters with two objects for training, one for validation and one for the test."""
    shutil.copytree(rendered, tmp_path / "train")
    shutil.copytree(rendered / "object 3", tmp_path / "test" / "object 3")
    return {**FOLDER, "path": str(tmp_path / "train"), "test_path": str(tmp_path / "test")}


def test_a_point_of_a_mesh_lies_where_it_should_after_the_whole_way(place: Workplace, folders: dict[str, Any]) -> None:
    manifest = place.run({**folders, "views": 3})
    assert manifest.sets == {"train": 2, "validation": 1, "test": 1}, "what is for the test is in no other split"
    assert ", 4 sets, " in verify.run(place.manifest, store=place.store)
    red = np.append(RADIUS / np.linalg.norm([1.0, 0.5, 1.1]) * np.array([0.8, 0.3, 0.9]), 1)
    blue = red * [-1, -1, -1, 1]
    sets = place.sets()
    assert all(name.startswith("object-") for name in sets)
    for one in sets.values():
        for picture, pose in zip(one.images, np.array(one.extras["poses"]), strict=True):
            seen = [(*(intrinsics(64) @ pose @ point), channel) for point, channel in ((red, 0), (blue, 2))]
            u, v, w, channel = min(seen, key=lambda one: one[2])  # the nearer box, which nothing hides
            assert w > 0
            colour = picture[int(v / w), int(u / w)].astype(int)
            assert colour[channel] - np.delete(colour, channel).max() > 100
            assert picture[0, 0].tolist() == [255, 255, 255]
    assert str(place.manifest.parent.parent) not in place.manifest.read_text()


def test_shares_of_a_folder_are_for_validation_and_the_test(place: Workplace, folders: dict[str, Any]) -> None:
    manifest = place.run({**folders, "test_path": "", "validation_share": 0.3, "test_share": 0.2})
    assert list(manifest.sets.items()) == [("train", 1), ("validation", 2), ("test", 1)]
    assert len(place.sets()) == 4, "none is in two"


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def rgb(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def camera(content: Any, *, allow_pickle: bool = False) -> Any:
    return lambda path: np.save(path, content, allow_pickle=allow_pickle)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("000.npy", camera(np.eye(4)), r"holds float64 of shape \(4, 4\); expected a 3x4 matrix"),
        ("001.npy", camera(np.full((3, 4), np.nan)), "numbers that are not finite"),
        ("000.npy", camera(np.ones((3, 4))), "are no rotation"),
        ("000.npy", camera(np.array([[object()] * 4] * 3), allow_pickle=True), "holds object of shape"),
        ("000.npy", lambda path: path.write_bytes(b"once upon"), r"no \.npy file of a camera"),
        ("001.npy", Path.unlink, r"cannot be read \(No such file"),
        ("001.png", Path.unlink, "no such file"),
        ("000.npy", camera(Camera(40, 20).matrix()), "with views.camera_convention blender; with opencv it would"),
        ("000.png", rgb, "is of mode RGB; expected RGBA"),
        ("001.png", lambda path: Image.new("RGBA", (128, 128), (9, 9, 9, 0)).save(path), "shows nothing"),
        ("001.png", lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
        ("001.npy", lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
        ("000.png", bomb, "would unpack to more than"),
    ],
)
def test_a_bad_object_is_named_and_left_out_and_too_many_end_the_run(
    file: str,
    damage: Any,
    said: str,
    place: Workplace,
    folders: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = Path(folders["path"]) / "object 0" / file
    damage(bad)
    assert place.run(folders).sets == {"train": 1, "validation": 1, "test": 1}
    assert place.manifest.read_bytes().count(b'"left_out": 1') == 1
    assert f"left out 1 of 4 sets: {bad}" in caplog.text
    kept = place.manifest.read_bytes()
    with pytest.raises(UserError, match=f"views: 1 sets are bad, more than .* of 4: .*{file}: .*{said}") as raised:
        place.run({**folders, "max_bad_fraction": 0.1})
    assert "\n" not in str(raised.value)
    assert place.manifest.read_bytes() == kept


def test_a_repaired_object_is_read_again(place: Workplace, folders: dict[str, Any]) -> None:
    camera_file = Path(folders["path"]) / "object 0" / "000.npy"
    content = camera_file.read_bytes()
    camera_file.unlink()
    assert place.run(folders).sets == {"train": 1, "validation": 1, "test": 1}
    camera_file.write_bytes(content)
    assert place.run(folders).sets == {"train": 2, "validation": 1, "test": 1}


def test_a_folder_that_is_missing_or_empty_is_named(place: Workplace, folders: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"views\.path: cannot read /nowhere \(No such file"):
        place.run({**folders, "path": "/nowhere"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"views\.test_path: .*empty holds no folders"):
        place.run({**folders, "test_path": str(tmp_path / "empty")})
    with pytest.raises(
        UserError, match=r"leaves no sets for the test; check views\.validation_share and views\.test_share"
    ):
        place.run({**folders, "test_path": ""})
    with pytest.raises(UserError, match=r"leaves no sets for validation; check views\.validation_share"):
        place.run({**folders, "validation_share": 0.0})


def test_names_that_are_no_text_are_read_and_their_faults_recorded(place: Workplace, folders: dict[str, Any]) -> None:
    for number in (0, 1):
        folder = Path(folders["path"]) / os.fsdecode(b"obj\xe9t %d" % number)
        shutil.copytree(Path(folders["path"]) / "object 0", folder)
    (folder / "001.png").unlink()
    assert sum(place.run(folders).sets.values()) == 5
    assert place.manifest.read_bytes().count(b'"left_out": 1') == 1
    place.run(folders)  # from the records
    assert place.manifest.read_bytes().count(b'"left_out": 1') == 1
