"""The model that is evaluated, and how it draws: what every lot of its pictures has in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from m2m.evaluation.sampling import Continuations, Starts, Stopwatch
from m2m.params import EvaluateMis
from m2m.pipeline import M2MPipeline
from m2m.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Model:
    """Continues sets."""

    pipeline: M2MPipeline
    params: EvaluateMis
    folder: Path
    """Where drawn batches are kept."""
    workers: Workers = ALONE
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def after(
        self, name: str, starts: Starts, *, count: int, given: int, generated: int, independent: bool = False
    ) -> Continuations:
        """A lot that is to be drawn, under a name of its own."""
        return Continuations(
            name=name,
            pipeline=self.pipeline,
            starts=starts,
            count=count,
            given=given,
            generated=generated,
            params=self.params,
            folder=self.folder,
            independent=independent,
            stopwatch=self.stopwatch,
            workers=self.workers,
        )
