"""How models are trained, and fine-tuned to a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from m2m.params.section import (
    Encoder,
    FrozenPart,
    LearningRate,
    PositiveInt,
    Precision,
    PredictionType,
    Probability,
    Section,
    SetSize,
    Task,
    Variant,
)


class ContextNoise(Section):
    """Noise on the context images in training, against exposure bias."""

    probability: Probability
    max_timestep: Annotated[int, Field(ge=1, le=999)]


class Ema(Section):
    """Exponential moving average of the weights, warmed up as min(decay, (1 + k) / (10 + k)) after k updates."""

    decay: Annotated[float, Field(ge=0, lt=1)]


class LearningParams(Section):
    """How a network learns, whatever it learns."""

    seed: int
    min_snr_gamma: Annotated[float, Field(ge=0)] = Field(description="min-SNR loss weighting; 0 turns it off")
    timestep_shift: Annotated[float, Field(ge=1)] = Field(
        description="training at more noise, where layout is decided: 1 is uniform, 3 has half of the steps above 3/4"
    )
    predict_first: bool = Field(
        description="learn to draw the first image of a set as well, from no context; off where one is always given"
    )
    guidance_dropout: Probability = Field(description="share of noisy positions that see the empty context")
    context_noise: ContextNoise
    context_swap: Probability = Field(
        description="share of context images, at any place, that are another set's: what was drawn may be wrong"
    )
    ema: Ema
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    warmup_images: Annotated[int, Field(ge=0)] = Field(description="linear warm-up of the learning rate")
    schedule: Literal["constant", "cosine"]
    precision: Precision = Field(description="of what the networks compute; weights and their averages are float32")
    gradient_accumulation: PositiveInt = Field(
        description="equal parts of a step: one after the other on a GPU, which saves memory, side by side on a CPU"
    )
    gradient_checkpointing: bool
    compile_blocks: bool = Field(
        description="torch.compile of each transformer block: minutes at the start, for a GPU or a long run to win back"
    )
    log_every: PositiveInt = Field(description="images seen between two points of the curves")
    preview_every: PositiveInt = Field(description="images seen between two preview grids")
    preview_sets: PositiveInt
    checkpoint_every: PositiveInt = Field(description="images seen between two checkpoints")


class TrainCommon(LearningParams):
    """What both variants share."""

    set_size: SetSize
    max_context: PositiveInt = Field(description="context images in the window: the given and the newest others")
    context_pool: PositiveInt = Field(
        description="M2M-Self: neighbouring tokens of a context image that are read as one at the finest level; 1: each"
    )
    prediction_type: PredictionType


class TrainVariant(Section):
    """What each variant sets for itself."""

    images: PositiveInt = Field(description="training images seen (sets x set_size), the clock of training")
    sets_per_step: PositiveInt = Field(description="sets in one optimizer step, over all ranks")
    learning_rate: LearningRate
    context_learning_rate: LearningRate = Field(
        description="peak for what reads the context images: keys, values, slots, DINOv2's projection"
    )


class TrainDino(TrainVariant):
    encoder: Encoder = Field(description="what reads the preceding images, frozen; CLIP's image tower, to compare")
    caption_start: Annotated[int, Field(ge=0)] = Field(
        description="training sets whose captions say, by least squares, what to read in DINOv2's tokens; 0: none"
    )


class TrainVariants(Section):
    self_: TrainVariant = Field(alias="self")
    dino: TrainDino

    def of(self, variant: Variant) -> TrainVariant:
        """The parameters of one variant."""
        return self.self_ if variant == "self" else self.dino


class TrainParams(Section):
    common: TrainCommon
    variant: TrainVariants


class FinetuneVariant(TrainVariant):
    frozen: tuple[FrozenPart, ...] = Field(description="parts of the U-Net that keep the parent's weights")


class FinetuneTask(Section):
    """One task: both variants learn it from the same sets."""

    set_size: SetSize
    self_: FinetuneVariant = Field(alias="self")
    dino: FinetuneVariant

    def of(self, variant: Variant) -> FinetuneVariant:
        """The parameters of one variant."""
        return self.self_ if variant == "self" else self.dino


class FinetuneParams(Section):
    """From a trained model to the paper's tasks: novel view synthesis and visual procedure generation."""

    common: LearningParams
    nvs: FinetuneTask
    vpg: FinetuneTask

    def of(self, task: Task) -> FinetuneTask:
        """The parameters of one task."""
        return self.nvs if task == "nvs" else self.vpg
