"""How models are measured, which version is the champion, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from m2m.params.section import PositiveInt, Precision, Section, SolverName

Count = Annotated[int, Field(ge=0)]
EvaluatedTask = Literal["mis", "nvs", "vpg"]
"""`Task`, or to continue image sets, for which models are trained first."""


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


class DrawingParams(Section):
    """How an evaluation draws, and what makes a version the champion."""

    seed: int
    solver: SolverName
    num_inference_steps: PositiveInt
    guidance_scale: Annotated[float, Field(ge=1)]
    context_timestep: Annotated[int, Field(ge=0, le=999)]
    drawn_context: Annotated[
        Count | None,
        Field(description="how many drawn images later ones read, the first of them; null: the newest that fit"),
    ]
    sets_per_batch: PositiveInt
    precision: Precision = Field(description="of the networks that draw; those that measure compute in float32")
    gallery_sets: PositiveInt
    gate: GateParams


class EvaluateMis(DrawingParams):
    """Evaluation after the paper, every metric by position, and of whether all given images are read."""

    sets: PositiveInt
    given: Annotated[tuple[PositiveInt, ...], Field(min_length=1, description="how many images are given, ascending")]
    generated: PositiveInt = Field(description="images drawn after each number of given ones")
    main: PositiveInt = Field(description="the number of given images whose table is the paper's; one of `given`")
    long: LongParams
    compared: ComparedParams
    probes: ProbeParams
    validation_sets: PositiveInt = Field(description="for the gate, after `main` given images")
    bootstrap: PositiveInt = Field(description="resamples for the confidence intervals")

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.main not in self.given or list(self.given) != sorted(set(self.given)):
            raise ValueError(
                f"given is {list(self.given)}, expected ascending numbers, and main, {self.main}, among them"
            )
        return self


class EvaluateNvs(DrawingParams):
    """Novel views: all views of a set that are not given, against the true ones."""

    sets: PositiveInt
    validation_sets: PositiveInt = Field(description="for the gate")
    given: Annotated[tuple[PositiveInt, PositiveInt], Field(description="fewer and more given views, compared")]
    bootstrap: PositiveInt = Field(description="resamples for the confidence intervals")


class EvaluateVpg(DrawingParams):
    """Visual procedures: from the first step, all that follow."""

    sets: PositiveInt
    validation_sets: PositiveInt = Field(description="for the gate")


class EvaluateParams(Section):
    mis: EvaluateMis
    nvs: EvaluateNvs
    vpg: EvaluateVpg

    def of(self, task: EvaluatedTask) -> EvaluateMis | EvaluateNvs | EvaluateVpg:
        """The parameters of one task."""
        of: Mapping[EvaluatedTask, EvaluateMis | EvaluateNvs | EvaluateVpg]
        of = {"mis": self.mis, "nvs": self.nvs, "vpg": self.vpg}
        return of[task]


class SamplingParams(Section):
    """Time and operations of an image after given ones, beside Stable Diffusion's after a caption."""

    seed: int
    given: Annotated[tuple[PositiveInt, ...], Field(min_length=1, description="how many images are given, each timed")]
    solver: SolverName
    num_inference_steps: Annotated[int, Field(ge=2, description="denoising steps of an image")]
    guidance_scale: Annotated[float, Field(gt=1, description="all sides draw with classifier-free guidance")]
    batch_size: PositiveInt = Field(description="images drawn at once, each of a set of its own")
    precision: Precision = Field(description="of all networks")
    repeats: PositiveInt = Field(description="turns of which the median counts; one more, before, warms up")


class ReportParams(Section):
    title: str
