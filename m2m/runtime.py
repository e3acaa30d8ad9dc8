"""What this machine gives a command, and a stage in one argument: where things are, and what computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from m2m.engines import Cluster, Engine, LocalEngine, Place, open_engine
from m2m.errors import UserError
from m2m.settings import TELEMETRY_OFF, Settings, revision
from m2m.store import Store, open_store
from m2m.tracking import NullTracker, Tracker, open_tracker, origin_tags
from m2m.workers import ALONE, Workers

Result = TypeVar("Result")

QUIET = {
    **TELEMETRY_OFF,
    "DIFFUSERS_VERBOSITY": "error",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WDS_SECURE": "1",
}
"""No library calls home, none asks a hub (models are folders), none chats."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a stage works with and where; nothing in it changes a result beyond rounding."""

    store: Store
    work: Path
    """Where downloads and drafts lie, and the pictures of an evaluation that is not finished."""
    tracker: Tracker = field(default_factory=NullTracker)
    device: str = "cpu"
    """As torch names it: ``cpu``, ``cuda``, ``cuda:1``."""
    workers: Workers = ALONE
    """What computes side by side on a CPU."""
    processes: int = 1
    """How many draw or read pictures at the same time."""
    cluster: Cluster | None = None
    """What has shards made, models trained and pictures drawn; None: this machine."""
    own_device: str = ""
    """What this process itself computes on, where the work is done by a cluster; empty: `device`."""

    when_handed_over: Callable[[Callable[[], None]], None] = lambda clear: clear()
    """Is told what to do when what was made is where it was wanted: at once, if that is here."""
    leaving: Callable[[], bool] = lambda: False
    """Says once that this machine will soon be gone; processes that train together ask equally often."""

    @property
    def engine(self) -> Engine:
        return self.cluster or LocalEngine(self.workers, self.device)

    @property
    def device_type(self) -> str:
        """What kept work depends on: one GPU is as good as another of its machine."""
        return self.device.partition(":")[0]


class Machine:
    """What a command needs of this machine; each part is made when it is asked for."""

    def __init__(self, stage: str, *, offline: bool = True, settings: Settings | None = None) -> None:
        for name, value in QUIET.items():
            if offline or name != "HF_HUB_OFFLINE":
                os.environ.setdefault(name, value)
        self._stage = stage
        self.settings = settings or Settings.from_environment()

    def runtime(self, *, on_cluster: bool = False) -> Runtime:
        """All that a stage works with; torch is prepared for it.

        On a CPU there are as many workers as torch has threads, one for each, and one for this thread; on a GPU just
        this thread.

        Args:
            on_cluster: its work may be done by a cluster, if an address names one.
        """
        import torch

        store, work = self.store(), self.settings.work
        settings, cluster, workers = self.settings, None, ALONE
        if on_cluster:
            cluster = open_engine(settings.engine, store=store, work=work, device=settings.device, ranks=settings.ranks)
        if cluster:
            self.prepare_torch()
            device, threads = cluster.device, 1  # each of its workers has one core
            own_device = "cpu"
            if torch.cuda.is_available() and settings.device != "cpu":
                own_device = "cuda" if settings.device == "auto" else settings.device
        else:
            device, threads = self.device(), self.threads()
            own_device = device
        if device == "cpu":
            torch.set_num_threads(1)
            workers = Workers(threads)
        return Runtime(
            store=store,
            work=work,
            tracker=self.tracker(),
            device=device,
            workers=workers,
            processes=threads,
            cluster=cluster,
            own_device=own_device,
        )

    def train(
        self,
        stage: Callable[..., Result],
        *arguments: object,
        inputs: Mapping[str, Path],
        outputs: Mapping[str, Path],
        **named: object,
    ) -> Result:
        """What a stage that trains gives: here, or on the cluster, where its files and folders are found and fetched.

        Raises:
            UserError: whatever the stage raises, or the cluster cannot do it.
        """
        runtime, settings = self.runtime(on_cluster=True), self.settings
        if runtime.cluster is None:
            return stage(*arguments, **named, **inputs, **outputs, runtime=runtime)
        if settings.tracking_uri.startswith("sqlite") and settings.on_other_machines:
            raise UserError(
                "MLFLOW_TRACKING_URI is a file of this machine, which the nodes of a cluster cannot reach; set it to a "
                "server, or to none"
            )
        work = partial(stage, *arguments, **named)
        on_rank = partial(_on_rank, work, self._stage, replace(settings, engine="local"), self._tags())
        return runtime.cluster.train(on_rank, inputs=inputs, outputs=outputs)

    def store(self) -> Store:
        settings = self.settings
        return open_store(settings.store, cache=settings.work / "cache", cache_bytes=settings.cache_bytes)

    def tracker(self, tags: Mapping[str, str] | None = None) -> Tracker:
        """Where runs are recorded.

        Args:
            tags: of every run; default: what this process comes from.
        """
        return open_tracker(self.settings.tracking_uri, spool=self.settings.work / "spool", tags=tags or self._tags())

    def _tags(self) -> dict[str, str]:
        return {
            **origin_tags(self.settings.caller, revision()),
            "dvc.stage": self._stage,
            "mlflow.source.name": f"dvc repro {self._stage}",
        }

    def prepare_torch(self) -> None:
        """Sets the number of threads, and keeps the progress bars of libraries off the terminal."""
        import diffusers.utils.logging
        import torch
        import transformers.utils.logging

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)

    def device(self) -> str:
        """The device to compute on; torch is prepared for it."""
        import torch

        self.prepare_torch()
        device, on_gpu = self.settings.device, torch.cuda.is_available()
        if device.startswith("cuda") and not on_gpu:
            raise UserError(f"M2M_DEVICE is {device}, but torch finds no GPU; unset it")
        return device if device != "auto" else "cuda" if on_gpu else "cpu"

    def threads(self) -> int:
        import torch

        return torch.get_num_threads()


def _on_rank(
    stage: Callable[..., Result],
    name: str,
    settings: Settings,
    tags: Mapping[str, str],
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    place: Place,
) -> Result:
    """What a stage gives in one of the processes that train together."""
    machine = Machine(name, settings=replace(settings, work=place.work, device=place.device))
    runtime = replace(
        machine.runtime(),
        store=place.store,
        tracker=machine.tracker(tags),
        leaving=place.leaving,
        when_handed_over=place.when_handed_over,
    )
    return stage(**inputs, **outputs, runtime=runtime)
