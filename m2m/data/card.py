"""The card of a dataset: what it is, how it was made, and on what terms, in Markdown beside the manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from m2m.manifest import Manifest, ShardEntry, Split

_USE = """\
Models learn from `train`; `validation` is to look at, to tune and to choose by; `test` is for the figures of what was
chosen, and for nothing else."""
_NAMES = {"openrail++": "CreativeML Open RAIL++-M", "apache-2.0": "Apache-2.0"}


def mis_card(manifest: Manifest, *, image_size: int) -> str:
    """The whole card. It says nothing but what the manifest knows, so the same dataset has the same card."""
    made_by = cast(dict[str, Any], manifest.made_by)
    captions, weights, n = made_by["captions"], made_by["stable_diffusion"], manifest.images_per_set
    splits = "\n".join(_row(manifest, split) for split in get_args(Split))
    parameters = "\n".join(f"| `{key}` | {value} |" for key, value in made_by["parameters"].items())
    return f"""\
---
pretty_name: Multi-Image Sets
task_categories: [image-to-image, text-to-image]
---

# Multi-Image Sets (MIS)

For each caption, Stable Diffusion drew {n} images of {image_size} x {image_size} pixels from {n} latent noises, so that
a set is coherent and each of its images unique (Shen et al., *Many-to-many Image Generation with Auto-regressive
Diffusion Models*, 2024). The images of a set have no order.

| split | sets | images | shards | MB |
|---|---|---|---|---|
{splits}

{_USE}

## How it was made

By the stage `generate` with these parameters:

| parameter | value |
|---|---|
{parameters}

- Captions: {captions["name"]}{": " if captions["mix"] else ""}{captions["mix"]}; SHA-256 of their ids, texts and splits
  `{captions["sha256"]}`.
- Stable Diffusion: SHA-256 of its folder `{weights["sha256"]}`.
- Images that were not finite, of one colour or, for a caption that does not ask for it, in a combination that is held
  out of training were drawn again with new noise: {manifest.redrawn} times.
- Each image's noise has a seed of its own, kept with the set. The same parameters, captions, weights and kind of
  processor give the same dataset, byte for byte.

## How to read it

The manifest beside this card names the shards; `m2m verify` proves that the store holds them. A shard is a WebDataset
tar: `ID.json` (id, caption, number of images, seeds), `ID.000.png` …, and `ID.latents.npy`, the scaled latents in
float32.

## Terms and limits

- Licence of the captions: {captions["licence"]}.
- Licence of the weights that drew the images: {weights["licence"]}. Its terms go with the images.
- The images show what a model believes, with its errors and biases. They are no record of anything real.
"""


_TASKS = {
    "nvs": (
        "Novel view synthesis",
        "Each set shows one object from {sizes} cameras.",
        "`poses`, a 3x4 world-to-camera matrix an image (OpenCV: x right, y down, z forward)",
    ),
    "vpg": (
        "Visual procedure generation",
        "Each set shows a procedure of {sizes} steps, an image a step, in order.",
        "`steps`, the text of each image",
    ),
}


def task_card(manifest: Manifest, *, image_size: int) -> str:
    """The whole card of a task's dataset, from what the manifest knows."""
    made_by = cast(dict[str, Any], manifest.made_by)
    title, shows, extras = _TASKS[manifest.kind]
    sizes = " to ".join(map(str, sorted({manifest.set_sizes[0], manifest.set_sizes[-1]})))
    splits = "\n".join(
        f"| {split} | {sum(shard.count for shard in shards)} | {len(shards)} | {_megabytes(shards)} |"
        for split in get_args(Split)
        for shards in [manifest.split(split)]
    )
    parameters = "\n".join(f"| `{key}` | {value} |" for key, value in made_by["parameters"].items())
    return f"""\
---
pretty_name: {title}
task_categories: [image-to-image]
---

# {title}

{shows.format(sizes=sizes)} The images have {image_size} x {image_size} pixels. A task of *Many-to-many Image Generation
with Auto-regressive Diffusion Models* (Shen et al., 2024).

| split | sets | shards | MB |
|---|---|---|---|
{splits}

{_USE} No set's subject is in two splits.

## How it was made

By the stage `{made_by["stage"]}` with these parameters:

| parameter | value |
|---|---|
{parameters}

- Source: {made_by["source"]["name"]}. Sets left out because their files are bad: {made_by.get("left_out", 0)}.
- Latents: by the VAE whose folder has the SHA-256 `{made_by["vae"]["sha256"]}`.
- The same parameters, source, weights and kind of processor give the same dataset, byte for byte.

## How to read it

The manifest beside this card names the shards; `m2m verify` proves that the store holds them. A shard is a WebDataset
tar: `ID.json` (id, caption, number of images, {extras}), `ID.000.png` …, and `ID.latents.npy`, the scaled latents in
float32.

## Terms

- Licence of the pictures: {made_by["source"]["licence"]}.
"""


def stated_licence(folder: Path) -> str:
    """The licence that a model folder's card (``README.md`` with front matter, as on the Hugging Face hub) states."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.match(r"---\n(?:(?!---).*\n)*?license: *(\S+) *\n", text)
    return _NAMES.get(match[1], match[1]) if match else "not stated"


def _row(manifest: Manifest, split: Split) -> str:
    shards = manifest.split(split)
    sets = sum(shard.count for shard in shards)
    return f"| {split} | {sets} | {sets * manifest.images_per_set} | {len(shards)} | {_megabytes(shards)} |"


def _megabytes(shards: Sequence[ShardEntry]) -> str:
    return f"{sum(shard.size for shard in shards) / 1e6:.1f}"
