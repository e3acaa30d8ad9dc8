"""What others find in an exported folder: what they read by each snippet of its card is what the project reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from m2m.commands import export
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet, write_shard
from m2m.errors import UserError
from m2m.files import file_digest
from m2m.manifest import Kind, Manifest, ShardEntry, Split
from m2m.store import LocalStore, Store, open_store
from tests.datasets import Dataset

ROOT = Path(__file__).parents[2]
KINDS: tuple[Kind, ...] = ("mis", "nvs", "vpg")
SHARDS: tuple[Split, ...] = ("train", "train", "train", "validation", "test", "test")
MOST = 5


def made_by(kind: Kind, source: str = "world") -> dict[str, Any]:
    parameters = {"latents": "float16" if kind == "nvs" else "float32", "source": source}
    if kind == "mis":
        captions = {"name": "some", "licence": "Apache-2.0, as the project", "mix": "", "sha256": "c" * 64}
        drawn = {"licence": "CreativeML Open RAIL++-M", "sha256": "d" * 64}
        return {"stage": "generate", "parameters": parameters, "captions": captions, "stable_diffusion": drawn}
    origin = {"name": "some photographs", "licence": "that of each"}
    return {"stage": "views", "parameters": parameters, "source": origin, "vae": {"sha256": "e" * 64}}


def image_set(kind: Kind, id_: str, number: int) -> ImageSet:
    random = np.random.default_rng(number)
    count = 3 + number % 3 if kind == "vpg" else 4
    extras: dict[Kind, dict[str, Any]] = {
        "mis": {"seeds": [2**63 - 1 - index for index in range(count)]},
        "nvs": {"poses": random.normal(size=(count, 3, 4)).tolist()},
        "vpg": {"steps": [f"step {index}" for index in range(count)]},
    }
    return ImageSet(
        id=id_,
        caption=f'"Über" {number}, …' if number else "",
        images=random.integers(256, size=(count, 16, 24, 3), dtype=np.uint8),
        latents=random.normal(size=(count, 4, 2, 3)).astype(np.float16 if kind == "nvs" else np.float32),
        extras=extras[kind],
        generator="f" * 64 if kind == "mis" and number else None,
    )


def write_dataset(
    folder: Path,
    kind: Kind,
    *,
    source: str = "world",
    store: Store | None = None,
    shards: tuple[Split, ...] = SHARDS,
    grown: bool = False,
) -> Dataset:
    """A manifest, and its shards of two sets each; the first of all has no caption.

    `grown`: the last image of each set was added to it.
    """
    store = store or LocalStore(folder / "store")
    entries = []
    for place, split in enumerate(shards):
        sets = [image_set(kind, f"{split}-{number}", number) for number in (2 * place, 2 * place + 1)]
        for images in [slice(0, 3), slice(3, 4)] if grown else [slice(None)]:
            some = [part_of(one, images) for one in sets]
            entries.append(write_shard(some, folder / "draft.tar", split))
            store.put(entries[-1].key, folder / "draft.tar", entries[-1].sha256)
    return write_manifest(folder, kind, entries, store, made_by(kind, source))


def part_of(one: ImageSet, images: slice) -> ImageSet:
    assert one.latents is not None
    return replace(
        one,
        images=one.images[images],
        latents=one.latents[images],
        extras={name: values[images] for name, values in one.extras.items()},
        first_image=images.start or 0,
    )


def write_manifest(
    folder: Path, kind: Kind, entries: list[ShardEntry], store: Store, made_by: dict[str, Any]
) -> Dataset:
    most = MOST if kind == "vpg" else 4
    fields: dict[str, Any] = {"schema_version": 1, "kind": kind, "images_per_set": most, "redrawn": 0}
    Manifest(**fields, made_by=made_by, shards=tuple(entries)).write(folder / f"{kind}.json")
    return Dataset(folder / f"{kind}.json", store)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=[*KINDS, "grown"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    if request.param == "grown":
        return write_dataset(tmp_path, "mis", grown=True)
    return write_dataset(tmp_path, request.param)


def test_images_that_were_added_lie_in_the_tar_of_their_set(tmp_path: Path) -> None:
    whole, grown = (write_dataset(tmp_path / name, "mis", grown=name == "grown") for name in ("whole", "grown"))
    told = export.run(grown.manifest, to=tmp_path / "out", store=grown.store)
    assert told.startswith("6 shards, 12 sets, ")
    tars = sorted((tmp_path / "out" / "data").iterdir())
    assert {file_digest(tar) for tar in tars} == {shard.sha256 for shard in Manifest.read(whole.manifest).shards}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "each tar here joins all images of its sets" in card
    assert "| train | 6 | 24 | 3 |" in card
    before = {tar: tar.read_bytes() for tar in tars}
    export.run(grown.manifest, to=tmp_path / "out", store=grown.store)
    assert before == {tar: tar.read_bytes() for tar in tars}


@pytest.fixture
def mis(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path, "mis")


def front(folder: Path) -> dict[str, Any]:
    """What a hub reads of a card."""
    return dict(yaml.safe_load((folder / "README.md").read_text().split("---\n")[1]))


def test_shards_are_copied_to_the_names_that_hubs_expect(mis: Dataset, tmp_path: Path) -> None:
    told = export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    shards = Manifest.read(mis.manifest).shards
    assert told.startswith(f"6 shards, 12 sets, {sum(shard.size for shard in shards)} bytes")
    names = [
        *(f"data/train-0000{number}-of-00003.tar" for number in range(3)),
        "data/validation-00000-of-00001.tar",
        *(f"data/test-0000{number}-of-00002.tar" for number in range(2)),
    ]
    assert {name: file_digest(tmp_path / "out" / name) for name in names} == {
        name: shard.sha256 for name, shard in zip(names, shards, strict=True)
    }
    metadata = {"README.md", "croissant.json", "index.parquet", "manifest.json"}
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")} == {
        *("data", *names, *metadata)
    }
    assert (tmp_path / "out" / "manifest.json").read_bytes() == mis.manifest.read_bytes()


def test_more_than_a_hundred_thousand_shards_still_sort_by_name() -> None:
    shard = ShardEntry(
        key=f"shards/{'a' * 64}.tar", sha256="a" * 64, size=1, first_set="a", last_set="a", count=1, split="train"
    )
    names = [name for name, _ in export._named([(shard,)] * 100_001)]
    assert names[0] == "data/train-000000-of-100001.tar"
    assert names == sorted(names)


def test_the_index_says_what_lies_where(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROWS", 5)
    export.run(dataset.manifest, to=tmp_path / "out", store=dataset.store)
    index = pq.ParquetFile(tmp_path / "out" / "index.parquet")
    assert index.schema_arrow.names == ["id", "caption", "split", "shard", "offset", "images", "seeds"]
    assert [index.metadata.row_group(group).num_rows for group in range(index.num_row_groups)] == [5, 5, 2]
    rows = index.read().to_pylist()
    manifest = Manifest.read(dataset.manifest)
    for split in ("train", "validation", "test"):
        sets = ImageSets(dataset.store, manifest, split)  # type: ignore[arg-type]
        expected = [
            (one.id, one.caption, one.count, one.extras.get("seeds")) for one in map(sets.stored, range(len(sets)))
        ]
        keys = ("id", "caption", "images", "seeds")
        assert [tuple(row[key] for key in keys) for row in rows if row["split"] == split] == expected
    for row in rows:
        with (tmp_path / "out" / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            assert tarfile.TarInfo.frombuf(file.read(512), "utf-8", "strict").name == f"{row['id']}.json"


HARNESS = """
import hashlib, json, os, runpy, sys
import numpy as np
from PIL import Image

