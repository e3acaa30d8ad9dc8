"""What all blocks of parameters share, and the values that they have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Variant = Literal["self", "dino"]
Task = Literal["nvs", "vpg"]
Encoder = Literal["dino", "clip"]
"""Networks of the foundation that can read images, by the names of their folders."""
PredictionType = Literal["epsilon", "v_prediction"]
FrozenPart = Literal["convolutions", "self_attention", "image_set_attention", "feed_forward"]
SolverName = Literal["ddim", "dpmsolver++", "unipc"]
Precision = Literal["float32", "bfloat16"]
"""Of a network's weights and of what it computes; names of torch's dtypes."""

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
SetSize = Annotated[int, Field(ge=2, description="images of a set that one training example uses, or all if fewer")]


class Section(BaseModel):
    """A block of parameters: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)
