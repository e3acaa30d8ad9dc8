"""A model's card names the terms of all that went in, those of its parent's parts included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load
from pydantic import JsonValue

from m2m.manifest import Manifest
from m2m.training.card import model_card

MIS: dict[str, JsonValue] = {
    "stage": "generate",
    "captions": {"name": "Conceptual 12M", "licence": "its own: acknowledge Google", "mix": ""},
    "stable_diffusion": {"licence": "CreativeML Open RAIL++-M", "sha256": "0f" * 32},
}
VIEWS: dict[str, JsonValue] = {"stage": "views", "source": {"name": "renderings", "licence": "that of each object"}}
OF_MIS = [
    "Captions: Conceptual 12M; licence: its own: acknowledge Google",
    "Images for these captions: drawn by Stable Diffusion; licence: CreativeML Open RAIL++-M",
    "Weights: stable-diffusion; licence: openrail++",
    "Weights: dino; licence: not stated",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stable-diffusion").mkdir()
    (tmp_path / "stable-diffusion" / "README.md").write_text("---\nlicense: openrail++\n---\n")
    (tmp_path / "m2m-dino").mkdir()
    return tmp_path


def card(folder: Path, *parents: str, made_by: dict[str, JsonValue], task: Any = None) -> tuple[str, list[str]]:
    """A card, which becomes that of a model in the folder, and the terms that stand at its top."""
    manifest = Manifest(
        schema_version=1,
        kind=task or "mis",
        made_by=made_by,
        images_per_set=9,
        redrawn=0,
        shards=(),
    )
    text = model_card(
        "dino",
        task,
        images_seen=9,
        parameters={"set_size": 9},
        manifest=manifest,
        parents={folder / name: "0f" * 32 for name in parents},
    )
    path = folder / "m2m-dino" / "README.md"
    path.write_text(text)
    return text, metadata_load(path)["terms"]


def test_it_names_the_terms_of_captions_images_and_weights(folder: Path) -> None:
    text, terms = card(folder, "stable-diffusion", "dino", made_by=MIS)
    assert terms == OF_MIS
    assert "## Terms\n" in text
    assert all(f"\n- {term}\n" in text for term in terms)
    assert "No safety checker is part of it" in text


def test_what_its_parent_was_made_of_is_named_once_more(folder: Path) -> None:
    card(folder, "stable-diffusion", "dino", made_by=MIS)
    text, terms = card(folder, "m2m-dino", made_by=VIEWS, task="nvs")
    own = ["Pictures: renderings; licence: that of each object", "Weights: m2m-dino; licence: openrail++"]
    assert terms == own + OF_MIS
    assert all(f"\n- {term}\n" in text for term in terms)
    assert card(folder, "m2m-dino", made_by=VIEWS, task="nvs")[1] == terms, "each of them once"


def test_what_nobody_states_is_said_to_be_not_stated(folder: Path) -> None:
    _, terms = card(folder, "dino", made_by={"captions": {"name": "some"}})
    assert terms == ["Captions: some; licence: not stated", "Weights: dino; licence: not stated"]
