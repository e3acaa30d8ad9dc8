"""What stands beside the small networks: a model card for each folder, with the licence where hubs look for it."""

from __future__ import annotations

from pathlib import Path

from m2m.params import WorldFoundation

NETWORKS = {
    "stable-diffusion": "A small text-to-image model, a StableDiffusionPipeline folder configured like SD 2.1-base: "
    "f = 8, four latent channels, linear projections, its noise schedule.",
    "dino": "A small Dinov2Model, trained without labels: two looks at one scene belong together.",
    "clip": "A small CLIPModel: pictures and captions in one space.",
    "inception": "The class network that stands in for Inception-v3: 64 features for FID, classes for noun, colour, "
    "style and step, and readings of place, size and angle.",
}


def write_cards(folder: Path, params: WorldFoundation) -> None:
    """Write ``README.md`` into each network's folder."""
    for name, text in NETWORKS.items():
        card = (
            "---\nlicense: apache-2.0\n---\n\n"
            f"# {name}, on the embedded world\n\n{text}\n\n"
            f"Trained from scratch on {params.pictures} pictures, {params.views} rendered views and {params.steps} "
            "half-built procedures of 64 x 64 pixels, all drawn by this project "
            f"(seed {params.seed}, revision {params.revision}). It knows nothing else, "
            "and is here so that the whole pipeline runs without a network. How well it does on pictures that it never "
            "saw stands in `quality.json` beside this folder.\n"
        )
        (folder / name / "README.md").write_text(card)
