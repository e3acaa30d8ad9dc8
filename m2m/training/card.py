"""The model card: the README.md of a model folder, from what made its weights and nothing else.

The same weights have the same card: the commit, the time and the run stand with the run in MLflow, and so with each
registered version. The text is a template, which no result depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from jinja2 import Environment, PackageLoader, StrictUndefined

from m2m.files import folder_digest
from m2m.manifest import Manifest
from m2m.params import Task, Variant

TASK_TAGS: Mapping[Task, str] = {"nvs": "novel-view-synthesis", "vpg": "visual-procedure-generation"}
UNSTATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A folder of weights that went into the model."""

    folder: Path
    digest: str
    """of the folder, SHA-256"""
    licence: str

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def of(cls, folder: Path) -> Parent:
        """The licence is what the front matter of the folder's own card states, as on the Hugging Face hub.

        Raises:
            UserError: there is no such folder.
        """
        card = folder / "README.md"
        stated = (metadata_load(card) if card.is_file() else None) or {}
        return cls(folder=folder, digest=folder_digest(folder), licence=stated.get("license", UNSTATED))


def model_card(
    variant: Variant,
    *,
    images_seen: int,
    parameters: Mapping[str, Any],
    manifest: Manifest,
    parents: Sequence[Parent],
    task: Task | None = None,
) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads.

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
        parents=parents,
        unstated=UNSTATED,
    )
