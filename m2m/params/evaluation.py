"""How models are measured, and which version is the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from m2m.params.section import PositiveInt, Precision, Section, SolverName, Task


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


class DrawingParams(Section):
    """How an evaluation draws, and what makes a version the champion."""

    seed: int
    solver: SolverName
    num_inference_steps: PositiveInt
    guidance_scale: Annotated[float, Field(ge=1)]
    context_timestep: Annotated[int, Field(ge=0, le=999)]
    sets_per_batch: PositiveInt
    precision: Precision = Field(description="of the networks that draw; those that measure compute in float32")
    gallery_sets: PositiveInt
    gate: GateParams


class EvaluateMis(DrawingParams):
    """Evaluation after the paper: one given image, ten generated, every metric by position."""

    sets: PositiveInt
    given: PositiveInt
    generated: PositiveInt
    subset: SubsetParams
    bootstrap: PositiveInt = Field(description="resamples for the confidence intervals")


class EvaluateNvs(DrawingParams):
    """Novel views: all views of a set that are not given, against the true ones."""

    sets: PositiveInt
    given: Annotated[tuple[PositiveInt, PositiveInt], Field(description="fewer and more given views, compared")]
    bootstrap: PositiveInt = Field(description="resamples for the confidence intervals")


class EvaluateVpg(DrawingParams):
    """Visual procedures: from the first step, all that follow."""

    sets: PositiveInt


class EvaluateParams(Section):
    mis: EvaluateMis
    nvs: EvaluateNvs
    vpg: EvaluateVpg

    def of(self, task: Task) -> EvaluateNvs | EvaluateVpg:
        """The parameters of one task."""
        return self.nvs if task == "nvs" else self.vpg
