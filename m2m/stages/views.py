"""Stage ``views``: the sets of novel view synthesis, pictures of an object with the cameras that took them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from m2m.code import code_digest
from m2m.data.making import make_dataset
from m2m.data.renderings import plan_views
from m2m.data.task_sets import Plan, PlannedSet, Source, task_making
from m2m.diffusion.stable_diffusion import LatentEncoder, image_size
from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest, Split
from m2m.params import FolderViews, WorldViews
from m2m.processes import process_pool
from m2m.seeds import derive
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers, once
from m2m.world.cameras import TO_OPENCV, sees_origin
from m2m.world.grammar import view_captions
from m2m.world.rounds import rounds
from m2m.world.sets import draw_views

WORLD = Source(name="the embedded world", licence="Apache-2.0, as the project")


def run(
    params: WorldViews | FolderViews,
    *,
    stable_diffusion: Path,
    manifest: Path,
    work: Path,
    store: Store,
    tracker: Tracker,
    device: str,
    workers: Workers = ALONE,
    processes: int = 1,
) -> Manifest:
    """Makes a set for each object; its `extras` hold ``poses``, a 3x4 world-to-camera matrix an image (OpenCV's axes).

    A shard is made, written, uploaded and verified, then recorded below `work`; the manifest comes last, with its card
    (``.md``) beside it. Any number of workers and processes gives the same bytes.

    Args:
        stable_diffusion: a diffusers folder, whose VAE gives the latents.
        processes: how many draw or read pictures at the same time.

    Raises:
        UserError: the model folder, the source or the store cannot be used, or too much of the source is bad.
    """
    store.check()
    size = image_size(stable_diffusion)
    if isinstance(params, WorldViews):
        plan = _world(params, size)
    else:
        plan = plan_views(params, size=size, conventions=TO_OPENCV, sees=sees_origin)
    encode = once(partial(LatentEncoder, stable_diffusion, device=device))
    vae = folder_digest(stable_diffusion / "vae")
    # VTK draws in one thread of a process; files are read by threads.
    with process_pool(processes) if isinstance(params, WorldViews) else ThreadPoolExecutor(processes) as pool:
        making = task_making(
            "views", "nvs", params, plan, vae=vae, code=code_digest(__name__), device=device, pool=pool, encode=encode
        )
        return make_dataset(making, manifest=manifest, work=work, store=store, tracker=tracker, workers=workers)


def _world(params: WorldViews, size: int) -> Plan:
    if params.orbit > params.views:
        raise UserError(f"views.orbit is {params.orbit}; expected at most views.views, {params.views}")
    counts: dict[Split, int] = {"train": params.train, "validation": params.validation, "test": params.test}
    sets = {split: [*_world_objects(params, split, count, size)] for split, count in counts.items()}
    return Plan(source=WORLD, sets=sets, images_per_set=params.views)


def _world_objects(params: WorldViews, split: Split, count: int, size: int) -> Iterator[PlannedSet]:
    """Objects of the captions that are for one split, evenly chosen."""
    captions = view_captions(split)
    for number, (_, index) in enumerate(rounds(params.seed, split, len(captions), count)):
        set_id = f"world-{split}-{number:06}"
        draw = partial(
            draw_views,
            captions[index],
            on_orbit=params.orbit,
            at_random=params.views - params.orbit,
            start_within=params.start_within,
            seed=derive(params.seed, "object", set_id),
            size=size,
        )
        yield PlannedSet(id=set_id, caption=captions[index].text(), count=params.views, draw=draw)
