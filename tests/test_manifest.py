import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from m2m.errors import UserError
from m2m.manifest import Manifest, ShardEntry, Split, shard_key
from tests.mutations import Reader, survives


def entry(content: bytes, split: Split, **changes: Any) -> ShardEntry:
    sha256 = hashlib.sha256(content).hexdigest()
    fields = {"key": shard_key(sha256), "sha256": sha256, "size": 10, "first_set": "a", "last_set": "b", "count": 2}
    return ShardEntry(**{**fields, "split": split, **changes})


def manifest(**changes: Any) -> Manifest:
    fields = {
        "schema_version": 1,
        "kind": "mis",
        "made_by": {"stage": "generate", "parameters": {"seed": 7, "guidance_scale": 1.0}},
        "images_per_set": 11,
        "redrawn": 0,
        "shards": (entry(b"1", "train"), entry(b"2", "train", count=1), entry(b"4", "validation"), entry(b"3", "test")),
    }
    return Manifest(**{**fields, **changes})


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "data" / "mis.json"
    manifest().write(path)
    again = Manifest.read(path)
    assert again == manifest()
    assert again.canonical == path.read_bytes() == manifest().canonical
    assert again.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_depends_on_content_not_on_the_order_of_keys() -> None:
    parameters = {"guidance_scale": 1.0, "seed": 7}
    assert manifest(made_by={"parameters": parameters, "stage": "generate"}).digest == manifest().digest
    assert manifest(redrawn=1).digest != manifest().digest


def test_splits_and_their_sizes() -> None:
    assert [shard.count for shard in manifest().split("train")] == [2, 1]
    assert manifest().split("test") == (entry(b"3", "test"),)
    assert manifest().split("validation") == (entry(b"4", "validation"),)
    assert manifest().sets == {"train": 3, "validation": 2, "test": 2}


def test_added_images_belong_to_the_shard_before_them(tmp_path: Path) -> None:
    shards = (
        entry(b"a", "train", count=3),
        entry(b"b", "train", count=2, first_image=4),
        entry(b"c", "train", count=3),
        entry(b"d", "test"),
    )
    grown = manifest(images_per_set=6, shards=shards)
    assert [len(block) for block in grown.blocks("train")] == [2, 1]
    assert grown.sets["train"] == 2 + 3
    assert grown.sizes(shards[:2]) == [range(4, 5), range(2, 3)]
    assert grown.sizes(shards[2:3]) == [range(6, 7)]
    grown.write(tmp_path / "grown.json")
    assert Manifest.read(tmp_path / "grown.json") == grown
    for first, second in ((shards[3], shards[1]), (shards[1], shards[1]), (None, shards[1])):
        with pytest.raises(ValidationError, match="adds images from 4 on, but not to the shard before it"):
            manifest(images_per_set=6, shards=tuple(one for one in (first, second) if one))
    with pytest.raises(ValidationError, match="adds images from 4 on"):
        manifest(images_per_set=4, shards=shards)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read manifest .*mis\.json: No such file"):
        Manifest.read(tmp_path / "mis.json")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("{", "[", "is not a valid manifest: the file: Invalid JSON"),
        ('"schema_version": 1', '"schema_version": 2', "schema_version: Input should be 1"),
        ('"kind": "mis"', '"kind": "mix"', "kind: Input should be 'mis'"),
        ('"count": 2', '"count": 0', r"shards.0.count: .*greater than or equal to 1"),
        ('"count": 2', '"count": "2"', "shards.0.count: Input should be a valid integer"),
        ('"redrawn": 0', '"redrawn": 0, "surplus": 1', "surplus: Extra inputs are not permitted"),
        ("shards/", "../", "shards.0: .*does not name the content"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_named(old: str, new: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "mis.json"
    path.write_bytes(manifest().canonical.replace(old.encode(), new.encode(), 1))
    with pytest.raises(UserError, match=fault) as caught:
        Manifest.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_with_another_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mis.json"
    manifest().write(path)
    good = path.read_bytes()
    for place in range(len(good)):
        content = bytearray(good)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"mis\.json: damaged, its SHA-256 is not the one in mis\.json\.sha256"):
            Manifest.read(path)


def reader() -> Reader:
    """Reads a manifest that nobody sealed."""
    return manifest().canonical, "mis.json", lambda path: (Manifest.read(path).digest, Manifest.read(path).sets)


@pytest.mark.fuzz
def test_damaged_manifests_are_read_rightly_or_refused_in_a_line() -> None:
    survives("tests.test_manifest:reader", 200)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"made_by": {', '"made_by": {"a": ' + "9" * 5000 + ", "),
        ('"made_by": {', '"made_by": {"a": ' + "[" * 5000),
        ('"made_by": {', '"made_by": {"a": "\\ud800", '),
        ('"kind"', '"a\\n\u2028b": 1, "kind"'),
        ('"count": ', '"count": ' + "9" * 30),
        ('"first_set": "', '"first_set": "a\\n'),
    ],
)
def test_what_cannot_be_written_or_would_break_a_line_is_refused(old: str, new: str, tmp_path: Path) -> None:
    path, good = tmp_path / "mis.json", manifest().canonical.decode()
    assert old in good
    path.write_text(good.replace(old, new, 1))
    with pytest.raises(UserError, match="not a valid manifest") as caught:
        Manifest.read(path)
    assert len(str(caught.value).splitlines()) == 1
