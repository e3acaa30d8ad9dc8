"""What a run shows of itself on the way: loss and pictures on validation sets, from the same draws."""

from __future__ import annotations

import torch
from PIL import Image

from m2m.contact_sheet import contact_sheet
from m2m.data.sets import ImageSets
from m2m.diffusion.solvers import make_scheduler
from m2m.errors import MADE_AGAIN, UserError
from m2m.pipeline import M2MPipeline
from m2m.seeds import derive
from m2m.training.ema import Ema
from m2m.training.examples import Examples
from m2m.training.objective import Objective

PREVIEW_STEPS = 10
"""Steps of the solver: enough to see what is drawn."""


class HeldOut:
    """The first sets of the validation split, so that who tunes by them keeps the test unseen.

    Networks are the pipeline's, with averaged weights: nothing is loaded twice.

    Raises:
        UserError: there are no validation sets.
    """

    def __init__(self, pipeline: M2MPipeline, objective: Objective, sets: ImageSets, *, device: torch.device) -> None:
        common = objective.common
        if not len(sets):
            raise UserError(
                f"the manifest has no validation sets, which previews and the held-out loss need; {MADE_AGAIN}"
            )
        shown = [sets[index] for index in range(min(common.preview_sets, len(sets)))]
        examples = [
            objective.draws.example(
                image_set, range(min(common.set_size, len(image_set.images))), key=("held out", place)
            )
            for place, image_set in enumerate(shown)
        ]
        # A pipeline of its own around the same networks: it takes a solver for few steps, and keeps its bar to itself.
        self._pipeline = M2MPipeline(
            **{**pipeline.components, "scheduler": make_scheduler("dpmsolver++", pipeline.scheduler.config)}
        )
        self._pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
        self._objective = objective
        self._examples = Examples.stack(examples).to(device)
        self._given = [Image.fromarray(image_set.images[0]) for image_set in shown]
        self._poses = [image_set.cameras()[: common.set_size] for image_set in shown] if objective.with_poses else None

    @torch.no_grad()
    def loss(self, ema: Ema) -> float:
        """The training loss with averaged weights; comparable between runs with the same seed and validation sets."""
        with torch.compiler.set_stance("force_eager"), ema.applied():  # no graphs of its own for its few shapes
            return float(self._objective(self._pipeline.unet, self._examples).double().mean())

    def previews(self, ema: Ema) -> dict[str, Image.Image]:
        """For each set the given picture, framed, and those drawn after it; and all sets as one picture."""
        with torch.compiler.set_stance("force_eager"), ema.applied():
            (drawn,) = self._pipeline(
                [[picture] for picture in self._given],
                self._objective.common.set_size - 1,
                num_inference_steps=PREVIEW_STEPS,
                generator=[derive(self._objective.common.seed, "preview", place) for place in range(len(self._given))],
                poses=self._poses,
                return_dict=False,
            )
        rows = [([given], pictures) for given, pictures in zip(self._given, drawn, strict=True)]
        return {
            **{f"preview/{place:02}": contact_sheet([row]) for place, row in enumerate(rows)},
            "preview/all": contact_sheet(rows),
        }
