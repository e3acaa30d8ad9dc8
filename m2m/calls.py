"""A diffusers pipeline that several threads may call at once: what a call changes, it keeps to itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, Self

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from m2m.diffusion.guidance import guides
from m2m.diffusion.solvers import check_scheduler, restarted

OFFLOADING = ("_hf_hook", "_diffusers_hook")
"""What a part of a network has whose weights come and go: a graph would read where they were."""
_COME_AND_GO = RLock()
"""Held by who draws with such networks: their weights would leave while another call computes with them."""
_OF_A_CALL = ("_guidance_scale", "_interrupt")
"""What users of diffusers set on a pipeline to change a call that is under way."""


class ConcurrentPipeline(DiffusionPipeline):
    """Gives each call a copy of the pipeline, with a scheduler of its own: an answer is what it would be alone.

    Schedulers remember predictions, and where they stand; the pipeline's own one is only copied from. Networks are
    shared, which calls do not change. A callback is given the call's copy. Set on that, `_interrupt` (end now) and
    `_guidance_scale` (until the image is drawn) are for this call alone; set on the pipeline, for all under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: set[Self] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OF_A_CALL:
            for call in tuple(self._calls):
                setattr(call, name, value)

    @property
    def guidance_scale(self) -> float:
        """Of the call, or of the last one that began."""
        return float(self._guidance_scale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call is guided at present."""
        return guides(self._guidance_scale)

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of an image: with some schedulers more than were asked for."""
        return int(self._num_timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether the call is to end."""
        return bool(self._interrupt)

    @contextmanager
    def _alone(self, num_inference_steps: int, guidance_scale: float) -> Iterator[tuple[Self, bool]]:
        """The copy that one call works with, and whether the networks' weights stay in place while it does.

        Raises:
            UserError: the scheduler is not for such networks.
        """
        with ExitStack() as turn:
            turn.enter_context(_COME_AND_GO)  # also to look: another call's end takes the hooks off and puts them on
            networks = [part for part in self.components.values() if isinstance(part, nn.Module)]
            parts = [part for network in networks for part in network.modules()]
            in_place = not any(hook in vars(part) for part in parts for hook in OFFLOADING)
            if in_place:
                turn.close()
            call = copy.copy(self)
            call.scheduler = copy.deepcopy(self.scheduler)
            check_scheduler(call.scheduler)
            timesteps = restarted(call.scheduler, num_inference_steps)
            state = {"_guidance_scale": guidance_scale, "_interrupt": False, "_num_timesteps": len(timesteps)}
            call.__dict__.update(state, _calls=set())
            self._calls.add(call)
            self.__dict__.update(state)
            try:
                yield call, in_place
            finally:
                self._calls.remove(call)
