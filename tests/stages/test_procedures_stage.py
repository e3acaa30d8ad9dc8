"""Procedures of different lengths, from the world or from JSON: the same bytes every time, and bad records by name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image
from pydantic import TypeAdapter

from m2m.commands import verify
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.diffusion.stable_diffusion import LatentEncoder
from m2m.errors import UserError
from m2m.manifest import Manifest, Split
from m2m.params import FolderProcedures, WorldProcedures
from m2m.runtime import Runtime
from m2m.stages import procedures
from m2m.store import LocalStore
from m2m.workers import ALONE, Workers
from m2m.world.grammar import parse

WORLD = {
    **{"source": "world", "seed": 0, "train": 7, "validation": 4, "test": 5},
    **{"sets_per_shard": 3, "batch_size": 8, "latents": "float32"},
}
FOLDER = {
    **{"source": "folder", "seed": 0, "validation_share": 0.2, "test_path": "", "test_share": 0.3},
    **{"max_bad_fraction": 0.2, "max_steps": 4, "sets_per_shard": 3, "batch_size": 8, "latents": "float32"},
}


class Workplace:
    """Where one dataset is made."""

    def __init__(self, folder: Path, stable_diffusion: Path) -> None:
        self.folder = folder
        self.manifest = folder / "data" / "vpg.json"
        self.store = LocalStore(folder / "store")
        self.stable_diffusion = stable_diffusion

    def run(self, fields: dict[str, Any], *, workers: Workers = ALONE) -> Manifest:
        return procedures.run(
            TypeAdapter(WorldProcedures | FolderProcedures).validate_python(fields),
            stable_diffusion=self.stable_diffusion,
            manifest=self.manifest,
            runtime=Runtime(store=self.store, work=self.folder / "work", workers=workers, processes=workers.count),
        )

    def sets(self) -> dict[str, ImageSet]:
        manifest = Manifest.read(self.manifest)
        return {one.id: one for split in get_args(Split) for one in ImageSets(self.store, manifest, split)}


@pytest.fixture
def place(tiny_stable_diffusion: Path, tmp_path: Path) -> Workplace:
    return Workplace(tmp_path, tiny_stable_diffusion)


def test_the_world_gives_procedures_of_different_lengths(
    place: Workplace, tiny_stable_diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = place.run(WORLD)
    assert (manifest.kind, manifest.images_per_set) == ("vpg", 6)
    assert list(manifest.sets.items()) == [("train", 7), ("validation", 4), ("test", 5)]
    sets = place.sets()
    assert {len(one.images) for one in sets.values()} == {5, 6}
    for one in sets.values():
        assert one.latents is not None
        assert len(one.latents) == len(one.images) == len(one.extras["steps"])
        assert one.caption == one.extras["steps"][-1]
        assert {parse(step).split for step in one.extras["steps"]} == {one.id.split("-")[1]}
        assert [parse(step).step for step in one.extras["steps"]] == list(range(1, len(one.images) + 1))
    images = sum(len(one.images) for one in sets.values())
    assert f", {images} images, " in verify.run(place.manifest, store=place.store)
    assert "a procedure of 2 to 6 steps" in place.manifest.with_suffix(".md").read_text()

    other, put, left = Workplace(tmp_path / "other", tiny_stable_diffusion), LocalStore.put, [3]

    def failing(self: LocalStore, *args: Any) -> None:
        put(self, *args)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", failing)
        with pytest.raises(KeyboardInterrupt):
            other.run(WORLD)
    assert not other.manifest.exists()
    other.run(WORLD, workers=Workers(2))
    assert other.manifest.read_bytes() == place.manifest.read_bytes()
    finished = [*other.store.objects("records/procedures/")]
    monkeypatch.setattr(procedures, "code_digest", lambda *_: "of other code")
    other.run(WORLD)
    assert len([*other.store.objects("records/procedures/")]) == 2 * len(finished) > 0


# Files


def records(folder: Path, count: int = 10) -> list[dict[str, Any]]:
    """Good ones of 2 to 5 steps, with their pictures."""
    (folder / "pictures").mkdir(parents=True)
    made = []
    for number in range(count):
        names = [f"pictures/{number}-{step}.png" for step in range(2 + number % 4)]
        for step, name in enumerate(names):
            Image.new("RGB", (90, 60), (20 * number, 40 * step, 100)).save(folder / name)
        steps = [f"step {step} of {number}" for step in range(len(names))]
        made.append({"id": f"how/to {number}", "goal": f"Goal {number}", "steps": steps, "images": names, "more": 1})
    return made


def write(path: Path, values: list[dict[str, Any]], *, lines: bool = False) -> dict[str, Any]:
    path.write_text("\n".join(map(json.dumps, values)) if lines else json.dumps(values))
    return {**FOLDER, "path": str(path)}


@pytest.mark.parametrize("lines", [False, True])
def test_a_file_is_read_as_it_is(lines: bool, place: Workplace) -> None:
    values = records(place.folder / "how")
    manifest = place.run(write(place.folder / "how" / "wikihow.json", values, lines=lines))
    assert list(manifest.sets.items()) == [("train", 4), ("validation", 2), ("test", 4)]
    sets = place.sets()
    assert sorted(one.caption for one in sets.values()) == [value["goal"] for value in values]
    for one in sets.values():
        value = values[int(one.caption.split()[1])]
        assert one.extras["steps"] == value["steps"][:4]
        assert one.images.shape == (min(len(value["images"]), 4), 64, 64, 3)
        assert one.images[1, 32, 32].tolist() == [20 * int(one.caption.split()[1]), 40, 100]
    assert ", 10 sets, " in verify.run(place.manifest, store=place.store)


def test_the_test_may_come_from_a_file_of_its_own(place: Workplace) -> None:
    values = records(place.folder / "how")
    fields = write(place.folder / "how" / "all.json", values)
    write(place.folder / "how" / "test.json", values[7:])
    manifest = place.run({**fields, "test_path": str(place.folder / "how" / "test.json")})
    assert manifest.sets == {"train": 4, "validation": 3, "test": 3}, "what is for the test is in no other split"


def test_a_set_that_changes_its_split_is_not_made_again(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {**write(place.folder / "how" / "all.json", records(place.folder / "how")), "sets_per_shard": 1}
    assert place.run(fields).sets == {"train": 4, "validation": 2, "test": 4}
    monkeypatch.setattr(LatentEncoder, "__init__", None)
    manifest = place.run({**fields, "validation_share": 0.4, "test_share": 0.1})
    assert list(manifest.sets.items()) == [("train", 4), ("validation", 4), ("test", 2)]


def missing(value: dict[str, Any], folder: Path) -> None:
    (folder / value["images"][1]).unlink()


def bomb(value: dict[str, Any], folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / value["images"][0])


def cut(value: dict[str, Any], folder: Path) -> None:
    """A picture whose header is whole."""
    file = io.BytesIO()
    Image.effect_noise((90, 60), 60).convert("RGB").save(file, "AVIF")
    (folder / value["images"][0]).write_bytes(file.getvalue()[:-400])


def other(value: dict[str, Any], folder: Path) -> None:
    Image.new("RGB", (90, 60)).save(folder / value["images"][1], "EPS")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"pictures/4-0\.png: (cannot be read as|not) a picture"),
        (other, r"pictures/4-1\.png: not a picture that can be read; give one of PNG, "),
        (missing, r"pictures/4-1\.png: no such file"),
        (bomb, r"pictures/4-0\.png: would unpack"),
        (lambda value, _: value["images"].__delitem__(slice(1, None)), "record 5: procedure 'how/to 4' has 1 images"),
        (lambda value, _: value["steps"].pop(), "record 5: procedure 'how/to 4' has 1 texts for 2 images"),
        (lambda value, _: value["images"].__setitem__(0, "../x.png"), r"image '\.\./x\.png' does not lie beside"),
        (lambda value, _: value.pop("steps"), "record 5: steps: Field required"),
        (lambda value, _: value.update(id="how/to 0"), "record 5: id 'how/to 0' is there already"),
    ],
)
def test_a_bad_record_is_named_and_left_out_and_too_many_end_the_run(damage: Any, said: str, place: Workplace) -> None:
    values = records(place.folder / "how")
    damage(values[4], place.folder / "how")
    fields = write(place.folder / "how" / "wikihow.json", values)
    assert sum(place.run(fields).sets.values()) == 9
    kept = place.manifest.read_bytes()
    assert b'"left_out": 1' in kept
    with pytest.raises(UserError, match=f"procedures: 1 sets are bad, more than .* of 10: .*{said}") as raised:
        place.run({**fields, "max_bad_fraction": 0.0})
    assert "\n" not in str(raised.value)
    assert place.manifest.read_bytes() == kept


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"id": ', "is no valid JSON"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"once upon a time", "leaves no sets for training; .*line 1: no valid JSON"),
        (b"", "leaves no sets for training"),
    ],
)
def test_a_file_of_something_else_is_named(content: bytes, said: str, place: Workplace) -> None:
    path = place.folder / "wikihow.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        place.run({**FOLDER, "path": str(path)})
    assert str(path) in str(raised.value)
    assert not place.manifest.exists()


def test_a_missing_file_is_named(place: Workplace) -> None:
    with pytest.raises(UserError, match=r"procedures\.path: cannot read nowhere\.json \(No such file"):
        place.run({**FOLDER, "path": "nowhere.json"})
    assert not place.manifest.exists()
