"""How sampling efficiency is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from m2m.params.section import PositiveInt, Precision, Section, SolverName


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
