"""Stage ``procedures``: the sets of visual procedure generation, pictures step after step with the steps' texts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from m2m.code import code_digest
from m2m.data.instructions import plan_procedures
from m2m.data.making import make_dataset
from m2m.data.task_sets import Plan, PlannedSet, Source, task_making
from m2m.diffusion.stable_diffusion import LatentEncoder, image_size
from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.manifest import Manifest, Split
from m2m.params import FolderProcedures, WorldProcedures
from m2m.seeds import derive
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers, once
from m2m.world.canvas import SIDE
from m2m.world.grammar import procedure_captions
from m2m.world.rounds import rounds
from m2m.world.sets import draw_procedure
from m2m.world.vocabulary import MAX_STEPS

WORLD = Source(name="the embedded world", licence="Apache-2.0, as the project")


def run(
    params: WorldProcedures | FolderProcedures,
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
    """Makes a set for each procedure, an image a step; its `extras` hold ``steps``, the text of each.

    Sets differ in length: the manifest's `images_per_set` is the most in a set. A shard is made, written, uploaded and
    verified, then recorded below `work`; the manifest comes last, with its card (``.md``) beside it. Any number of
    workers gives the same bytes.

    Args:
        stable_diffusion: a diffusers folder, whose VAE gives the latents.
        processes: how many threads draw or read pictures at the same time.

    Raises:
        UserError: the model folder, the source or the store cannot be used, or too much of the source is bad.
    """
    store.check()
    size = image_size(stable_diffusion)
    plan = _world(params, size) if isinstance(params, WorldProcedures) else plan_procedures(params, size=size)
    encode = once(partial(LatentEncoder, stable_diffusion, device=device))
    vae = folder_digest(stable_diffusion / "vae")
    with ThreadPoolExecutor(processes, "draw") as pool:
        code = code_digest(__name__)
        making = task_making(
            "procedures", "vpg", params, plan, vae=vae, code=code, device=device, pool=pool, encode=encode
        )
        return make_dataset(making, manifest=manifest, work=work, store=store, tracker=tracker, workers=workers)


def _world(params: WorldProcedures, size: int) -> Plan:
    if size != SIDE:
        raise UserError(f"the world's procedures have {SIDE} pixels a side, Stable Diffusion here takes {size}")
    counts: dict[Split, int] = {"train": params.train, "validation": params.validation, "test": params.test}
    sets = {split: [*_world_things(params, split, count)] for split, count in counts.items()}
    return Plan(source=WORLD, sets=sets, images_per_set=MAX_STEPS)


def _world_things(params: WorldProcedures, split: Split, count: int) -> Iterator[PlannedSet]:
    """Procedures of the things that are for one split, evenly chosen."""
    procedures = procedure_captions(split)
    for number, (_, index) in enumerate(rounds(params.seed, split, len(procedures), count)):
        set_id = f"world-{split}-{number:06}"
        captions = procedures[index]
        draw = partial(draw_procedure, captions, seed=derive(params.seed, "procedure", set_id))
        # The last step's caption says what the whole set shows.
        yield PlannedSet(id=set_id, caption=captions[-1].text(), count=len(captions), draw=draw)
