"""What a command needs of this machine: where things are, and libraries that keep to themselves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from m2m.errors import UserError
from m2m.settings import TELEMETRY_OFF, Settings, revision

if TYPE_CHECKING:
    from m2m.runtime import Runtime
    from m2m.store import Store
    from m2m.tracking import Tracker
    from m2m.workers import Workers

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


class Machine:
    """What a command needs of this machine; each part is made when it is asked for."""

    def __init__(self, stage: str, *, offline: bool = True) -> None:
        for name, value in QUIET.items():
            if offline or name != "HF_HUB_OFFLINE":
                os.environ.setdefault(name, value)
        self._stage = stage
        self.settings = Settings.from_environment()

    def runtime(self) -> Runtime:
        """All that a stage works with; torch is prepared for it."""
        from m2m.runtime import Runtime

        device, processes = self.device(), self.threads()
        return Runtime(
            store=self.store(),
            work=self.settings.work,
            tracker=self.tracker(),
            device=device,
            workers=self.workers(),
            processes=processes,
        )

    def store(self) -> Store:
        from m2m.store import open_store

        return open_store(self.settings.store, cache=self.settings.work / "cache")

    def tracker(self) -> Tracker:
        from m2m.tracking import open_tracker, origin_tags

        tags = {**origin_tags(self.settings.caller, revision()), "dvc.stage": self._stage}
        return open_tracker(self.settings.tracking_uri, spool=self.settings.work / "spool", tags=tags)

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
        if self.settings.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"M2M_DEVICE is {self.settings.device}, but torch finds no GPU; unset it")
        if self.settings.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.settings.device

    def workers(self) -> Workers:
        """On a CPU as many as torch has threads, one for each, and one for this thread; on a GPU just this one."""
        import torch

        from m2m.workers import ALONE, Workers

        if self.device() != "cpu":
            return ALONE
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        return Workers(count)

    def threads(self) -> int:
        import torch

        return torch.get_num_threads()
