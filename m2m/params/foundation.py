"""What the foundation's models are: trained on the embedded world, or published."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from m2m.params.section import LearningRate, PositiveInt, PredictionType, Section


class Fit(Section):
    """How long and how fast one of the foundation's networks learns."""

    images: PositiveInt = Field(description="training pictures seen, with repetition")
    batch_size: PositiveInt
    learning_rate: LearningRate


class VaeFit(Fit):
    block_out_channels: tuple[int, ...]


class UnetFit(Fit):
    prediction_type: PredictionType
    block_out_channels: tuple[int, ...]
    attention_head_dim: tuple[int, ...] = Field(description="attention heads at each level (SD 2.1's name for them)")


class TransformerFit(Fit):
    hidden_size: PositiveInt
    layers: PositiveInt


class WorldFoundation(Section):
    """Small networks of the real classes, trained on pictures of the embedded world."""

    source: Literal["world"]
    revision: PositiveInt = Field(description="raise it to train the foundation again with the same parameters")
    seed: int
    pictures: PositiveInt = Field(description="distinct world pictures to learn from")
    views: PositiveInt = Field(description="distinct rendered views of 3D objects")
    steps: PositiveInt = Field(description="distinct half-built procedures")
    vae: VaeFit
    unet: UnetFit
    clip: TransformerFit
    dino: TransformerFit
    inception: Fit


class HubSnapshot(Section):
    """A repository on the Hugging Face hub at one commit."""

    repo: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class HubFile(Section):
    """A file at an address, with the SHA-256 that it must have."""

    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class HubFoundation(Section):
    """Published weights, pinned."""

    source: Literal["hub"]
    revision: PositiveInt
    stable_diffusion: HubSnapshot
    dino: HubSnapshot
    clip: HubSnapshot
    inception: HubFile
    perceptual: HubFile = Field(description="AlexNet as torchvision publishes it: what LPIPS compares pictures by")
