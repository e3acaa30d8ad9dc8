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
from m2m.params import Variant

NAMES: Mapping[Variant, str] = {"self": "M2M-Self", "dino": "M2M-DINO"}
ENCODERS: Mapping[Variant, str] = {
    "self": "the U-Net itself, at each of its resolutions",
    "dino": "a frozen DINOv2, whose patch tokens take the place of the text's",
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
) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads. Without a time: the same run has the same card.

    Args:
        parents: Stable Diffusion's folder first: the model is under its licence.
    """
    front_matter = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "license": "unknown" if parents[0].licence == UNSTATED else parents[0].licence,
        "tags": ["many-to-many-image-generation", f"m2m-{variant}"],
    }
    weights = "\n".join(f"| `{one.name}` | {one.licence} | `{one.digest}` |" for one in parents)
    return f"""\
---
{yaml.safe_dump(front_matter, sort_keys=False)}---

# {NAMES[variant]}

Many images in, many images out: from any number of pictures that belong together it draws more of them, one after the
other, each after seeing those before it. It is Stable Diffusion's U-Net with the text cross-attention replaced by
Image-Set Attention, after *Many-to-many Image Generation with Auto-regressive Diffusion Models* (Shen et al., 2024).
The preceding images are encoded by {ENCODERS[variant]}.

```python
from m2m.pipeline import M2MPipeline

pipeline = M2MPipeline.from_pretrained("path/to/this/folder")
images = pipeline(images=[picture], num_images=6, generator=0).images
```

## How it was made

It has seen {images_seen} images, in sets of {parameters["set_size"]}; its weights are averages over training.
Code: commit `{commit}`.

Dataset (`{manifest.kind}`), SHA-256 of its manifest: `{manifest.digest}`. {_sets(manifest)}
Captions: {_captions(manifest)}.

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
    return f"Sets of {manifest.images_per_set} images: {counts}."


def _captions(manifest: Manifest) -> str:
    """Where the dataset says that its captions come from, and on what terms."""
    source = manifest.made_by.get("captions")
    if not isinstance(source, dict):
        return UNSTATED
    return f"{source.get('name', UNSTATED)}; licence: {source.get('licence', UNSTATED)}"
