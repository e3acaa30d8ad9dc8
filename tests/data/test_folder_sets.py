"""Sets as others made them: what can be read is planned, the rest is named; which is for what hangs on its name."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw

from m2m.data.folder_sets import TO_OPENCV, divide, plan_procedures, plan_views, read_camera, split_of
from m2m.data.making import TaskPlan
from m2m.data.shards import PlannedSet
from m2m.errors import UserError
from m2m.manifest import Split
from m2m.params import FolderProcedures, FolderSets, FolderViews
from m2m.world.cameras import Camera
from tests.mutations import Reader, survives

NAMES = [f"object {number}" for number in range(2000)]


def params(**changes: Any) -> FolderSets:
    fields = {"source": "folder", "seed": 0, "path": "here", "validation_share": 0.1, "test_path": ""}
    rest = {"test_share": 0.2, "max_bad_fraction": 0.0, "sets_per_shard": 1, "batch_size": 1, "latents": "float32"}
    return FolderSets.model_validate({**fields, **rest, **changes})


def divided(names: list[str], tested: list[str] | None = None, **changes: Any) -> dict[str, Split]:
    """The split of each name."""
    at_path, at_test_path = dict.fromkeys(names, "path"), dict.fromkeys(tested or [], "test_path")
    sets = divide(at_path, at_test_path, params(test_path="there" if tested else "", **changes), stage="views")
    assert list(sets) == list(get_args(Split))
    pairs = [(name, split) for split, those in sets.items() for name in those]
    assert len(pairs) == len(dict(pairs)), "none is in two"
    assert {sets["test"][name] for name in tested or []} <= {"test_path"}
    return dict(pairs)


def test_each_split_has_its_share_and_all_sets_are_in_one() -> None:
    splits = divided(NAMES)
    assert splits.keys() == set(NAMES)
    counts = Counter(splits.values())
    assert abs(counts["validation"] - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert abs(counts["test"] - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5
    assert divided(NAMES, seed=1) != splits


def test_a_set_stays_in_its_split_when_others_come_or_go() -> None:
    before = divided(NAMES[:500])
    after = divided([*NAMES[250:], *(f"another {number}" for number in range(100))])
    assert all(after[name] == before[name] for name in NAMES[250:500])


def test_a_larger_share_for_validation_takes_from_training_alone() -> None:
    before, after = divided(NAMES), divided(NAMES, validation_share=0.3)
    changed = {(before[name], after[name]) for name in NAMES if before[name] != after[name]}
    assert changed == {("train", "validation")}


def test_validation_comes_from_path_where_the_test_has_a_place_of_its_own() -> None:
    before = divided(NAMES, test_share=0.0, tested=["elsewhere"])
    assert Counter(before.values())["test"] == 1
    assert before == divided(NAMES, test_share=0.2, tested=["elsewhere"]), "test_share has nothing to say there"
    looked_at = next(name for name in NAMES if before[name] == "validation")
    after = divided(NAMES, tested=["elsewhere", looked_at])
    assert after == {**before, looked_at: "test"}


@pytest.mark.parametrize(
    ("changes", "purpose"),
    [({"validation_share": 0.0}, "validation"), ({"test_share": 0.0}, "the test"), ({"seed": 0}, "training")],
)
def test_a_split_without_sets_is_refused(changes: dict[str, Any], purpose: str) -> None:
    tested = [name for name in NAMES if split_of(name, seed=0, validation_share=0.1, test_share=0.2) == "train"]
    names = [name for name in NAMES if name not in tested] if purpose == "training" else NAMES
    with pytest.raises(
        UserError, match=rf"views\.path: here leaves no sets for {purpose}; check views\.validation_share"
    ):
        divided(names, **changes)
    with pytest.raises(UserError, match=f"leaves no sets for {purpose}; line 1 is bad"):
        divide(dict.fromkeys(names), {}, params(**changes), stage="views", bad=["line 1 is bad", "line 2 is bad"])


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
    fields = {"source": "folder", "seed": 1, "sets_per_shard": 1, "batch_size": 1, "latents": "float32"}
    shares = {"validation_share": 0.4, "test_path": "", "test_share": 0.3, "max_bad_fraction": 0.0}
    where = {"path": str(folder), "views": views, "camera_convention": convention}
    params = FolderViews.model_validate({**fields, **shares, **where})
    plan = plan_views(params, size=64)
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


@pytest.mark.slow
@pytest.mark.fuzz
def test_damaged_cameras_are_read_or_named() -> None:
    survives("tests.data.test_folder_sets:camera_reader", 200)


FIELDS = {
    **{"source": "folder", "seed": 0, "validation_share": 0.2, "test_path": "", "test_share": 0.3, "max_steps": 4},
    **{"max_bad_fraction": 0.2, "sets_per_shard": 3, "batch_size": 8, "latents": "float32"},
}


def records(count: int = 10) -> list[dict[str, Any]]:
    """Good ones, all with the same two pictures."""
    images = ["0.png", "1.png"]
    return [{"id": n, "goal": f"Goal {n}", "steps": ["one", "two"], "images": images} for n in range(count)]


def plan(path: Path) -> TaskPlan:
    return plan_procedures(FolderProcedures.model_validate({**FIELDS, "path": str(path)}), size=64)


def read(path: Path) -> TaskPlan:
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


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["list_reader", "lines_reader"])
def test_damaged_procedures_are_read_or_named(name: str) -> None:
    survives(f"tests.data.test_folder_sets:{name}", 200)