def offline(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)

def plain(word):
    if isinstance(word, list):
        return [plain(one) for one in word]
    if isinstance(word, Image.Image):
        pixels = np.asarray(word)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return word.item() if isinstance(word, np.generic) else word

sys.addaudithook(offline)
printed = []
runpy.run_path(sys.argv[1], init_globals={"print": lambda *words: printed.append(plain(list(words)))})
with open(sys.argv[2], "w") as file:
    json.dump(printed, file)
"""
"""Runs a snippet as it stands, offline, and keeps what it prints: of pictures their pixels' hash."""


def printed(code: str, folder: Path, tmp_path: Path) -> list[Any]:
    """What a snippet prints in a folder."""
    (tmp_path / "snippet.py").write_text(code)
    (tmp_path / "home").mkdir(exist_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-c", HARNESS, str(tmp_path / "snippet.py"), str(tmp_path / "printed.json")],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return list(json.loads((tmp_path / "printed.json").read_text()))


def snippets(folder: Path) -> dict[str, str]:
    """Those of a card, by the library that each imports last."""
    codes = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return {re.findall(r"^ *(?:import|from) (\w+)", code, re.MULTILINE)[-1]: code for code in codes}


def pixels(image: Any) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def stored(dataset: Dataset, split: Split) -> list[list[Any]]:
    """What a snippet should print of a split, by the project's own reader."""
    sets = ImageSets(dataset.store, Manifest.read(dataset.manifest), split)
    return [
        [one.id, one.caption, [pixels(image) for image in one.images]] for one in (sets[n] for n in range(len(sets)))
    ]


@pytest.mark.slow
def test_each_snippet_of_the_card_reads_what_is_stored(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export.run(dataset.manifest, to=folder, store=dataset.store)
    codes, test = snippets(folder), stored(dataset, "test")
    assert set(codes) == {"webdataset", "datasets", "mlcroissant", "PIL"}
    assert printed(codes["webdataset"], folder, tmp_path) == test
    assert printed(codes["datasets"], folder, tmp_path) == test
    assert printed(codes["PIL"], folder, tmp_path) == test[-1:]
    index = [
        [id_, caption, len(images)]
        for split in ("train", "validation", "test")
        for id_, caption, images in stored(dataset, split)  # type: ignore[arg-type]
    ]
    said = printed(codes["mlcroissant"], folder, tmp_path)
    assert said[: len(index)] == index
    pictures = {(id_, number): image for id_, number, image in said[len(index) :]}
    assert len(pictures) == len(said) - len(index)
    assert pictures == {(id_, number): image for id_, _, images in test for number, image in enumerate(images)}


LOADED = """
from os import getcwd
from datasets import load_dataset

for split, sets in load_dataset(getcwd()).items():
    for one in sets.with_format("numpy", columns=["latents.npy"], output_all_columns=True):
        about = one["json"]
        rest = {key: about[key] for key in about if key not in ("id", "caption", "images", "latents")}
        print(split, about["id"], rest, one["latents.npy"].astype(float).tolist())
"""


@pytest.mark.slow
def test_datasets_loads_all_of_it(dataset: Dataset, tmp_path: Path) -> None:
    """Every split, its latents, and what a set says beside its caption."""
    export.run(dataset.manifest, to=tmp_path / "out", store=dataset.store)
    manifest, expected = Manifest.read(dataset.manifest), []
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        sets = ImageSets(dataset.store, manifest, split)
        for one in (sets[number] for number in range(len(sets))):
            assert one.latents is not None
            about = dict(one.extras) | ({"generator": one.generator} if manifest.kind == "mis" else {})
            expected.append([split, one.id, about, one.latents.astype(float).tolist()])
    assert printed(LOADED, tmp_path / "out", tmp_path) == expected


CROISSANT = """
import os
os.environ["CROISSANT_CACHE"] = os.environ["HOME"]
import mlcroissant

dataset = mlcroissant.Dataset("croissant.json")
issues = dataset.metadata.ctx.issues
print(sorted(issues.errors), [issue for issue in issues.warnings if "datePublished" not in issue])
print([one.uuid for one in dataset.metadata.record_sets])
for row in dataset.records("index"):
    print(*(row["index/" + name] for name in ("offset", "images", "seeds")))
    print(*(row["index/" + name].decode() for name in ("id", "caption", "split", "shard")))
for row in dataset.records("test-pictures"):
    print(row["test-pictures/id"].decode(), row["test-pictures/number"], row["test-pictures/image"])
"""


@pytest.mark.slow
def test_croissant_is_valid_however_many_shards_there_are(
    mis: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a split with more than are listed the index is read alone."""
    monkeypatch.setattr(export, "LISTED", 2)
    export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    croissant = json.loads((tmp_path / "out" / "croissant.json").read_text())
    distribution = {one["@id"]: one for one in croissant["distribution"]}
    assert distribution["train-shards"]["includes"] == "data/train-*.tar"
    for name in [name for name in distribution if "." in name]:
        assert distribution[name]["sha256"] == file_digest(tmp_path / "out" / name)
    assert "data/test-00001-of-00002.tar" in distribution
    assert "data/train-00001-of-00003.tar" not in distribution
    issues, record_sets, *rows = printed(CROISSANT, tmp_path / "out", tmp_path)
    assert issues == [[], []]
    assert record_sets == [["validation-pictures", "test-pictures", "index"]]
    read = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert rows[: 2 * len(read) : 2] == [[row["offset"], row["images"], row["seeds"]] for row in read]
    keys = ("id", "caption", "split", "shard")
    assert rows[1 : 2 * len(read) : 2] == [[row[key] for key in keys] for row in read]
    assert len(rows[2 * len(read) :]) == 16

    monkeypatch.setattr(export, "LISTED", 1)
    export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    assert "has too many tars for it" in (tmp_path / "out" / "README.md").read_text()
    said = printed(snippets(tmp_path / "out")["mlcroissant"], tmp_path / "out", tmp_path)
    assert said == [[row["id"], row["caption"], row["images"]] for row in read]


def test_what_is_there_and_whole_is_not_copied_again(mis: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export.run(mis.manifest, to=folder, store=mis.store)
    first = files(folder)
    kept, lost, damaged, cut = sorted(folder.glob("data/t*.tar"))[:4]
    before = kept.stat()
    lost.unlink()
    content = bytearray(damaged.read_bytes())
    content[-2000] ^= 1
    damaged.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:1000])
    for name in ("README.md", "croissant.json", "index.parquet"):
        (folder / name).unlink()
    (folder / ".gitattributes").write_text("*.tar filter=lfs")
    export.run(mis.manifest, to=folder, store=mis.store)
    assert files(folder) == {**first, ".gitattributes": b"*.tar filter=lfs"}
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.slow
def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, "mis", shards=("train",) * 150)
    export.run(dataset.manifest, to=tmp_path / "whole", store=dataset.store)
    call = """
from pathlib import Path
from m2m.commands import export
from m2m.store import LocalStore
export.run(Path("mis.json"), to=Path("out"), store=LocalStore(Path("store")))
"""
    out, counts = tmp_path / "out", []
    for more in (20, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", call],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        goal, deadline = (counts[-1] if counts else 0) + more, time.monotonic() + 120
        while len(list(out.glob("data/*.tar"))) < goal:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(len(list(out.glob("data/*.tar"))))
        assert not (out / "README.md").exists()
        assert list(out.glob(".export.scratch.*")), "the kill left its drafts"
    assert counts[1] < 150
    before = {path.name: path.stat().st_ino for path in out.glob("data/*.tar")}
    export.run(dataset.manifest, to=out, store=dataset.store)
    assert files(out) == files(tmp_path / "whole")
    assert {name: (out / "data" / name).stat().st_ino for name in before} == before


class BadOnce(LocalStore):
    """A store on the way from which the first object is damaged."""

    fetched = 0

    def download(self, key: str, path: Path) -> None:
        super().download(key, path)
        if not self.fetched:
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        self.fetched += 1


def test_what_was_damaged_on_its_way_is_fetched_once_more(mis: Dataset, tmp_path: Path) -> None:
    store = BadOnce(Path(mis.store.uri))
    export.run(mis.manifest, to=tmp_path / "out", store=store)
    assert store.fetched == 7
    export.run(mis.manifest, to=tmp_path / "other", store=mis.store)
    assert files(tmp_path / "out") == files(tmp_path / "other")


def test_from_s3(s3_server: Any, tmp_path: Path) -> None:
    store = open_store(s3_server.uri, cache=tmp_path / "cache")
    dataset = write_dataset(tmp_path, "mis", store=store)
    export.run(dataset.manifest, to=tmp_path / "out", store=store)
    assert len(list(tmp_path.glob("cache/**/*.tar"))) == 1, "what is copied does not fill the cache"
    (tmp_path / "local").mkdir()
    local = write_dataset(tmp_path / "local", "mis")
    export.run(local.manifest, to=tmp_path / "other", store=local.store)
    assert files(tmp_path / "out") == files(tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "source", "licences", "said", "synthetic"),
    [
        (
            "mis",
            "world",
            ["apache-2.0", "openrail++"],
            "synthetic: the Stable Diffusion whose folder has the SHA-256 ddd",
            True,
        ),
        ("nvs", "world", ["other"], "synthetic: a program drew it (some photographs)", True),
        ("vpg", "folder", ["other"], "those of their source (some photographs), brought to one size; no model", False),
    ],
)
def test_the_card_says_on_what_terms_and_what_is_synthetic(
    kind: Kind, source: str, licences: list[str], said: str, synthetic: bool, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path, kind, source=source)
    export.run(dataset.manifest, to=tmp_path / "out", store=dataset.store)
    card = (tmp_path / "out" / "README.md").read_text()
    head = front(tmp_path / "out")
    assert (head["license"], head["size_categories"]) == (licences, ["n<1K"])
    assert ("synthetic" in head["tags"]) == synthetic
    assert head["configs"][0]["data_files"] == [
        {"split": split, "path": f"data/{split}-*.tar"} for split in ("train", "validation", "test")
    ]
    assert said in " ".join(card.split())
    croissant = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert said in croissant["rai:dataCollection"]
    terms = {"mis": "Licence of the weights that drew the images: CreativeML Open RAIL++-M."}
    assert terms.get(kind, "Licence of the pictures: that of each.") in card


@pytest.mark.parametrize(("sets", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (12_000_000, "10M<n<100M")])
def test_hubs_are_told_the_size(sets: int, category: str) -> None:
    shard = ShardEntry(
        key=f"shards/{'a' * 64}.tar", sha256="a" * 64, size=1, first_set="a", last_set="a", count=sets, split="train"
    )
    fields: dict[str, Any] = {"schema_version": 1, "images_per_set": 4, "redrawn": 0, "shards": (shard,)}
    head = export._front(Manifest(kind="mis", made_by=made_by("mis"), **fields), {"train": []}, [], synthetic=True)
    assert head["size_categories"] == [category]


def unlike(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").touch()


def another(path: Path) -> None:
    (path.parent / "another").mkdir()
    other = write_dataset(path.parent / "another", "nvs")
    export.run(other.manifest, to=path, store=other.store)


@pytest.mark.parametrize(
    ("occupy", "problem"),
    [
        (unlike, r"out holds thesis\.tex, which no export wrote; name a new or empty folder by --to"),
        (another, r"out holds the export of another dataset; name a new or empty folder by --to"),
        (lambda path: (path / "manifest.json").mkdir(parents=True), "out holds the export of another dataset"),
        (Path.touch, r"cannot write .*out/manifest\.json: its folder is a file"),
        (lambda path: path.symlink_to("/proc/out"), r"cannot write .*out/manifest\.json"),
    ],
)
def test_a_folder_that_is_no_place_for_it_stays_as_it_is(
    occupy: Callable[[Path], None], problem: str, mis: Dataset, tmp_path: Path
) -> None:
    occupy(tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=problem) as caught:
        export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "out") == before


def test_a_damaged_shard_is_named_and_the_rest_goes_on_when_it_is_mended(mis: Dataset, tmp_path: Path) -> None:
    shard = Manifest.read(mis.manifest).shards[2]
    path = Path(mis.store.uri) / shard.key
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(UserError, match=f"{shard.key} in the store .* is damaged; delete it and make it again"):
        export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    path.unlink()
    with pytest.raises(UserError, match=f"{shard.key} is not in the store"):
        export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    names = {"manifest.json", "data/train-00000-of-00003.tar", "data/train-00001-of-00003.tar"}
    assert set(files(tmp_path / "out")) == names
    path.write_bytes(content)
    export.run(mis.manifest, to=tmp_path / "out", store=mis.store)
    assert "README.md" in files(tmp_path / "out")


def test_a_manifest_that_cannot_be_exported_is_named(mis: Dataset, tmp_path: Path) -> None:
    store, entries = mis.store, [*Manifest.read(mis.manifest).shards]

    def refused(problem: str, entries: list[ShardEntry], made_by: dict[str, Any]) -> None:
        (tmp_path / "bad").mkdir(exist_ok=True)
        bad = write_manifest(tmp_path / "bad", "mis", entries, store, made_by)
        with pytest.raises(UserError, match=problem) as caught:
            export.run(bad.manifest, to=tmp_path / "out", store=store)
        assert "\n" not in str(caught.value)

    with pytest.raises(UserError, match=r"cannot read manifest .*nothing\.json"):
        export.run(tmp_path / "nothing.json", to=tmp_path / "out", store=store)
    refused("has no shards; make it again", [], made_by("mis"))
    refused(r"made_by does not say what a card needs \('captions'\)", entries, {})
    for without in ("stage", "parameters", "stable_diffusion"):
        told = {key: value for key, value in made_by("mis").items() if key != without}
        refused("made_by does not say what a card needs", entries, told)
    assert not (tmp_path / "out").exists(), "nothing is begun that cannot be finished"
    fewer = [*entries[:2], replace(entries[2], count=3)]
    refused("it holds 2 sets; the manifest says 3", fewer, made_by("mis"))
