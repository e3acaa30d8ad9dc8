"""The typed parameters: one frozen model a stage, every value in YAML, nothing defaulted here.

The keys are those of ``params.yaml`` and of every file under ``profiles/``. A stage of ``dvc.yaml`` lists exactly the
keys that it reads, so the grouping below decides what a change makes stale.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Variant = Literal["self", "dino"]
SolverName = Literal["ddim", "dpmsolver++", "unipc"]

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A block of parameters: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Fit(Section):
    """How long and how fast one of the foundation's networks learns."""

    images: PositiveInt = Field(description="training pictures seen, with repetition")
    batch_size: PositiveInt
    learning_rate: LearningRate


class VaeFit(Fit):
    block_out_channels: tuple[int, ...]


class UnetFit(Fit):
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


class WorldCaptions(Section):
    """Captions by the grammar of the embedded world; the test ones name combinations held out of all training."""

    source: Literal["world"]
    seed: int
    train: PositiveInt = Field(description="captions, and so image sets, for training")
    test: PositiveInt = Field(description="captions for testing")


class Cc12mCaptions(Section):
    """Captions of Conceptual 12M: ``cc12m.tsv`` (address, tab, caption) or a Parquet file with a caption column."""

    source: Literal["cc12m"]
    seed: int
    path: str
    format: Literal["tsv", "parquet"]
    train: PositiveInt
    test: PositiveInt
    max_bad_fraction: Probability = Field(description="share of bad lines above which the stage stops")


class GenerateParams(Section):
    """How the MIS dataset is drawn (paper, section on MIS: N images for each caption from N latent noises)."""

    seed: int
    images_per_set: Annotated[int, Field(ge=2, le=999)]
    solver: SolverName
    num_inference_steps: PositiveInt
    guidance_scale: Annotated[float, Field(ge=1)]
    sets_per_shard: PositiveInt
    batch_size: PositiveInt = Field(description="images a batch; the last batch of a shard is padded to it")
    max_redraws: Annotated[int, Field(ge=0)] = Field(description="attempts after a bad image, each with its own noise")


class ContextNoise(Section):
    """Noise on the context images in training, against exposure bias."""

    probability: Probability
    max_timestep: Annotated[int, Field(ge=1, le=999)]


class Ema(Section):
    """Exponential moving average of the weights, warmed up as min(decay, (1 + k) / (10 + k)) after k updates."""

    decay: Annotated[float, Field(ge=0, lt=1)]


class TrainCommon(Section):
    """What both variants share."""

    seed: int
    set_size: Annotated[int, Field(ge=2)] = Field(description="images of a set that one training example uses")
    max_context: PositiveInt = Field(description="context images in the window: the first and the newest others")
    prediction_type: Literal["epsilon", "v_prediction"]
    min_snr_gamma: Annotated[float, Field(ge=0)] = Field(description="min-SNR loss weighting; 0 turns it off")
    guidance_dropout: Probability = Field(description="share of noisy positions that see the empty context")
    context_noise: ContextNoise
    context_swap: Probability = Field(
        description="share of context images, the first excepted, that are another set's: what was drawn may be wrong"
    )
    ema: Ema
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    warmup_images: Annotated[int, Field(ge=0)] = Field(description="linear warm-up of the learning rate")
    schedule: Literal["constant", "cosine"]
    precision: Literal["float32", "bfloat16"]
    gradient_accumulation: PositiveInt = Field(
        description="equal parts of a step: one after the other on a GPU, which saves memory, side by side on a CPU"
    )
    gradient_checkpointing: bool
    log_every: PositiveInt = Field(description="images seen between two points of the curves")
    preview_every: PositiveInt = Field(description="images seen between two preview grids")
    preview_sets: PositiveInt
    checkpoint_every: PositiveInt = Field(description="images seen between two checkpoints")


class TrainVariant(Section):
    """What each variant sets for itself."""

    images: PositiveInt = Field(description="training images seen (sets x set_size), the clock of training")
    sets_per_step: PositiveInt = Field(description="sets in one optimizer step, over all ranks")
    learning_rate: LearningRate
    context_learning_rate: LearningRate = Field(
        description="peak for what reads the context images: keys, values, null token, slots, DINOv2's projection"
    )


class TrainDino(TrainVariant):
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


class SubsetParams(Section):
    """The evaluation with more given images, on the first sets of the test split."""

    given: tuple[PositiveInt, ...]
    sets: PositiveInt


class GateParams(Section):
    """What makes a registered version the champion."""

    metric: str = Field(
        min_length=1,
        description="figure of metrics/evaluate-….json on which a version must beat the champion of the same dataset",
    )
    better: Literal["higher", "lower"] = Field(description="which of two figures is the better one")


class EvaluateParams(Section):
    """Evaluation after the paper: one given image, ten generated, every metric by position."""

    seed: int
    sets: PositiveInt
    given: PositiveInt
    generated: PositiveInt
    subset: SubsetParams
    solver: SolverName
    num_inference_steps: PositiveInt
    guidance_scale: Annotated[float, Field(ge=1)]
    context_timestep: Annotated[int, Field(ge=0, le=999)]
    sets_per_batch: PositiveInt
    gallery_sets: PositiveInt
    bootstrap: PositiveInt = Field(description="resamples for the confidence intervals")
    gate: GateParams


class ReportParams(Section):
    title: str


class Params(Section):
    """One whole parameter file."""

    foundation: Annotated[WorldFoundation | HubFoundation, Field(discriminator="source")]
    captions: Annotated[WorldCaptions | Cc12mCaptions, Field(discriminator="source")]
    generate: GenerateParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams
