"""The small CLIP: pictures and captions in one space, by the symmetric contrastive loss (Radford et al., 2021)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from m2m.foundation.fit import Loss
from m2m.params import TransformerFit
from m2m.world.corpus import OPEN

PATCH = 8
SIDE = 64
HEADS = 4
MEAN = STD = (0.5, 0.5, 0.5)


def build(params: TransformerFit, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model; both towers have the same width and depth."""
    tower = {
        "hidden_size": params.hidden_size,
        "intermediate_size": 4 * params.hidden_size,
        "num_hidden_layers": params.layers,
        "num_attention_heads": HEADS,
        "projection_dim": params.hidden_size,
    }
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, **words, **special},
            vision_config={**tower, "image_size": SIDE, "patch_size": PATCH},
            projection_dim=params.hidden_size,
        )
    )


def pixels(images: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) -> what the processor of :func:`save` would give."""
    return images.float() / 127.5 - 1


def contrastive_loss(model: CLIPModel, images: Tensor, tokens: Tensor, shown: Tensor, said: Tensor) -> Loss:
    """Cross-entropy of similarities, over pictures and over captions; each caption true of a picture is right for it.

    Args:
        images: uint8 (n, 3, 64, 64); tokens: (n, length).
        shown, said: (n, traits), what pictures show and captions name of it, `OPEN` where they leave it open.
    """

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:  # noqa: ARG001
        out = model(input_ids=tokens[batch], pixel_values=pixels(images[batch]))
        true = true_of(shown[batch], said[batch]).float()  # (pictures, captions)
        by_image = F.cross_entropy(out.logits_per_image, true / true.sum(dim=1, keepdim=True))
        by_text = F.cross_entropy(out.logits_per_text, true.T / true.T.sum(dim=1, keepdim=True))
        return (by_image + by_text) / 2

    return loss


def true_of(shown: Tensor, said: Tensor) -> Tensor:
    """Whether each picture (n, traits) shows all that each caption (m, traits) names: bool (n, m)."""
    return ((said[None] == OPEN) | (said[None] == shown[:, None])).all(dim=2)


def save(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write a folder that ``CLIPModel`` and ``CLIPProcessor`` load."""
    model.save_pretrained(folder, safe_serialization=True)
    size = {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=size, image_mean=list(MEAN), image_std=list(STD)
    )
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
