"""Stage ``procedures``: the sets of visual procedure generation, pictures step after step with the steps' texts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from m2m.code import code_digest
from m2m.data.folder_sets import plan_procedures
from m2m.data.making import TaskPlan, make_task_sets, world_sets
from m2m.data.shards import PlannedSet
from m2m.diffusion.stable_diffusion import image_size, load_encoder
from m2m.errors import UserError
from m2m.manifest import Manifest, weights_of
from m2m.params import FolderProcedures, WorldProcedures
from m2m.runtime import Runtime
from m2m.seeds import derive
from m2m.world.corpus import draw_procedure
from m2m.world.grammar import MAX_STEPS, WORLD, Caption, procedure_captions
from m2m.world.pictures import SIDE


def run(
    params: WorldProcedures | FolderProcedures, *, stable_diffusion: Path, manifest: Path, runtime: Runtime
) -> Manifest:
    """Makes a set for each procedure, an image a step; its `extras` hold ``steps``, the text of each.

    Sets differ in length: the manifest's `images_per_set` is the most in a set. A shard is made, written, uploaded and
    verified, then recorded in the store; the manifest comes last, with its card (``.md``) beside it. Any
    number of workers and processes gives the same bytes.

    Args:
        stable_diffusion: a diffusers folder, whose VAE gives the latents.

    Raises:
        UserError: the model folder, the source or the store cannot be used, or too much of the source is bad.
    """
    runtime.store.check()
    size = image_size(stable_diffusion)
    return make_task_sets(
        "vpg",
        params,
        _world(params, size) if isinstance(params, WorldProcedures) else plan_procedures(params, size=size),
        vae=weights_of(stable_diffusion, "vae"),
        code=code_digest(__name__),
        load_encoder=partial(load_encoder, runtime.engine.share(stable_diffusion), device=runtime.device),
        manifest=manifest,
        runtime=runtime,
    )


def _world(params: WorldProcedures, size: int) -> TaskPlan:
    if size != SIDE:
        raise UserError(f"the world's procedures have {SIDE} pixels a side, Stable Diffusion here takes {size}")

    def planned(set_id: str, steps: tuple[Caption, ...]) -> PlannedSet:
        draw = partial(draw_procedure, steps, seed=derive(params.seed, "procedure", set_id))
        # The last step's caption says what the whole set shows.
        return PlannedSet(id=set_id, caption=steps[-1].text(), count=len(steps), draw=draw)

    return TaskPlan(origin=WORLD, sets=world_sets(params, procedure_captions, planned), images_per_set=MAX_STEPS)
