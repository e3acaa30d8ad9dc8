"""``m2m export``: a dataset in a folder that hubs and libraries know: nothing that reads it needs m2m."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from m2m.data.dataset import ImageSets, shard_problems
from m2m.data.sets import Shard, write_shard
from m2m.errors import MADE_AGAIN, UserError
from m2m.files import file_digest, has_content, new_file, scratch_folder, write_atomically
from m2m.manifest import Block, Manifest, ShardEntry, Split
from m2m.progress import progress
from m2m.store import Store

MARK = "manifest.json"
"""The dataset's manifest, by which an export knows its own folder again."""
ROWS = 1 << 16
"""Sets in a row group of the index, and in memory at a time."""
LISTED = 300
"""Shards of a split up to which Croissant lists each, with the pictures in them as records: `mlcroissant` unpacks all
of them before it gives the first. More are a set of files, whose pictures are read by other means."""
COLUMNS: Final = {
    "id": (pa.string(), "sc:Text", "Of the set."),
    "caption": (pa.string(), "sc:Text", "What the set shows; may be empty."),
    "split": (pa.string(), "sc:Text", "train, validation or test."),
    "shard": (pa.string(), "sc:Text", "The tar in which the set lies."),
    "offset": (pa.int64(), "sc:Integer", "Bytes of that tar before the set, whose members lie one after the other."),
    "images": (pa.int32(), "sc:Integer", "How many the set has."),
    "seeds": (pa.list_(pa.int64()), "sc:Integer", "Of each image's noise; null where none was drawn from noise."),
}
"""Of the index: the type in Parquet and in Croissant, and what it says."""
SCHEMA: Final = pa.schema([(name, type_) for name, (type_, *_) in COLUMNS.items()])
EXTRAS: Final = {
    "mis": {"name": "seeds", "sequence": "int64"},
    "nvs": {"name": "poses", "sequence": {"sequence": {"sequence": "float64"}}},
    "vpg": {"name": "steps", "sequence": "string"},
}
"""What a set's JSON holds beside what all of them hold, as a card tells it to `datasets`."""
HUB_LICENCES: Final = {
    "Apache-2.0": "apache-2.0",
    "Apache-2.0, as the project": "apache-2.0",
    "CreativeML Open RAIL++-M": "openrail++",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
    "not stated": "unknown",
}
DRAWN = (
    "Every picture is synthetic: the Stable Diffusion whose folder has the SHA-256 {stable_diffusion[sha256]} drew it."
    " None shows a person, place or event that is real, whatever it looks like. All may carry that model's errors and"
    " biases, and those of the captions that it was given. Say so where you show them or train on them."
)
WORLD = (
    "Every picture is synthetic: a program drew it ({source[name]}). It shows nothing real, and of the world no more"
    " than that program knows: some shapes, colours and styles."
)
FOLDER = (
    "The pictures are those of their source ({source[name]}), brought to one size; no model drew them. What and whom"
    " they show is as there, and its licence stays with them: {source[licence]}."
)
Named: TypeAlias = Mapping[Split, Sequence[tuple[str, ShardEntry]]]
"""The tars of each split that has some, with their names in the folder."""


