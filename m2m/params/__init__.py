"""The typed parameters: one frozen model a stage, every value in YAML, nothing defaulted here.

The keys are those of ``params.yaml`` and of every file under ``profiles/``. A stage of ``dvc.yaml`` lists exactly the
keys that it reads, so the grouping below decides what a change makes stale.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from m2m.params.datasets import (
    Cc12mCaptions,
    FolderProcedures,
    FolderSets,
    FolderViews,
    GenerateParams,
    TaskSets,
    ViewCount,
    WorldCaptions,
    WorldProcedures,
    WorldSets,
    WorldViews,
)
from m2m.params.evaluation import (
    ComparedParams,
    DrawingParams,
    EvaluatedTask,
    EvaluateMis,
    EvaluateNvs,
    EvaluateParams,
    EvaluateVpg,
    GateParams,
    LongParams,
    ProbeParams,
)
from m2m.params.foundation import (
    Fit,
    HubFile,
    HubFoundation,
    HubSnapshot,
    TransformerFit,
    UnetFit,
    VaeFit,
    WorldFoundation,
)
from m2m.params.learning import (
    ContextNoise,
    Ema,
    FinetuneParams,
    FinetuneTask,
    FinetuneVariant,
    LearningParams,
    TrainCommon,
    TrainDino,
    TrainParams,
    TrainVariant,
    TrainVariants,
)
from m2m.params.sampling import SamplingParams
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
    SolverName,
    Task,
    Variant,
)

__all__ = [
    "Cc12mCaptions",
    "ComparedParams",
    "ContextNoise",
    "DrawingParams",
    "Ema",
    "Encoder",
    "EvaluateMis",
    "EvaluateNvs",
    "EvaluateParams",
    "EvaluateVpg",
    "EvaluatedTask",
    "FinetuneParams",
    "FinetuneTask",
    "FinetuneVariant",
    "Fit",
    "FolderProcedures",
    "FolderSets",
    "FolderViews",
    "FrozenPart",
    "GateParams",
    "GenerateParams",
    "HubFile",
    "HubFoundation",
    "HubSnapshot",
    "LearningParams",
    "LearningRate",
    "LongParams",
    "Params",
    "PositiveInt",
    "Precision",
    "PredictionType",
    "Probability",
    "ProbeParams",
    "ReportParams",
    "SamplingParams",
    "Section",
    "SetSize",
    "SolverName",
    "Task",
    "TaskSets",
    "TrainCommon",
    "TrainDino",
    "TrainParams",
    "TrainVariant",
    "TrainVariants",
    "TransformerFit",
    "UnetFit",
    "VaeFit",
    "Variant",
    "ViewCount",
    "WorldCaptions",
    "WorldFoundation",
    "WorldProcedures",
    "WorldSets",
    "WorldViews",
]


class ReportParams(Section):
    title: str


class Params(Section):
    """One whole parameter file."""

    foundation: Annotated[WorldFoundation | HubFoundation, Field(discriminator="source")]
    captions: Annotated[WorldCaptions | Cc12mCaptions, Field(discriminator="source")]
    generate: GenerateParams
    views: Annotated[WorldViews | FolderViews, Field(discriminator="source")]
    procedures: Annotated[WorldProcedures | FolderProcedures, Field(discriminator="source")]
    train: TrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    sampling: SamplingParams
    report: ReportParams
