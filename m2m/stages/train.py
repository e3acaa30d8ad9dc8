"""Stage ``train``: Stable Diffusion's weights and a MIS dataset in, a many-to-many pipeline out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from m2m.data.sets import ImageSets
from m2m.manifest import Manifest
from m2m.params import Encoder, TrainCommon, TrainDino, TrainVariant, Variant
from m2m.pipeline import M2MPipeline
from m2m.settings import revision
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.training.caption_start import start_from_captions
from m2m.training.card import Parent, model_card
from m2m.training.job import Job, Trained, make_model
from m2m.training.start import from_stable_diffusion
from m2m.workers import ALONE, Workers


def run(
    common: TrainCommon,
    variant: Variant,
    params: TrainVariant,
    *,
    manifest: Path,
    foundation: Path,
    out: Path,
    curve: Path,
    work: Path,
    store: Store,
    tracker: Tracker,
    device: str,
    workers: Workers = ALONE,
) -> Trained:
    """Writes the pipeline folder `out` and the curve (CSV). Killed and called again, it goes on where it was.

    Started by `torchrun`, the processes train together: the first one writes and tracks.

    Args:
        foundation: the folder with ``stable-diffusion/`` and, for M2M-DINO, its encoder's.
        work: where checkpoints lie until the model is there.

    Raises:
        UserError: a folder is incomplete, the parameters ask for more than the dataset has, the loss is not finite, the
            store or the disk refuses.
    """
    data = Manifest.read(manifest)
    stable_diffusion = foundation / "stable-diffusion"
    encoder: Encoder = params.encoder if isinstance(params, TrainDino) else "dino"
    folders = [stable_diffusion, foundation / encoder] if variant == "dino" else [stable_diffusion]
    parents = [Parent.of(folder) for folder in folders]
    fitted: Callable[[M2MPipeline, ImageSets], None] | None = None
    if isinstance(params, TrainDino) and (count := params.caption_start):

        def fitted(pipeline: M2MPipeline, sets: ImageSets) -> None:
            start_from_captions(pipeline, stable_diffusion, sets, count=count, seed=common.seed)

    job = Job(
        name=f"train-{variant}",
        stage="train",
        tags={"variant": variant},
        common=common,
        variant=params,
        start=partial(from_stable_diffusion, foundation, variant, common, encoder=encoder),
        before_first_step=fitted,
        made_from={"foundation": {parent.name: parent.digest for parent in parents}},
        card=lambda images_seen: model_card(
            variant,
            images_seen=images_seen,
            parameters=job.parameters,
            manifest=data,
            parents=parents,
            commit=str(revision()),
        ),
    )
    return make_model(
        job,
        data,
        out=out,
        curve=curve,
        work=work,
        store=store,
        tracker=tracker,
        device=device,
        workers=workers,
    )
