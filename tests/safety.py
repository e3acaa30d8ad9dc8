"""A small safety checker of the published one's class and format, that rejects just the pictures it was taught to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

WIDTH = 128
"""Features of a picture: as many pictures can be told apart."""
SIDE = 32
"""Pixels that it sees."""


def write_safety_checker(
    folder: Path, *, rejected: NDArray[np.uint8], accepted: NDArray[np.uint8], subfolders: bool = False
) -> None:
    """Writes a `StableDiffusionSafetyChecker` of random features; by these, pictures are told apart.

    Args:
        rejected, accepted: (n, H, W, 3), of which no other picture is known, fewer than `WIDTH` in all.
        subfolders: as a repository of Stable Diffusion 1.x has it.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    tower = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vision = {**tower, "image_size": SIDE, "patch_size": 8, "initializer_factor": 20.0}
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(vision_config=vision, text_config={**tower, **words}, projection_dim=2)
        ).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pictures = [*rejected, *accepted]
    pixels = processor(pictures, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.no_grad():
        features = checker.vision_model(pixels).pooler_output.double()  # (n, WIDTH)
        # Two directions: one of what is rejected, one of the rest. The first is the only concept.
        kinds = torch.eye(2, dtype=torch.float64)[[0] * len(rejected) + [1] * len(accepted)]  # (n, 2)
        checker.visual_projection.weight.copy_(torch.linalg.lstsq(features, kinds, driver="gelsd").solution.T)
        for concepts in (checker.concept_embeds, checker.special_care_embeds):
            concepts.copy_(torch.tensor([1.0, 0.0]).expand_as(concepts))
        checker.concept_embeds_weights.fill_(0.9)
        checker.special_care_embeds_weights.fill_(1.0)
    checker.save_pretrained(folder / "safety_checker" if subfolders else folder)
    processor.save_pretrained(folder / "feature_extractor" if subfolders else folder)


def with_safety_checker(stable_diffusion: Path, folder: Path, **pictures: NDArray[np.uint8]) -> Path:
    """A copy of a Stable Diffusion's folder that has a safety checker."""
    shutil.copytree(stable_diffusion, folder)
    write_safety_checker(folder / "safety_checker", **pictures)
    (folder / "safety_checker" / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    return folder
