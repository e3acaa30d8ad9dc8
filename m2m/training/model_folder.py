"""What training hands over: a diffusers pipeline folder with the averaged weights and a card that says what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2m.manifest import Manifest
from m2m.pipeline import M2MPipeline
from m2m.training.ema import Ema
from m2m.training.folders import new_folder

VARIANTS = {
    "self": "M2M-Self: the U-Net itself encodes the preceding images",
    "dino": "M2M-DINO: a DINOv2 encoder encodes the preceding images",
}


def write_model(pipeline: M2MPipeline, ema: Ema, out: Path, *, card: str) -> None:
    """Makes `out` the pipeline's folder, whole or not at all; the same weights and card give the same bytes.

    Raises:
        UserError: the disk refuses.
    """
    with ema.applied(), new_folder(out) as draft:
        # Where parts were loaded from is this machine's business.
        pipeline.vae.register_to_config(_name_or_path="")
        pipeline.save_pretrained(draft, safe_serialization=True)
        (draft / "README.md").write_text(card, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """All that the card tells of where a model comes from."""
