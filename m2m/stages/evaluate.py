"""Stage ``evaluate``: measures whether a trained model reads all of its given images, beside what bounds it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from m2m.code import code_digest
from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet
from m2m.errors import UserError
from m2m.evaluation import places, table
from m2m.evaluation.gallery import draw_gallery, to_png
from m2m.evaluation.kept import folder_of, note_run, run_before
from m2m.evaluation.measuring import Measuring, Splits, painters
from m2m.evaluation.model import Model
from m2m.evaluation.networks import Networks
from m2m.evaluation.sampling import Continuations
from m2m.files import folder_digest, write_atomically, write_digests
from m2m.manifest import Manifest
from m2m.params import EvaluateMis, Variant
from m2m.pipeline import load_pipeline
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers


def run(
    params: EvaluateMis,
    variant: Variant,
    *,
    model: Path,
    foundation: Path,
    manifest: Path,
    metrics: Path,
    plots: Path,
    work: Path,
    store: Store,
    tracker: Tracker,
    device: str,
    workers: Workers = ALONE,
    register: bool = True,
) -> table.Evaluation:
    """Writes headlines to `metrics` (flat JSON), all numbers and galleries into `plots`; registers the model.

    Args:
        model: a pipeline folder.
        foundation: the folder with ``inception/``, ``clip/`` and ``stable-diffusion/``.
        manifest: of the MIS dataset.
        work: where drawn pictures wait; a killed evaluation goes on with them.
        register: the model, with its scores; not what is only compared with it.

    Raises:
        UserError: the parameters ask for more than the dataset has, a folder is incomplete, store or disk refuse.
    """
    data = Manifest.read(manifest)
    splits = Splits(
        train=ImageSets(store, data, "train"),
        validation=ImageSets(store, data, "validation"),
        test=ImageSets(store, data, "test"),
    )
    _require(params, images_per_set=data.images_per_set, splits=splits)
    networks = Networks.load(foundation, device=device)
    digest = folder_digest(model)
    made_from: dict[str, JsonValue] = {
        "model": digest,
        "manifest": data.digest,
        "params": params.model_dump(mode="json", exclude={"bootstrap", "gallery_sets", "gate"}),
        "judges": dict(networks.names),
        "device": device.partition(":")[0],
        "code": code_digest(__name__),
    }
    drafts = work / f"evaluate-{variant}"
    folder = folder_of(drafts, made_from)
    pipeline = load_pipeline(model, device=device, precision=params.precision)
    drawing = Model(pipeline=pipeline, params=params, folder=folder, workers=workers)
    told = painters(params, data, foundation / "stable-diffusion", work, device, workers)

    tags = {"variant": variant, "manifest": data.digest, "model": digest}
    with tracker.run(f"evaluate-{variant}", stage="evaluate", tags=tags, resume_key=run_before(folder)) as record:
        note_run(folder, record.id)
        record.params(params.model_dump(mode="json"))
        record.dataset(data.kind, source=store.uri, digest=data.digest, context="evaluation", sets=data.sets)

        measuring = Measuring(params, splits, drawing, networks, told)
        scores, measured = measuring.all()
        draws = measuring.draws
        rests_on: dict[str, table.Number] = {
            "sets": params.sets,
            "images": sum(draw.pictures for draw in draws.values()),
            "given": params.main,
            "seed": params.seed,
            "manifest": data.digest,
            **networks.recorded("inception", "clip"),
        }
        write_atomically(plots / "positions.csv", table.to_csv(scores))
        write_atomically(plots / table.DETAILS, table.to_json({**measured, **rests_on}))
        for given, draw in draws.items():
            shown = [splits.test[index] for index in range(min(params.gallery_sets, draw.count))]
            rows = zip((one.images[:given] for one in shown), draw.first(len(shown)), strict=True)
            gallery = draw_gallery(rows)
            write_atomically(plots / f"given-{given}.png", to_png(gallery, [one.caption for one in shown]))
            record.image(gallery, key=f"gallery/given-{given}", step=0)
        if examples := _consistency(measuring.probes, params):
            consistency = draw_gallery((start.images, drawn) for _, start, drawn in examples)
            write_atomically(plots / "consistency.png", to_png(consistency, [what for what, _, _ in examples]))
            record.image(consistency, key="gallery/consistency", step=0)
        numbers = {**table.headline(measured, _headlines(params)), **rests_on}
        write_atomically(metrics, table.to_json(numbers))
        write_digests(plots)

        record.artifact(plots, "evaluate")
        record.artifact(metrics, "evaluate")
        if drawing.stopwatch.pictures:
            record.metrics({"seconds_per_image": drawing.stopwatch.seconds / drawing.stopwatch.pictures})
        version = None
        if register:
            # Hundreds of metrics would hide what runs are compared by; all of them are in the artifact.
            scored = table.headline(measured, [*_headlines(params), *params.gate.require])
            version = record.register(model, f"m2m-{variant}", metrics=scored, tags=tags, gate=params.gate)
    shutil.rmtree(drafts)
    return table.Evaluation(numbers, version)


def _consistency(
    probes: Mapping[str, tuple[places.Probe, Continuations]], params: EvaluateMis
) -> list[tuple[str, ImageSet, NDArray[np.uint8]]]:
    """Examples after the paper's: four given pictures of one content in four styles, and four of one style."""
    rows: list[tuple[str, ImageSet, NDArray[np.uint8]]] = []
    for name, what in (("content", "content consistency"), ("a", "style consistency")):
        if name not in probes:
            continue
        probe, draw = probes[name]
        drawn, orders = draw.first(probe.count), probe.given.shape[1]
        chosen = np.flatnonzero(probe.shared == places.STYLE)[: max(params.gallery_sets // 2, 1)].tolist()
        rows += [(what, probe.starts[number * orders], drawn[number * orders]) for number in chosen]
    return rows


def _headlines(params: EvaluateMis) -> list[str]:
    """At most a dozen, where four numbers of given images are compared."""
    return [
        *(f"pattern_score/given={given}" for given in params.given),
        f"baseline/ideal/pattern_score/given={params.main}",
        "fid/mean",
        "kid/mean",
        "inception_score/mean",
        "clip_text_image/mean",
        "clip_image_image/mean",
        "relative/diversity",
        params.gate.metric,
    ]


def _require(params: EvaluateMis, *, images_per_set: int, splits: Splits) -> None:
    most = max(*params.given, params.long.given if params.long.sets else 0)
    for key, wanted, split, there in (
        ("sets", params.sets, "test", len(splits.test)),
        ("validation_sets", params.validation_sets, "validation", len(splits.validation)),
    ):
        if wanted > there:
            raise UserError(
                f"evaluate.mis.{key} is {wanted}, but there are {there} {split} sets; lower it, or raise "
                f"captions.{split}"
            )
    if most + params.generated > images_per_set:
        raise UserError(
            f"evaluate.mis.given + evaluate.mis.generated is up to {most + params.generated}, more than the "
            f"{images_per_set} images of a set; lower one of them, or raise generate.images_per_set"
        )
    if min(params.generated, params.long.generated) < 2:
        raise UserError("evaluate.mis.generated or long.generated is 1; distances within a set take at least 2")
    for key, sets in (("long", params.long.sets), ("compared", params.compared.sets)):
        if sets > params.sets:
            raise UserError(f"evaluate.mis.{key}.sets is {sets}, more than evaluate.mis.sets, {params.sets}; lower it")
