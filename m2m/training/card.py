"""The model card: the README.md of a model folder, from what made its weights and nothing else.

The same weights have the same card: the commit, the time and the run stand with the run in MLflow, and so with each
registered version. The text is a template, which no result depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from jinja2 import Environment, PackageLoader, StrictUndefined

from m2m.manifest import Manifest
from m2m.params import Task, Variant

UNSTATED = "not stated"
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
            comes from, first. The model is under its licence, as the front matter of that folder's own card states it;
            further terms that their cards name hold, too.
    """
    cards = {folder: _front_matter(folder) for folder in parents}
    rows = [(folder.name, cards[folder].get("license"), digest) for folder, digest in parents.items()]
    terms = [*_terms(manifest), *(f"Weights: {name}; licence: {licence or UNSTATED}" for name, licence, _ in rows)]
    # What a parent was made of, this model is made of, too.
    terms += [term for card in cards.values() for term in _listed_terms(card) if term not in terms]
    front_matter = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "license": rows[0][1] or "unknown",
        "tags": ["many-to-many-image-generation", f"m2m-{variant}", *([TASK_TAGS[task]] if task else [])],
        "terms": terms,
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
        terms=terms,
        unstated=UNSTATED,
    )


def _listed_terms(card: Mapping[str, Any]) -> list[str]:
    """The terms that the front matter of a card lists; somebody else's may say something there that is no list."""
    terms = card.get("terms")
    return [str(term) for term in terms] if isinstance(terms, list) else []


def _terms(manifest: Manifest) -> Iterator[str]:
    """Of what a dataset's manifest names."""
    words = {
        "captions": "Captions: {name}",
        "stable_diffusion": "Images for these captions: drawn by Stable Diffusion",
        "source": "Pictures: {name}",
    }
    for key, text in words.items():
        if isinstance(known := manifest.made_by.get(key), Mapping):
            name = text.format(name=known.get("name", UNSTATED))
            yield f"{name}; licence: {known.get('licence', UNSTATED)}"


def _front_matter(folder: Path) -> dict[str, Any]:
    """Of a folder's own card: its licence stands there by the hub's name, not by that which a dataset's card shows."""
    card = folder / "README.md"
    return (metadata_load(card) if card.is_file() else None) or {}
