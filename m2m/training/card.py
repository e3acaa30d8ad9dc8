"""The model card: the README.md of a model folder, from what made its weights and nothing else.

The same weights have the same card: the commit, the time and the run stand with the run in MLflow, and so with each
registered version. The text is a template, which no result depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from jinja2 import Environment, PackageLoader, StrictUndefined

from m2m.manifest import Manifest
from m2m.params import Task, Variant

TASK_TAGS: Mapping[Task, str] = {"nvs": "novel-view-synthesis", "vpg": "visual-procedure-generation"}


def model_card(
    variant: Variant,
    task: Task | None,
    *,
    images_seen: int,
    parameters: Mapping[str, Any],
    manifest: Manifest,
    parents: Mapping[Path, str],
) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        task: what it is fine-tuned to.
        parents: the folders of weights that went in, with their digests: Stable Diffusion's, or the model's that it
            comes from, first. The model is under its licence, as the front matter of that folder's own card states it.
    """
    rows = [(folder.name, _stated_licence(folder), digest) for folder, digest in parents.items()]
    front_matter = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "license": rows[0][1] or "unknown",
        "tags": ["many-to-many-image-generation", f"m2m-{variant}", *([TASK_TAGS[task]] if task else [])],
    }
    loader = PackageLoader("m2m.training", "")
    templates = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return templates.get_template("card.md.jinja").render(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False),
        variant=variant,
        task=task,
        images_seen=images_seen,
        set_size=parameters["set_size"],
        parameters=yaml.safe_dump(dict(parameters), sort_keys=False),
        manifest=manifest,
        parents=rows,
        unstated="not stated",
    )


def _stated_licence(folder: Path) -> str | None:
    """By the hub's name, not by the one that the card of a dataset shows (`m2m.manifest.stated_licence`)."""
    card = folder / "README.md"
    return ((metadata_load(card) if card.is_file() else None) or {}).get("license")
