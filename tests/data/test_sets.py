import io
import json
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from m2m.data import sets as module
from m2m.data.sets import ImageSet, read_shard, write_shard
from m2m.errors import UserError
from tests.mutations import Reader, survives


def image_set(id_: str, *, seed: int = 0, count: int = 3, latents: bool = True, **extras: Any) -> ImageSet:
    random = np.random.default_rng([seed, *id_.encode()])
    return ImageSet(
        id=id_,
        caption=f"the caption of {id_}, über",
        images=random.integers(256, size=(count, 16, 24, 3), dtype=np.uint8),
        latents=random.standard_normal((count, 4, 2, 3), np.float32) if latents else None,
        extras=extras,
    )


def assert_equal(one: ImageSet, other: ImageSet) -> None:
    assert (one.id, one.caption, dict(one.extras)) == (other.id, other.caption, dict(other.extras))
    np.testing.assert_array_equal(one.images, other.images)
    assert (one.latents is None) == (other.latents is None)
    if one.latents is not None and other.latents is not None:
        assert other.latents.dtype == np.float32
        np.testing.assert_array_equal(one.latents, other.latents)


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    sets = [
        image_set("a", seeds=[1, 2**63 - 1, 3]),
        image_set("b-1", latents=False, step=["the walls", "the roof", "the door"]),
        image_set("c_2", count=1, pose=[[1.0, 0.5], [0.0, -1.25]]),
    ]
    stats = write_shard(iter(sets), tmp_path / "shard.tar", "train")
    again = list(read_shard(tmp_path / "shard.tar"))
    assert (stats.first_set, stats.last_set, stats.count) == ("a", "c_2", 3)
    assert stats.size == (tmp_path / "shard.tar").stat().st_size
    assert len(again) == 3
    for one, other in zip(sets, again, strict=True):
        assert_equal(one, other)


def test_latents_of_half_precision_take_half_the_bytes_and_are_read_as_they_were_rounded(tmp_path: Path) -> None:
    exact = replace(image_set("a"), latents=np.random.default_rng(0).standard_normal((3, 4, 64, 64), np.float32))
    half = replace(exact, latents=np.asarray(exact.latents, np.float16))
    sizes = [write_shard([one], tmp_path / "shard.tar", "train").size for one in (exact, half)]
    (again,) = read_shard(tmp_path / "shard.tar")
    assert abs(sizes[0] - sizes[1] - 3 * 4 * 64 * 64 * 2) < tarfile.RECORDSIZE
    assert again.latents is not None
    assert again.latents.dtype == np.float32
    np.testing.assert_array_equal(again.latents, np.asarray(half.latents, np.float32))


def test_the_same_sets_give_the_same_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_shard([image_set("a"), image_set("b")], tmp_path / "one.tar", "train")
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert write_shard([image_set("a"), image_set("b")], tmp_path / "two.tar", "train") == first
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert write_shard([image_set("a"), image_set("b", seed=1)], tmp_path / "three.tar", "train").sha256 != first.sha256


def test_a_picture_that_a_model_drew_says_so_wherever_it_goes(tmp_path: Path) -> None:
    one = replace(image_set("a-1", seeds=[5, 6, 2**63 - 1]), generator="0f" * 32)
    write_shard([one, image_set("b", count=2)], tmp_path / "shard.tar", "train")
    drawn, other = read_shard(tmp_path / "shard.tar")
    assert_equal(one, drawn)
    assert (drawn.generator, other.generator) == ("0f" * 32, None)
    with tarfile.open(tmp_path / "shard.tar") as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}
    assert json.loads(contents["a-1.json"])["generator"] == "0f" * 32
    assert "generator" not in json.loads(contents["b.json"])
    (tmp_path / "copied.png").write_bytes(contents["a-1.002.png"])
    with Image.open(tmp_path / "copied.png") as picture:
        np.testing.assert_array_equal(np.array(picture), one.images[2])
        note = {"set": "a-1", "image": 2, "model": "0f" * 32, "seed": 2**63 - 1}
        assert json.loads(picture.text["m2m"]) == note
        told = ElementTree.fromstring(picture.text["XML:com.adobe.xmp"])
    (described,) = told.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert described.attrib == {
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}about": "",
        "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        ),
    }
    with Image.open(io.BytesIO(contents["b.000.png"])) as picture:
        assert picture.text == {}


