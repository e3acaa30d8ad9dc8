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

COLOUR = 2
"""The place of the colour among the traits of a corpus."""
NO_COLOUR = -2
"""What a picture shows without its colour: no caption that names one is true of it."""
GREY = 0.5
"""Of the pictures whose caption leaves the colour open, the share that is shown without any."""
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


def matrices(model: CLIPModel) -> list[str]:
    """The names of both transformers' weight matrices, which Muon trains in a quarter of AdamW's steps."""
    return [name for name, weight in model.named_parameters() if ".encoder." in name and weight.ndim == 2]


def pixels(images: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) -> what the processor of :func:`save` would give."""
    return images.float() / 127.5 - 1


def contrastive_loss(model: CLIPModel, images: Tensor, tokens: Tensor, shown: Tensor, said: Tensor) -> Loss:
    """Cross-entropy of similarities, over pictures and over captions; each caption true of a picture is right for it.

    Some pictures are shown without their colour, where the caption leaves it open: of shapes, colours and styles some
    combinations never occur in training, and a network that sees colours sooner than shapes would learn that instead.

    Args:
        images: uint8 (n, 3, 64, 64); tokens: (n, length).
        shown, said: (n, traits), what pictures show and captions name of it, `OPEN` where they leave it open.
    """

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        grey = torch.rand(len(batch), generator=draws).to(images.device) < GREY
        grey &= said[batch, COLOUR] == OPEN
        seen = pixels(images[batch])  # (batch, 3, 64, 64)
        seen = torch.where(grey[:, None, None, None], seen.mean(dim=1, keepdim=True), seen)
        showing = shown[batch].clone()
        showing[grey, COLOUR] = NO_COLOUR
        out = model(input_ids=tokens[batch], pixel_values=seen)
        true = true_of(showing, said[batch]).float()  # (pictures, captions)
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
