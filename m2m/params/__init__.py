"""The typed parameters: one frozen model a stage, every value in YAML, nothing defaulted here.

The keys are those of ``params.yaml`` and of every file under ``profiles/``. A stage of ``dvc.yaml`` lists exactly the
keys that it reads, so the grouping below decides what a change makes stale.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from m2m.params.datasets import (
    Cc12mCaptions as Cc12mCaptions,
    Fit as Fit,
    FolderProcedures as FolderProcedures,
    FolderSets as FolderSets,
    FolderViews as FolderViews,
    GenerateParams as GenerateParams,
    HubFile as HubFile,
    HubFoundation as HubFoundation,
    HubSnapshot as HubSnapshot,
    TaskSets as TaskSets,
    TransformerFit as TransformerFit,
    UnetFit as UnetFit,
    VaeFit as VaeFit,
    WorldCaptions as WorldCaptions,
    WorldFoundation as WorldFoundation,
    WorldProcedures as WorldProcedures,
    WorldSets as WorldSets,
    WorldViews as WorldViews,
)
from m2m.params.evaluation import (
    ComparedParams as ComparedParams,
    DrawingParams as DrawingParams,
    EvaluatedTask as EvaluatedTask,
    EvaluateMis as EvaluateMis,
    EvaluateNvs as EvaluateNvs,
    EvaluateParams as EvaluateParams,
    EvaluateVpg as EvaluateVpg,
    GateParams as GateParams,
    LongParams as LongParams,
    ProbeParams as ProbeParams,
    ReportParams as ReportParams,
    SamplingParams as SamplingParams,
)
from m2m.params.learning import (
    FinetuneParams as FinetuneParams,
    FinetuneTask as FinetuneTask,
    LearningParams as LearningParams,
    TrainCommon as TrainCommon,
    TrainDino as TrainDino,
    TrainParams as TrainParams,
    TrainVariant as TrainVariant,
)
from m2m.params.section import (
    Encoder as Encoder,
    FrozenPart as FrozenPart,
    Precision as Precision,
    PredictionType as PredictionType,
    Section as Section,
    SolverName as SolverName,
    Task as Task,
    Variant as Variant,
)


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
