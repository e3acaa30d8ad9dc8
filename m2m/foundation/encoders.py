"""What reads pictures of the world: the small CLIP, the small DINOv2, and the class network in Inception's place.

CLIP: pictures and captions in one space, by the symmetric contrastive loss (Radford et al., 2021).

DINOv2 is trained without labels: two looks at one scene belong together (SimCLR, Chen et al., 2020). That alone would
teach it to forget colours, in which the looks differ; so each patch must also tell its own. DINOv2 itself learned by
self-distillation from 142 million photographs. In minutes that teaches a small network colours but no shapes; two looks
at a thing that has moved, turned and grown between them, as in a film, teach it more.

The class network names what the world's pictures show, also through the autoencoder's eyes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from m2m.foundation.fit import Loss
from m2m.foundation.text_to_image import of_tokens
from m2m.models.classifier import WorldClassifier
from m2m.params import TransformerFit
from m2m.photos import as_signal
from m2m.world.corpus import OPEN
from m2m.world.grammar import MAX_STEPS, WORDS

SIDE, PATCH, HEADS = 64, 8, 4
SIZES: Mapping[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
"""Of the pictures that a processor gives."""
COLOUR = 2
"""The place of the colour among the traits of a corpus."""
NO_COLOUR = -2
"""What a picture shows without its colour: no caption that names one is true of it."""
GREY = 0.5
"""Of the pictures whose caption leaves the colour open, the share that CLIP is shown without any."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEMPERATURE = 0.1
PROJECTED = 128
HUE, COLOURLESS = 0.8, 0.2  # the shares of looks in other colours, and in none

GEOMETRY_WEIGHT = 20.0
NOISE = 6.0  # standard deviation in grey levels
CLASSES: Mapping[str, tuple[str, ...]] = {**WORDS, "step": tuple(map(str, range(MAX_STEPS + 1)))}