def test_members_bear_no_trace_of_a_machine(tmp_path: Path) -> None:
    write_shard([image_set("a", count=2)], tmp_path / "shard.tar", "train")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["a.json", "a.000.png", "a.001.png", "a.latents.npy"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_a_set_is_read_alone_from_where_it_begins(tmp_path: Path) -> None:
    sets = [image_set("a"), image_set("b-1", latents=False), image_set("c")]
    write_shard(sets, tmp_path / "shard.tar", "train")
    offsets = module.Shard(tmp_path / "shard.tar").offsets
    assert list(offsets) == ["a", "b-1", "c"]
    for id_, offset in offsets.items():
        with (tmp_path / "shard.tar").open("rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r|") as tar:
                assert next(iter(tar)).name == f"{id_}.json"


def test_webdataset_reads_it(tmp_path: Path) -> None:
    """In a process of its own, since the library reads WDS_SECURE when it is imported."""
    written = image_set("a", count=2, seeds=[5, 6])
    write_shard([written, image_set("b", count=2)], tmp_path / "shard.tar", "train")
    script = """
import sys, numpy as np, webdataset
a, b = webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode("rgb8")
assert (a["__key__"], b["__key__"]) == ("a", "b")
assert a["json"] == {"id": "a", "caption": "the caption of a, über", "images": 2, "latents": True, "seeds": [5, 6]}
np.savez(sys.argv[2], images=np.stack([a["000.png"], a["001.png"]]), latents=a["latents.npy"])
"""
    arguments = [sys.executable, "-c", script, str(tmp_path / "shard.tar"), str(tmp_path / "read.npz")]
    subprocess.run(arguments, env={"WDS_SECURE": "1"}, check=True)
    with np.load(tmp_path / "read.npz") as read:
        np.testing.assert_array_equal(read["images"], written.images)
        np.testing.assert_array_equal(read["latents"], written.latents)


@pytest.mark.parametrize("id_", ["a.b", "../a", "a/b", "", "a" * 65])
def test_an_id_that_cannot_name_files_is_not_written(id_: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be a member of a shard"):
        write_shard([image_set(id_)], tmp_path / "shard.tar", "train")
    with pytest.raises(ValueError, match="without sets"):
        write_shard([], tmp_path / "shard.tar", "train")
    assert not list(tmp_path.iterdir())


Members = list[tuple[tarfile.TarInfo, bytes]]


def members_of(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_members(members: Members, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(file, "PNG")
    return file.getvalue()


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = zlib.crc32(b"IHDR" + header)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR") + header + struct.pack(">I", checksum)


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def lying_npy(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    return file.getvalue()


def replaced(name: str, content: bytes) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        assert any(member.name == name for member, _ in members)
        return [(member, content if member.name == name else old) for member, old in members]

    return change


def added(name: str, content: bytes = b"", **fields: Any) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        member = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(member, key, value)
        return [*members, (member, content)]

    return change


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: [(member, content) for member, content in members if member.name != name]


PICTURE = np.zeros((16, 24, 3), np.uint8)
ABOUT = {"id": "a", "caption": "", "images": 2, "latents": True}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (added("b.pkl"), "member 'b.pkl' does not belong in a shard"),
        (added("../b.json"), "member '../b.json' does not belong"),
        (added("/b.json"), "member '/b.json' does not belong"),
        (added("x/b.json"), "member 'x/b.json' does not belong"),
        (added("b.0000.png"), "does not belong"),
        (added("b.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "member 'b.json' does not belong"),
        (added("b.json", type=tarfile.LNKTYPE, linkname="a.json"), "member 'b.json' does not belong"),
        (added("b.json", type=tarfile.DIRTYPE), "member 'b.json' does not belong"),
        (added("b.json", type=tarfile.CHRTYPE), "member 'b.json' does not belong"),
        (added("a.001.png", png(PICTURE)), "member 'a.001.png' does not belong"),
        (
            added("a.002.png", png(PICTURE)),
            "a.json describes 2 images of a with latents, but .* 001.png, 002.png, latents.npy",
        ),
        (without("a.001.png"), "a.json describes 2 images of a with latents, but there are 000.png, latents.npy"),
        (without("a.latents.npy"), "with latents, but there are 000.png, 001.png"),
        (without("a.json"), "a.json is not what describes a set"),
        (
            replaced("a.json", json.dumps({**ABOUT, "generator": "0F" * 32}).encode()),
            "a.json is not what describes a set: String should match pattern",
        ),
        (replaced("a.json", b"{"), "a.json is not what describes a set: Invalid JSON"),
        (
            replaced("a.json", b'{"id": "a", "caption": 3, "images": 2, "latents": true}'),
            "a.json .*: Input should be a valid string",
        ),
        (
            replaced("a.json", b'{"id": "a", "caption": "", "images": 1000000000, "latents": true}'),
            "less than or equal to 999",
        ),
        (
            replaced("a.json", b'{"id": "b", "caption": "", "images": 2, "latents": true}'),
            "a.json describes 2 images of b",
        ),
        (replaced("a.000.png", b"GIF89a"), "a.000.png is no PNG"),
        (replaced("a.000.png", png(image_set("a").images[0])[:200]), "a.000.png cannot be decoded"),
        (replaced("a.000.png", png(PICTURE, "RGBA")), "a.000.png is of mode RGBA; expected RGB"),
        (replaced("a.000.png", png(PICTURE[1:])), "the images of a differ in size"),
        (replaced("a.000.png", huge_png(100_000, 100_000)), "a.000.png has 100000 x 100000 pixels, more than 4096"),
        (replaced("a.latents.npy", b"x"), "a.latents.npy is no .npy file"),
        (replaced("a.latents.npy", npy(np.zeros((2, 4, 2, 3)))), "a.latents.npy holds float64 of shape"),
        (replaced("a.latents.npy", npy(np.zeros((2, 4), np.float32))), r"holds float32 of shape \(2, 4\); expected"),
        (replaced("a.latents.npy", npy(np.array([{}]), allow_pickle=True)), "a.latents.npy holds object of shape"),
        (replaced("a.latents.npy", npy(np.zeros((1, 4, 2, 3), np.float32))), "a has 2 images and the latents of 1"),
        (
            replaced("a.latents.npy", lying_npy((2, 4, 10**6, 10**6))),
            "a.latents.npy is of another length than its shape",
        ),
        (lambda _: [], "it holds no set"),
    ],
)
def test_whatever_does_not_belong_is_refused_by_name(
    change: Callable[[Members], Members], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "shard.tar"
    write_shard([image_set("a", count=2)], path, "train")
    write_members(change(members_of(path)), path)
    with pytest.raises(UserError, match=fault) as caught:
        list(read_shard(path))
    assert str(caught.value).startswith(f"shard {path}: ")
    assert "\n" not in str(caught.value)


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard([image_set("a")], tmp_path / "shard.tar", "train")
    monkeypatch.setattr(module, "MAX_MEMBER", 1000)
    with pytest.raises(UserError, match=r"member a\.000\.png has \d+ bytes, more than 1000"):
        list(read_shard(tmp_path / "shard.tar"))


def test_no_cut_goes_unnoticed(tmp_path: Path) -> None:
    """Wherever a shard is cut, reading raises, or gives whole sets only."""
    sets = [image_set("a", count=2), image_set("b", count=2)]
    write_shard(sets, tmp_path / "whole.tar", "train")
    content = (tmp_path / "whole.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for length in range(0, len(content), 200):
        cut.write_bytes(content[:length])
        read: list[ImageSet] = []
        try:
            for one in read_shard(cut):
                read.append(one)
        except UserError:
            assert len(read) < 2
        for one, other in zip(sets, read, strict=False):
            assert_equal(one, other)


def test_a_missing_or_compressed_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(read_shard(tmp_path / "missing.tar"))
    with tarfile.open(tmp_path / "shard.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_shard(tmp_path / "shard.tar"))


def test_sets_come_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    write_shard([image_set("a"), image_set("b")], path, "train")
    write_members([(m, b"" if m.name == "b.json" else c) for m, c in members_of(path)], path)
    sets: Iterator[ImageSet] = read_shard(path)
    assert next(sets).id == "a"
    with pytest.raises(UserError, match=r"b\.json"):
        next(sets)


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    write_shard([image_set("a", count=1, seeds=[7])], tmp_path / "shard.tar", "train")
    about = json.loads(members_of(tmp_path / "shard.tar")[0][1])
    assert about == {"id": "a", "caption": "the caption of a, über", "images": 1, "latents": True, "seeds": [7]}


def shard_reader() -> Reader:
    """Reads a shard of sets with latents and cameras."""
    random, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    sets = [
        ImageSet(
            id=f"set-{number}",
            caption="a red circle",
            images=random.integers(256, size=(2, 4, 4, 3), dtype=np.uint8),
            latents=random.standard_normal((2, 4, 1, 1)).astype(np.float32),
            extras={"poses": np.tile(np.eye(3, 4), (2, 1, 1)).tolist(), "steps": ["one", "two"]},
        )
        for number in range(2)
    ]
    write_shard(sets, folder / "good.tar", "train")

    def read(path: Path) -> object:
        return [one.cameras() for one in read_shard(path)]

    return (folder / "good.tar").read_bytes(), "shard.tar", read


def description_reader() -> Reader:
    """Reads the description of a set, in a shard whose headers are right."""
    good = json.dumps({"caption": "a", "id": "a", "images": 1, "latents": False, "poses": np.eye(3, 4)[None].tolist()})
    picture, folder = io.BytesIO(), Path(tempfile.mkdtemp())
    Image.new("RGB", (2, 2)).save(picture, "PNG")

    def read(path: Path) -> object:
        with tarfile.open(folder / "a.tar", "w") as tar:
            for name, content in (("a.json", path.read_bytes()), ("a.000.png", picture.getvalue())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return [one.cameras() for one in read_shard(folder / "a.tar")]

    return good.encode(), "a.json", read


@pytest.mark.fuzz
@pytest.mark.parametrize("reader", ["shard_reader", "description_reader"])
def test_damaged_shards_are_read_rightly_or_refused_in_a_line(reader: str) -> None:
    survives(f"tests.data.test_sets:{reader}", 200)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def described(images: int, **extras: object) -> bytes:
    about = {"caption": "a", "id": "a", "images": images, "latents": False, **extras}
    return json.dumps(about).encode()


def png(side: int, *, second_header: int = 0) -> bytes:
    """A black picture; its data may stand behind another header, which the decoder goes by."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    content = file.getvalue()
    if second_header:
        chunk = b"IHDR" + struct.pack(">IIBBBBB", second_header, second_header, 8, 2, 0, 0, 0)
        content = content[:33] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
    return content


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.json": described(1), "a.000.png": png(8, second_header=5_000)}, "two sizes"),
        ({"a.json": described(999), **dict.fromkeys((f"a.{n:03}.png" for n in range(999)), png(2048))}, "in its set"),
        ({"a.json": b"[" * 100_000, "a.000.png": png(8)}, "not what describes a set"),
        ({"a.json": described(1).replace(b'"a",', b'"\\ud800",', 1), "a.000.png": png(8)}, "not what describes a set"),
    ],
    ids=["two-sizes", "too-many-pixels", "deep", "surrogate"],
)
def test_what_would_fill_memory_or_break_a_line_is_refused(
    members: dict[str, bytes], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        list(read_shard(tar_of(tmp_path / "shard.tar", members)))
    assert len(str(caught.value).splitlines()) == 1


def test_poses_of_five_thousand_digits_are_refused(tmp_path: Path) -> None:
    poses = np.eye(3, 4)[None].tolist()
    poses[0][0][0] = 10**400
    path = tar_of(tmp_path / "shard.tar", {"a.json": described(1, poses=poses), "a.000.png": png(8)})
    with pytest.raises(UserError, match="set a has no poses"):
        next(read_shard(path)).cameras()
