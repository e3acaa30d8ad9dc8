"""The model card: the README.md of a model folder, made from what is known of the run that made the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from m2m.files import folder_digest
from m2m.manifest import Manifest
from m2m.params import Task, Variant

NAMES: Mapping[Variant, str] = {"self": "M2M-Self", "dino": "M2M-DINO"}
ENCODERS: Mapping[Variant, str] = {
    "self": "the U-Net itself, at each of its resolutions",
    "dino": "the frozen vision transformer in `image_encoder/`, whose patch tokens take the place of the text's",
}
TASK_TAGS: Mapping[Task, str] = {"nvs": "novel-view-synthesis", "vpg": "visual-procedure-generation"}
TITLES: Mapping[Task | None, str] = {"nvs": " for novel views", "vpg": " for visual procedures"}
PURPOSES: Mapping[Task | None, str] = {
    "nvs": """

It is fine-tuned to draw an object as other cameras see it. `poses` are the world-to-camera matrices (n, 3, 4) of all
images, first those of the given ones: x right, y down, z into the picture.""",
    "vpg": """

It is fine-tuned to draw the next steps of a procedure, given the first ones in order.""",
}
EXAMPLES: Mapping[Task | None, str] = {
    "nvs": "images=[picture], num_images=6, poses=cameras",
    "vpg": "images=[first_step], num_images=4",
}
UNSTATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A folder of weights that went into the model."""

    name: str
    digest: str
    """of the folder, SHA-256"""
    licence: str

    @classmethod
    def of(cls, folder: Path) -> Parent:
        """The licence is what the front matter of the folder's own card states, as on the Hugging Face hub.

        Raises:
            UserError: there is no such folder.
        """
        card = folder / "README.md"
        stated = (metadata_load(card) if card.is_file() else None) or {}
        return cls(name=folder.name, digest=folder_digest(folder), licence=stated.get("license", UNSTATED))


def model_card(
    variant: Variant,
    *,
    images_seen: int,
    parameters: Mapping[str, Any],
    manifest: Manifest,
    parents: Sequence[Parent],
    commit: str,
    task: Task | None = None,
) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads. Without a time: the same run has the same card.

    Args:
        parents: Stable Diffusion's folder, or the model's that it comes from, first: the model is under its licence.
        task: what it is fine-tuned to.
    """
    front_matter = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "license": "unknown" if parents[0].licence == UNSTATED else parents[0].licence,
        "tags": ["many-to-many-image-generation", f"m2m-{variant}", *([TASK_TAGS[task]] if task else [])],
    }
    call = EXAMPLES.get(task, "images=[picture], num_images=6")
    weights = "\n".join(f"| `{one.name}` | {one.licence} | `{one.digest}` |" for one in parents)
    return f"""\
---
{yaml.safe_dump(front_matter, sort_keys=False)}---

# {NAMES[variant]}{TITLES.get(task, "")}

Many images in, many images out: from any number of pictures that belong together it draws more of them, one after the
other, each after seeing those before it. It is Stable Diffusion's U-Net with the text cross-attention replaced by
Image-Set Attention, after *Many-to-many Image Generation with Auto-regressive Diffusion Models* (Shen et al., 2024).
The preceding images are encoded by {ENCODERS[variant]}.{PURPOSES.get(task, "")}

```python
from m2m.pipeline import M2MPipeline

pipeline = M2MPipeline.from_pretrained("path/to/this/folder")
images = pipeline({call}, generator=0).images
```

## How it was made

It has seen {images_seen} images, in sets of {parameters["set_size"]}; its weights are averages over training.
Code: commit `{commit}`.

Dataset (`{manifest.kind}`), SHA-256 of its manifest: `{manifest.digest}`. {_sets(manifest)}
{_source(manifest)}.

| weights that it started from or holds | licence | SHA-256 of the folder |
|---|---|---|
{weights}

Parameters:

```yaml
{yaml.safe_dump(dict(parameters), sort_keys=False)}```

## What to expect

It draws what its Stable Diffusion can draw and goes on with what given pictures show: their biases and faults, too.
It was measured on held-out sets of its own kind only; the scores stand with the registered model version.
"""


def _sets(manifest: Manifest) -> str:
    counts = ", ".join(f"{count} for {split}" for split, count in manifest.sets.items())
    most = "up to " if len(manifest.set_sizes) > 1 else ""
    return f"Sets of {most}{manifest.images_per_set} images: {counts}."


def _source(manifest: Manifest) -> str:
    """Where the dataset says that its captions or pictures come from, and on what terms."""
    kind = "captions" if "captions" in manifest.made_by else "source"
    source = manifest.made_by.get(kind)
    if not isinstance(source, dict):
        return f"{kind.capitalize()}: {UNSTATED}"
    return f"{kind.capitalize()}: {source.get('name', UNSTATED)}; licence: {source.get('licence', UNSTATED)}"