def run(manifest: Path, *, to: Path, store: Store) -> str:
    """Fills a folder with shards under the names that hubs expect, then an index, Croissant metadata and a card.

    Killed and started again it goes on: what is there and whole is not copied again. The card comes last. All images
    of a set lie in one tar, those that were added to it, too.

    Returns:
        what lies there, in words.

    Raises:
        UserError: the manifest cannot be read or does not say what a card needs, the folder holds something else, a
            shard is missing or damaged, the store does not answer, or the disk refuses.
    """
    dataset = Manifest.read(manifest)
    if not dataset.shards:
        raise UserError(f"{manifest} has no shards; {MADE_AGAIN}")
    _check_folder(to, dataset)
    store.check()
    blocks = {split: _named([*dataset.blocks(split)]) for split in get_args(Split) if dataset.split(split)}
    named = {split: [(name, first) for name, (first, *_) in of_split] for split, of_split in blocks.items()}
    image_size = ImageSets(store, dataset, dataset.shards[0].split)[0].images.shape[1]
    try:
        _filled("export.md.jinja", _facts(dataset, named, image_size))
    except (UndefinedError, KeyError, TypeError) as error:
        raise UserError(f"{manifest}: made_by does not say what a card needs ({error}); {MADE_AGAIN}") from error
    write_atomically(to / MARK, dataset.canonical)
    tars = list[tuple[str, ShardEntry]]()
    with scratch_folder(to, ".export") as scratch, progress(len(dataset.shards), "export", unit="shards") as advance:

        def exported() -> Iterator[dict[str, Any]]:
            for name, block in chain.from_iterable(blocks.values()):
                entry, draft = block[0], scratch / "shard.tar"
                if len(block) > 1:
                    entry = _join(block, dataset, store, draft)
                    _put(draft, to / name)
                elif not (is_there := has_content(to / name, entry.sha256, entry.size)):
                    _copy(entry, store, draft)
                    _put(draft, to / name)
                tars.append((name, entry))
                yield from _rows(to / name, name, entry, dataset)
                for _ in block:
                    advance(skipped=len(block) == 1 and is_there)

        rows = exported()
        with pq.ParquetWriter(scratch / "index.parquet", SCHEMA) as index:
            while some := [*islice(rows, ROWS)]:
                index.write_table(pa.Table.from_pylist(some, SCHEMA))
        _put(scratch / "index.parquet", to / "index.parquet")
    named = {split: [one for one in tars if one[1].split == split] for split in named}
    facts = _facts(dataset, named, image_size) | {"index_sha256": file_digest(to / "index.parquet")}
    croissant = json.loads(_filled("croissant.json.jinja", facts))
    write_atomically(to / "croissant.json", (json.dumps(croissant, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(to / "README.md", _filled("export.md.jinja", facts).encode())
    size = sum(entry.size for _, entry in tars)
    return f"{len(tars)} shards, {sum(dataset.sets.values())} sets, {size} bytes; README.md says how to read"


def _named(blocks: Sequence[Block]) -> list[tuple[str, Block]]:
    digits = max(len(str(len(blocks))), 5)
    return [
        (f"data/{block[0].split}-{number:0{digits}}-of-{len(blocks):0{digits}}.tar", block)
        for number, block in enumerate(blocks)
    ]


def _check_folder(to: Path, dataset: Manifest) -> None:
    """Returns if there is no such folder, or nothing in it but an export of this dataset and hidden files of tools."""
    there = sorted(path.name for path in to.iterdir() if not path.name.startswith(".")) if to.is_dir() else []
    if there and MARK not in there:
        raise UserError(f"{to} holds {there[0]}, which no export wrote; name a new or empty folder by --to")
    if there and (not (to / MARK).is_file() or (to / MARK).read_bytes() != dataset.canonical):
        raise UserError(f"{to} holds the export of another dataset; name a new or empty folder by --to")


def _copy(shard: ShardEntry, store: Store, draft: Path) -> None:
    for _ in range(2):  # what was damaged on its way is right the second time
        store.download(shard.key, draft)
        if has_content(draft, shard.sha256, shard.size):
            return
    raise UserError(f"{shard.key} in the store {store.uri} is damaged; delete it and {MADE_AGAIN}")


def _join(block: Block, dataset: Manifest, store: Store, draft: Path) -> ShardEntry:
    """Writes one tar of the sets of a block, each with the images that were added to it."""
    split = block[0].split
    sets = ImageSets(store, dataset.model_copy(update={"shards": block}), split)
    return write_shard((sets[index] for index in range(len(sets))), draft, split)


def _put(draft: Path, path: Path) -> None:
    with new_file(path) as place:
        draft.replace(place)


def _rows(path: Path, name: str, entry: ShardEntry, dataset: Manifest) -> Iterator[dict[str, Any]]:
    """The index's, for the sets of a shard; no picture is read."""
    shard = Shard(path)
    sets = [shard.open_set(id_) for id_ in shard]
    if problems := shard_problems(entry, sets, dataset.set_sizes):
        raise UserError(f"{entry.key}: {problems[0]}")
    for one in sets:
        place = {"split": entry.split, "shard": name, "offset": shard.offsets[one.id]}
        yield {"id": one.id, "caption": one.caption, **place, "images": one.count, "seeds": one.extras.get("seeds")}


def _facts(dataset: Manifest, named: Named, image_size: int) -> dict[str, Any]:
    """What the card and Croissant's file are filled with."""
    made_by: Any = dataset.made_by
    if dataset.kind == "mis":
        statement, licences = DRAWN, [made_by["captions"]["licence"], made_by["stable_diffusion"]["licence"]]
    else:
        statement = FOLDER if made_by["parameters"]["source"] == "folder" else WORLD
        licences = [made_by["source"]["licence"]]
    sizes = " to ".join(map(str, sorted({dataset.set_sizes[0], dataset.set_sizes[-1]})))
    return {
        "manifest": dataset,
        "size": image_size,
        "sizes": sizes,
        "splits": {split: [entry for _, entry in named.get(split, ())] for split in get_args(Split)},
        "grew": len(dataset.shards) > sum(map(len, named.values())),
        "named": named,
        "listed": [split for split, shards in named.items() if len(shards) <= LISTED],
        "shown": "test" if "test" in named else next(iter(named)),
        "columns": COLUMNS,
        "licences": licences,
        "synthetic": statement != FOLDER,
        "statement": statement.format(**made_by),
        "front": yaml.safe_dump(
            _front(dataset, named, licences, synthetic=statement != FOLDER), sort_keys=False, default_flow_style=None
        ),
    }


def _front(dataset: Manifest, named: Named, licences: Sequence[str], *, synthetic: bool) -> dict[str, Any]:
    """What a hub and `datasets` read at the head of a card.

    The columns are spelled out, since `datasets` takes sets that differ in length for a mistake without.
    """
    made_by: Any = dataset.made_by
    sets, powers = sum(dataset.sets.values()), ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    place = max(len(str(sets)) - 3, 0)
    about = [("id", "string"), ("caption", "string"), ("images", "int64"), ("latents", "bool")]
    if dataset.kind == "mis":
        about.append(("generator", "string"))
    latents = made_by["parameters"]["latents"]
    return {
        "license": sorted({HUB_LICENCES.get(licence, "other") for licence in licences}),
        "size_categories": [f"{powers[place - 1]}<n<{powers[place]}" if place else "n<1K"],
        "tags": ["webdataset", "image-sets", *(["synthetic"] if synthetic else [])],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.tar"} for split in named],
            }
        ],
        "dataset_info": {
            "config_name": "default",
            "features": [
                {
                    "name": "json",
                    "struct": [{"name": name, "dtype": dtype} for name, dtype in about] + [EXTRAS[dataset.kind]],
                },
                *({"name": f"{number:03}.png", "dtype": "image"} for number in range(dataset.images_per_set)),
                {"name": "latents.npy", "sequence": {"sequence": {"sequence": {"sequence": latents}}}},
            ],
        },
    }


def _filled(template: str, facts: Mapping[str, Any]) -> str:
    templates = Environment(loader=PackageLoader("m2m", ""), undefined=StrictUndefined, trim_blocks=True)
    return templates.get_template(f"commands/{template}").render(facts)
