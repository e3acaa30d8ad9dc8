"""Stage ``train``: Stable Diffusion's weights and a MIS dataset in, a many-to-many pipeline out."""

from __future__ import annotations

from pathlib import Path

from m2m.manifest import Manifest
from m2m.params import Encoder, TrainCommon, TrainDino, TrainVariant, Variant
from m2m.runtime import Runtime
from m2m.training.card import Parent
from m2m.training.run import train_model
from m2m.training.start import from_stable_diffusion, weights_of
from m2m.training.state import Point


def run(
    common: TrainCommon,
    variant: Variant,
    params: TrainVariant,
    *,
    manifest: Path,
    foundation: Path,
    out: Path,
    curve: Path,
    runtime: Runtime,
) -> Point:
    """Writes the pipeline folder `out` and the curve (CSV), see `train_model`.

    Args:
        foundation: the folder with ``stable-diffusion/`` and, for M2M-DINO, its encoder's.

    Raises:
        UserError: a folder is incomplete, the parameters ask for more than the dataset has, the loss is not finite, the
            store or the disk refuses.
    """
    data = Manifest.read(manifest)
    encoder: Encoder = params.encoder if isinstance(params, TrainDino) else "dino"
    parents = [Parent.of(folder) for folder in weights_of(foundation, variant, encoder=encoder)]
    pipeline = from_stable_diffusion(foundation, variant, common, encoder=encoder)
    return train_model(
        pipeline, data, common, params, stage="train", parents=parents, out=out, curve=curve, runtime=runtime
    )
