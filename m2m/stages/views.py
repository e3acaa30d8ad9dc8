"""Stage ``views``: the sets of novel view synthesis, pictures of an object with the cameras that took them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from m2m.code import code_digest
from m2m.data.folder_sets import plan_views
from m2m.data.making import TaskPlan, make_task_sets, world_sets
from m2m.data.shards import PlannedSet
from m2m.diffusion.stable_diffusion import image_size, load_encoder
from m2m.errors import UserError
from m2m.manifest import Manifest, weights_of
from m2m.params import FolderViews, WorldViews
from m2m.runtime import Runtime
from m2m.seeds import derive
from m2m.workers import process_pool
from m2m.world.corpus import draw_views
from m2m.world.grammar import WORLD, Caption, view_captions


def run(params: WorldViews | FolderViews, *, stable_diffusion: Path, manifest: Path, runtime: Runtime) -> Manifest:
    """Makes a set for each object; its `extras` hold ``poses``, a 3x4 world-to-camera matrix an image (OpenCV's axes).

    A shard is made, written, uploaded and verified, then recorded in the store; the manifest comes last, with
    its card (``.md``) beside it. Any number of workers and processes gives the same bytes.

    Args:
        stable_diffusion: a diffusers folder, whose VAE gives the latents.

    Raises:
        UserError: the model folder, the source or the store cannot be used, or too much of the source is bad.
    """
    runtime.store.check()
    size = image_size(stable_diffusion)
    return make_task_sets(
        "nvs",
        params,
        _world(params, size) if isinstance(params, WorldViews) else plan_views(params, size=size),
        vae=weights_of(stable_diffusion, "vae"),
        code=code_digest(__name__),
        load_encoder=partial(load_encoder, runtime.engine.share(stable_diffusion), device=runtime.device),
        manifest=manifest,
        runtime=runtime,
    )


def _world(params: WorldViews, size: int) -> TaskPlan:
    if params.orbit > params.views:
        raise UserError(f"views.orbit is {params.orbit}; expected at most views.views, {params.views}")

    def planned(set_id: str, caption: Caption) -> PlannedSet:
        draw = partial(
            draw_views,
            caption,
            on_orbit=params.orbit,
            at_random=params.views - params.orbit,
            start_within=params.start_within,
            seed=derive(params.seed, "object", set_id),
            size=size,
        )
        return PlannedSet(id=set_id, caption=caption.text(), count=params.views, draw=draw)

    sets = world_sets(params, view_captions, planned)
    # VTK draws in one thread of a process.
    return TaskPlan(origin=WORLD, sets=sets, images_per_set=params.views, pool=process_pool)
