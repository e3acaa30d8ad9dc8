"""How models are trained, fine-tuned to a task, measured and told; and the whole parameter file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from m2m.params import datasets
from m2m.params.datasets import (
    Count,
    Drawn,
    LearningRate,
    PositiveInt,
    Precision,
    PredictionType,
    Probability,
    Section,
    Task,
    Variant,
)

Encoder = Literal["dino", "clip"]
"""Networks of the foundation that can read images, by the names of their folders."""
EvaluatedTask = Literal["mis", "nvs", "vpg"]
"""`Task`, or to continue image sets, for which models are trained first."""
FrozenPart = Literal["convolutions", "self_attention", "image_set_attention", "feed_forward"]
SetSize = Annotated[int, Field(ge=2, description="images of a set that one training example uses, or all if fewer")]


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
    warmup_images: Count = Field(description="linear warm-up of the learning rate")
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


class VariantLearning(Section):
    """What each variant sets for itself, whatever it learns."""

    images: PositiveInt = Field(description="training images seen (sets x set_size), the clock of training")
    sets_per_step: PositiveInt = Field(description="sets in one optimizer step, over all ranks")
    learning_rate: LearningRate
    context_learning_rate: LearningRate = Field(
        description="peak for what reads the context images: keys, values, slots, DINOv2's projection"
    )


class TrainVariant(VariantLearning):
    """What each variant sets for itself when it learns to continue image sets."""

    start: str | None = Field(
        description="folder of a trained model to train on from; null: Stable Diffusion's weights are the start"
    )


class TrainDino(TrainVariant):
    encoder: Encoder = Field(description="what reads the preceding images, frozen; CLIP's image tower, to compare")
    caption_start: Count = Field(
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


class FinetuneVariant(VariantLearning):
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


class LongParams(Section):
    """Longer continuations of the first sets, to see whether they drift."""

    given: PositiveInt
    generated: PositiveInt
    sets: Count = Field(description="0: none are drawn")


class ComparedParams(Section):
    """What is compared with the model at a price: drawn anew for the first sets."""

    sets: Count = Field(description="0: none are drawn")


class ProbeParams(Section):
    """Given pictures exchanged with each other, to see whether their places matter."""

    sets: Count = Field(description="0: none are drawn")
    generated: PositiveInt


class GateParams(Section):
    """What makes a registered version the champion."""

    metric: str = Field(
        min_length=1,
        description="figure validation/… on which a version must beat the champion of the same dataset",
    )
    better: Literal["higher", "lower"] = Field(description="which of two figures is the better one")
    require: dict[str, float] = Field(description="figures that must be at least so much, whoever the champion is")


class DrawingParams(Drawn):
    """How many sets an evaluation draws and how, and what makes a version the champion."""

    sets: PositiveInt
    validation_sets: PositiveInt = Field(description="for the gate; of MIS, after `main` given images")
    context_timestep: Annotated[int, Field(ge=0, le=999)]
    drawn_context: Annotated[
        Count | None,
        Field(description="how many drawn images later ones read, the first of them; null: the newest that fit"),
    ]
    sets_per_batch: PositiveInt
    precision: Precision = Field(description="of the networks that draw; those that measure compute in float32")
    gallery_sets: PositiveInt
    bootstrap: PositiveInt = Field(description="resamples for the confidence intervals")
    gate: GateParams


class EvaluateMis(DrawingParams):
    """Evaluation after the paper, every metric by position, and of whether all given images are read."""

    given: Annotated[tuple[PositiveInt, ...], Field(min_length=1, description="how many images are given, ascending")]
    generated: PositiveInt = Field(description="images drawn after each number of given ones")
    main: PositiveInt = Field(description="the number of given images whose table is the paper's; one of `given`")
    long: LongParams
    compared: ComparedParams
    probes: ProbeParams

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.main not in self.given or list(self.given) != sorted(set(self.given)):
            raise ValueError(
                f"given is {list(self.given)}, expected ascending numbers, and main, {self.main}, among them"
            )
        return self


class EvaluateNvs(DrawingParams):
    """Novel views: all views of a set that are not given, against the true ones."""

    given: Annotated[tuple[PositiveInt, PositiveInt], Field(description="fewer and more given views, compared")]


class EvaluateVpg(DrawingParams):
    """Visual procedures: from the first step, all that follow."""


class EvaluateParams(Section):
    mis: EvaluateMis
    nvs: EvaluateNvs
    vpg: EvaluateVpg

    def of(self, task: EvaluatedTask) -> EvaluateMis | EvaluateNvs | EvaluateVpg:
        """The parameters of one task."""
        return self.mis if task == "mis" else self.nvs if task == "nvs" else self.vpg


class SamplingParams(Drawn):
    """Time and operations of an image after given ones, beside Stable Diffusion's after a caption."""

    given: Annotated[tuple[PositiveInt, ...], Field(min_length=1, description="how many images are given, each timed")]
    num_inference_steps: Annotated[int, Field(ge=2, description="denoising steps of an image")]
    guidance_scale: Annotated[float, Field(gt=1, description="all sides draw with classifier-free guidance")]
    batch_size: PositiveInt = Field(description="images drawn at once, each of a set of its own")
    precision: Precision = Field(description="of all networks")
    repeats: PositiveInt = Field(description="turns of which the median counts; one more, before, warms up")


class ReportParams(Section):
    title: str


class Params(Section):
    """One whole parameter file."""

    foundation: Annotated[datasets.WorldFoundation | datasets.HubFoundation, Field(discriminator="source")]
    captions: Annotated[datasets.WorldCaptions | datasets.Cc12mCaptions, Field(discriminator="source")]
    generate: datasets.GenerateParams
    views: Annotated[datasets.WorldViews | datasets.FolderViews, Field(discriminator="source")]
    procedures: Annotated[datasets.WorldProcedures | datasets.FolderProcedures, Field(discriminator="source")]
    train: TrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    sampling: SamplingParams
    report: ReportParams