def build_clip(params: TransformerFit, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model; both towers have the same width and depth."""
    tower = {
        "hidden_size": params.hidden_size,
        "intermediate_size": 4 * params.hidden_size,
        "num_hidden_layers": params.layers,
        "num_attention_heads": HEADS,
        "projection_dim": params.hidden_size,
    }
    text, vision = {**tower, **of_tokens(tokenizer)}, {**tower, "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=params.hidden_size))


def matrices(network: nn.Module) -> list[str]:
    """The names of its transformers' weight matrices, for Muon."""
    return [name for name, weight in network.named_parameters() if ".encoder." in name and weight.ndim == 2]


def clip_loss(model: CLIPModel, images: Tensor, tokens: Tensor, shown: Tensor, said: Tensor) -> Loss:
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
        seen = as_signal(images[batch])  # (batch, 3, 64, 64)
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


def save_clip(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write a folder that ``CLIPModel`` and ``CLIPProcessor`` load."""
    model.save_pretrained(folder, safe_serialization=True)
    image_processor = CLIPImageProcessorPil(**SIZES, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


class DinoTraining(nn.Module):
    """The encoder, the projection in which looks are compared, and what reads colours; only the encoder is kept."""

    def __init__(self, params: TransformerFit) -> None:
        super().__init__()
        width = params.hidden_size
        self.encoder = Dinov2Model(
            Dinov2Config(
                hidden_size=width,
                num_hidden_layers=params.layers,
                num_attention_heads=HEADS,
                mlp_ratio=4,
                image_size=SIDE,
                patch_size=PATCH,
                # About 1 / sqrt(width): from the default 0.02, made for wide networks, one this narrow hardly departs.
                initializer_range=0.1,
            )
        )
        # On a CPU in bfloat16, going back through the fused one takes many times as long.
        self.encoder.set_attn_implementation("eager")
        self.projection = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, PROJECTED))
        self.colours = nn.Linear(width, 12)  # RGB of the four quarters of a patch

    def forward(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (n, 3, 64, 64) -> a unit vector of each (n, 128), their patches' colours (n, 64, 12)."""
        with torch.autocast(shown.device.type, torch.bfloat16):
            tokens = self.encoder(shown).last_hidden_state  # (n, 65, width)
        tokens = tokens.float()
        projected = self.projection(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
        return F.normalize(projected, dim=1), self.colours(tokens[:, 1:])


def quarters(shown: Tensor) -> Tensor:
    """The mean colour of each quarter of each patch: (n, 3, 64, 64) -> (n, 64, 12)."""
    return F.pixel_unshuffle(F.avg_pool2d(shown, PATCH // 2), 2).flatten(2).mT


def imagenet_pixels(images: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) -> normalised as ImageNet is, which is what DINOv2's processor gives."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def look(images: Tensor, draws: torch.Generator) -> Tensor:
    """A look in another light: other hues, contrast and brightness. uint8 -> normalised pixels.

    It is not moved: scenes move between their looks, and what is cut off at an edge only hides its shape.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(n, *shape, generator=draws)).to(images.device)

    turn = torch.where(uniform(0, 1) < HUE, uniform(-math.pi, math.pi), uniform(-0.15, 0.15))
    seen = torch.einsum("nij,njhw->nihw", hue_rotation(turn), images.float()).clamp(0, 255)
    seen = torch.where(uniform(0, 1, 1, 1, 1) < COLOURLESS, seen.mean(dim=1, keepdim=True), seen)
    middle = seen.mean(dim=(1, 2, 3), keepdim=True)
    seen = (seen - middle) * uniform(0.5, 1.5, 1, 1, 1) + middle * uniform(0.8, 1.2, 1, 1, 1)
    return imagenet_pixels(seen.clamp(0, 255))


def hue_rotation(angle: Tensor) -> Tensor:
    """Rotations of RGB about the grey axis by angles (n) in radians: (n, 3, 3)."""
    cosine, sine = angle.cos(), angle.sin() / math.sqrt(3)
    same, next_, last = (1 + 2 * cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    rows = ([same, next_, last], [last, same, next_], [next_, last, same])
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def dino_loss(network: DinoTraining, looks: Tensor) -> Loss:
    """Cross-entropy of finding a scene's other look among all of the batch (NT-Xent; Chen et al., equation 1).

    To it comes the squared error of the patches' colours.

    Args:
        looks: uint8 (2, n, 3, 64, 64), two of each scene.
    """

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        size = len(batch)
        shown = torch.cat([look(looks[0, batch], draws), look(looks[1, batch], draws)])  # (2b, 3, 64, 64)
        projected, colours = network(shown)  # (2b, 128), (2b, 64, 12)
        similarity = projected @ projected.T / TEMPERATURE  # (2b, 2b)
        itself = torch.eye(2 * size, dtype=torch.bool, device=shown.device)
        other = torch.arange(2 * size, device=shown.device).roll(size)
        found = F.cross_entropy(similarity.masked_fill(itself, -torch.inf), other)
        return found + F.mse_loss(colours, quarters(shown))

    return loss


def save_dino(folder: Path, encoder: Dinov2Model) -> None:
    """Write a folder that ``Dinov2Model`` and its image processor load."""
    encoder.save_pretrained(folder, safe_serialization=True)
    BitImageProcessorPil(**SIZES, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)


def naming_loss(
    network: WorldClassifier, images: Tensor, labels: Mapping[str, Tensor], geometry: Tensor, placed: Tensor
) -> Loss:
    """Cross-entropy of every head, and the squared error of place, size and angle where a picture has them.

    Args:
        images: uint8 (n, 3, 64, 64).
        labels: head name -> (n,) class indices.
        geometry: (n, 5); placed: (n,) whether a picture has one.
    """

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        shown = images[batch].float()
        noise = NOISE * torch.rand(len(batch), 1, 1, 1, generator=draws) * torch.randn(shown.shape, generator=draws)
        shown = shown + noise.to(shown.device)
        readings = network(shown.clamp(0, 255))
        named = sum(
            F.cross_entropy(readings.logits[head], labels[head][batch], label_smoothing=0.02) for head in labels
        )
        errors = (readings.geometry - geometry[batch]).square().mean(dim=1)
        measured = (errors * placed[batch]).sum() / placed[batch].sum().clamp_min(1)
        total: Tensor = named + GEOMETRY_WEIGHT * measured
        return total

    return loss


@torch.no_grad()
def read(network: WorldClassifier, images: Tensor, heads: Iterable[str], batch_size: int = 256) -> dict[str, Tensor]:
    """As what each picture, uint8 (n, 3, 64, 64), is read: head name -> class indices (n,)."""
    parts = [network(part).logits for part in torch.split(images, batch_size)]
    return {head: torch.cat([logits[head] for logits in parts]).argmax(dim=1) for head in heads}
