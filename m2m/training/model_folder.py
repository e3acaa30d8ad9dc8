"""What training hands over: a diffusers pipeline folder with the averaged weights, and a card that tells of them."""

from __future__ import annotations

from pathlib import Path

from m2m.files import write_digests
from m2m.pipeline import M2MPipeline
from m2m.training.ema import Ema
from m2m.training.folders import new_folder


def write_model(pipeline: M2MPipeline, ema: Ema, out: Path, *, card: str) -> None:
    """Makes `out` the pipeline's folder, whole or not at all; the same weights and card give the same bytes.

    Raises:
        UserError: the disk refuses.
    """
    # Where it was loaded from on this machine is nobody's business, and would differ between machines.
    pipeline.vae.register_to_config(_name_or_path="")
    with ema.applied(), new_folder(out) as draft:
        pipeline.save_pretrained(draft, safe_serialization=True)
        (draft / "README.md").write_text(card, encoding="utf-8")
        write_digests(draft)
