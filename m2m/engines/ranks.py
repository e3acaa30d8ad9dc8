"""Processes that train together on a cluster: Ray Train starts them, and starts them again when one is lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import ray
import torch
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m2m.engines import Place, in_a_line
from m2m.errors import OutsideError, UserError
from m2m.store.shared import Shared

SILENCE_SECONDS = 1800
"""Of a rank, after which the others give it up: they wait while the first one saves."""
STEPS_BETWEEN = 16
"""After which ranks ask whether a node is to leave. All wait for each other then: four on two busy cores took 30 ms,
and more take longer."""
BEGINS, BEGINS_WITHIN = 6, 1800.0
"""So often within so many seconds training begins anew, then it is given up."""


def train_together(
    told: Mapping[str, Any], *, ranks: int
) -> tuple[Any, Mapping[str, Shared], list[Callable[[], None]]]:
    """What the first process gives, what it made, and what is to be done when that is where it was wanted.

    Args:
        told: to each process: ``run``, ``found`` and ``outputs`` by name, ``store``, ``work`` and ``device``.

    Raises:
        UserError: what one of them raises, or the cluster cannot do it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    verdict: Any = ray.remote(_Verdict).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        TorchTrainer(
            _rank,
            train_loop_config={**told, "verdict": verdict},
            torch_config=TorchConfig(timeout_s=SILENCE_SECONDS),
            scaling_config=ScalingConfig(num_workers=ranks, use_gpu=told["device"] == "cuda"),
            # Nothing but Ray's own notes lies there: they begin anew with each command.
            run_config=RunConfig(
                name=f"m2m-{token_hex(6)}",
                storage_path=str(Path(tempfile.gettempdir()) / "m2m-ray"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        ).fit()
    except TrainingFailedError as error:
        raise UserError(f"training on the cluster failed: {str(error).strip().splitlines()[-1]}") from error
    refused, kept = ray.get(verdict.read.remote())
    if refused:
        raise refused
    return kept  # type: ignore[no-any-return]


class _Verdict:
    """How a training run ended, told by its ranks: Ray Train itself starts them again after whatever error."""

    def __init__(self) -> None:
        self._refused: Exception | None = None
        self._made: Any = None
        self._begins, self._last = list[float](), "a process or its machine was lost"

    def begin(self, rank: int) -> bool:
        """Whether a rank that was started has anything to do."""
        if rank == 0:
            now = time.monotonic()
            self._begins = [*(begun for begun in self._begins if now - begun < BEGINS_WITHIN), now]
            if len(self._begins) > BEGINS:
                self.refuse(
                    UserError(f"training ended {BEGINS} times soon after it began, the last time: {self._last}")
                )
        return self._refused is None and self._made is None

    def fail(self, reason: str) -> None:
        """Of a rank, after which all are started again."""
        self._last = reason

    def refuse(self, error: Exception) -> None:
        """The run cannot be done: who is started again ends at once."""
        self._refused = self._refused or error

    def keep(self, made: Any) -> None:
        """Of the first rank."""
        self._made = made

    def read(self) -> tuple[Exception | None, Any]:
        """Why it cannot be done, if it cannot; what was made, if it was."""
        return self._refused, self._made


class _Leaving:
    """Says once that a node of the run is to be taken away; it is asked after each step."""

    def __init__(self, notice: Callable[[], object | None]) -> None:
        self._notice, self._asked, self._said = notice, 0, False

    def __call__(self) -> bool:
        self._asked += 1
        if self._asked % STEPS_BETWEEN:
            return False
        is_new = self._notice() is not None and not self._said
        self._said = self._said or is_new
        return is_new


def _rank(told: Mapping[str, Any]) -> None:
    """One of the processes that train together."""
    verdict, rank = told["verdict"], train.get_context().get_world_rank()
    if not ray.get(verdict.begin.remote(rank)):
        return
    with tempfile.TemporaryDirectory() as folder:
        # Hidden from the others: what a rank makes lies in the store in the end.
        outputs = {name: Path(folder) / path.name for name, path in told["outputs"].items()}
        try:
            inputs = {name: find() for name, find in told["found"].items()}
            same, leaving = {key: told[key] for key in ("store", "work", "device")}, _Leaving(train.get_preemption_info)
            afterwards = list[Callable[[], None]]()
            place = Place(**same, leaving=leaving, when_handed_over=afterwards.append)
            result = told["run"](inputs, outputs, place)
            if rank == 0:
                made = {name: Shared.put(told["store"], path) for name, path in outputs.items()}
                ray.get(verdict.keep.remote((result, made, afterwards)))
        except Exception as error:
            # A rank whose peers are lost ends with an error of torch's: the next try may succeed.
            again = isinstance(error, OutsideError | RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
            ray.get(verdict.fail.remote(in_a_line(error)) if again else verdict.refuse.remote(error))
            raise
