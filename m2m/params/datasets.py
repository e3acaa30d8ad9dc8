"""What all blocks of parameters share; and the weights to start from, captions, and the datasets of image sets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Variant = Literal["self", "dino"]
Task = Literal["nvs", "vpg"]
PredictionType = Literal["epsilon", "v_prediction"]
SolverName = Literal["ddim", "dpmsolver++", "unipc"]
Precision = Literal["float32", "bfloat16"]
"""Of a network's weights and of what it computes; names of torch's dtypes."""

LatentPrecision = Annotated[Literal["float32", "float16"], Field(description="of the latents that are stored")]

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A block of parameters: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Drawn(Section):
    """How a diffusion model draws."""

    seed: int
    solver: SolverName
    num_inference_steps: PositiveInt
    guidance_scale: Annotated[float, Field(ge=1)]


class SplitSizes(Section):
    """How many image sets each split has, or captions for a set each."""

    train: PositiveInt = Field(description="image sets for training")
    validation: PositiveInt = Field(description="image sets for validation")
    test: PositiveInt = Field(description="image sets for testing")


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
    safety_checker: HubSnapshot = Field(
        description="a repository of Stable Diffusion 1.x, of which its safety checker alone is taken"
    )


class CaptionCounts(SplitSizes):
    """How many captions there are, and by how many they grew."""

    more: tuple[PositiveInt, ...] = Field(
        description="further captions for training, behind all that were there: each number is one extension"
    )


class WorldCaptions(CaptionCounts):
    """Captions by the grammar of the embedded world; no combination that one split names in full is in another.

    As many captions of pictures are of each kind, by what they name and what they leave open.
    Those for training tell all that its Stable Diffusion can draw, in any mixture: what is left out of it, training on
    the sets forgets. Validation and test are on pictures.
    """

    source: Literal["world"]
    seed: int
    views: Count = Field(description="how many of the captions for training tell of a rendered object")
    steps: Count = Field(description="how many of them tell of a step of a procedure")

    @model_validator(mode="after")
    def _pictures_are_left(self) -> Self:
        if self.views + self.steps > self.train:
            raise ValueError(f"views + steps are {self.views + self.steps}; expected at most train, {self.train}")
        return self


class Cc12mCaptions(CaptionCounts):
    """Captions of Conceptual 12M: ``cc12m.tsv`` (address, tab, caption) or a Parquet file with a caption column."""

    source: Literal["cc12m"]
    seed: int
    path: str
    format: Literal["tsv", "parquet"]
    max_bad_fraction: Probability = Field(description="share of bad lines above which the stage stops")
    blocklist: str | None = Field(
        description="file of words and phrases, one a line: captions with one of them are left out; null: none are"
    )


MAX_IMAGES = 999
"""Of a set: their files are numbered by three digits."""


class GenerateParams(Drawn):
    """How the MIS dataset is drawn (paper, section on MIS: N images for each caption from N latent noises)."""

    images_per_set: Annotated[int, Field(ge=2, le=MAX_IMAGES)]
    more_images: tuple[PositiveInt, ...] = Field(
        description="further images of each set, in shards of their own: each number is one extension"
    )
    extends: str | None = Field(
        description="manifest of this dataset as it was: its shards stay, whatever version of the code drew them"
    )
    sets_per_shard: PositiveInt
    batch_size: PositiveInt = Field(description="images a batch; the last batch of a shard is padded to it")
    precision: Precision = Field(description="of the networks that draw; the solver's own arithmetic is float32")
    latents: LatentPrecision
    max_redraws: Count = Field(description="attempts after a bad image, each with its own noise")
    safety_checker: bool = Field(
        description="Stable Diffusion's own looks at each image, if its folder has one; what it rejects is bad"
    )
    max_bad_fraction: Probability = Field(
        description="share of sets of which the safety checker may reject an image at all attempts: they are left out"
    )

    @model_validator(mode="after")
    def _images_can_be_numbered(self) -> Self:
        if self.images > MAX_IMAGES:
            raise ValueError(f"images_per_set and more_images are {self.images} in all; expected at most {MAX_IMAGES}")
        return self

    @property
    def images(self) -> int:
        """Of each set, those that were added included."""
        return self.images_per_set + sum(self.more_images)


class TaskSets(Section):
    """How the sets of a task's dataset come into shards."""

    seed: int
    sets_per_shard: PositiveInt
    batch_size: PositiveInt = Field(description="images the VAE encodes at once; a shard's last batch is padded to it")
    latents: LatentPrecision


class WorldSets(SplitSizes, TaskSets):
    """Sets of the embedded world; no combination that one split shows is in another."""

    source: Literal["world"]


class FolderSets(TaskSets):
    """Sets from files that somebody else made."""

    source: Literal["folder"]
    path: str
    validation_share: Probability = Field(
        description="share of the sets at path that is for validation, chosen by a hash of their ids"
    )
    test_path: str = Field(description="where the test sets are; empty: test_share of those at path")
    test_share: Probability = Field(description="share of the sets at path that is for testing, by the same hash")
    max_bad_fraction: Probability = Field(description="share of bad sets above which the stage stops")

    @model_validator(mode="after")
    def _training_is_left(self) -> Self:
        share = self.validation_share + self.test_share
        if share >= 1:
            raise ValueError(
                f"validation_share + test_share are {share:g}; expected less than 1: the rest is trained on"
            )
        return self


class ViewCount(Section):
    views: Annotated[int, Field(ge=2, le=999)] = Field(description="pictures of each object")


class WorldViews(WorldSets, ViewCount):
    """Objects of the embedded world (novel view synthesis)."""

    orbit: Count = Field(
        description="how many of the views go evenly around the object at one height; the others are from anywhere"
    )
    start_within: Annotated[float, Field(ge=0, le=180)] = Field(
        description="degrees from the object's front within which an orbit starts; 180: anywhere"
    )


class FolderViews(FolderSets, ViewCount):
    """Objects rendered as Zero123's: a folder each, with ``000.png`` (cut out), ``000.npy`` (3x4, world to camera)."""

    camera_convention: Literal["opencv", "blender"] = Field(
        description="the camera's axes: opencv has y down and z forward, blender (Zero123's renderings) y up, z back"
    )


class WorldProcedures(WorldSets):
    """Things of the embedded world drawn step after step (visual procedure generation)."""


class FolderProcedures(FolderSets):
    """Procedures in JSON, a list or one a line: id, goal, steps (texts), images (files beside the JSON)."""

    max_steps: Annotated[int, Field(ge=2, le=999)] = Field(description="a longer procedure ends there")
