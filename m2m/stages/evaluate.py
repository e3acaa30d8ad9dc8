"""Stage ``evaluate``: measures a trained model on held-out sets as the paper does, beside what bounds it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from m2m.data.sets import ImageSets
from m2m.errors import UserError
from m2m.evaluation import lots, table
from m2m.evaluation.comparison import Lots, compare
from m2m.evaluation.gallery import draw_gallery, to_png
from m2m.evaluation.kept import folder_of, note_run, run_before
from m2m.evaluation.measure import Batch, Benchmark, Scores, measure, read
from m2m.evaluation.networks import Networks
from m2m.evaluation.sampling import Continuations, Stopwatch
from m2m.files import folder_digest, write_atomically
from m2m.manifest import Manifest
from m2m.params import EvaluateMis, Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.progress import progress
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
    """Writes `metrics` (flat JSON), ``positions.csv`` and galleries into `plots`; registers the model with its scores.

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
    sets = ImageSets(store, data, "test")
    _require(params, images_per_set=data.images_per_set, sets=len(sets))
    networks = Networks.load(foundation, device=device)
    digest = folder_digest(model)
    made_from: dict[str, JsonValue] = {
        "model": digest,
        "manifest": data.digest,
        "params": params.model_dump(mode="json", exclude={"bootstrap", "gallery_sets", "gate"}),
        "device": device.partition(":")[0],
    }
    drafts = work / f"evaluate-{variant}"
    folder = folder_of(drafts, made_from)
    pipeline = load_pipeline(model, device=device, precision=params.precision)
    draws = _draws(params, sets, pipeline, folder, workers)

    tags = {"variant": variant, "manifest": data.digest, "model": digest}
    with tracker.run(f"evaluate-{variant}", stage="evaluate", tags=tags, resume_key=run_before(folder)) as record:
        note_run(folder, record.id)
        record.params(params.model_dump(mode="json"))
        record.dataset(data.kind, source=store.uri, digest=data.digest, context="evaluation", sets=data.sets)

        scores, measured = _measure(params, sets, draws, networks, foundation, work, device, workers)
        table.require_gate(params.gate.metric, measured, key="evaluate.mis.gate.metric")
        numbers: dict[str, float | int | str] = {
            **measured,
            "sets": params.sets,
            "images": draws[params.given].pictures,
            "given": params.given,
            "subset/sets": params.subset.sets,
            "seed": params.seed,
            "manifest": data.digest,
            **{f"network/{judge}": name for judge, name in networks.names.items()},
        }
        write_atomically(plots / "positions.csv", table.to_csv(scores))
        for given, draw in draws.items():
            shown = [sets[index] for index in range(min(params.gallery_sets, draw.count))]
            rows = zip((one.images[:given] for one in shown), draw.first(len(shown)), strict=True)
            gallery = draw_gallery(rows)
            write_atomically(plots / f"given-{given}.png", to_png(gallery, [one.caption for one in shown]))
            record.image(gallery, key=f"gallery/given-{given}", step=0)
        write_atomically(metrics, table.to_json(numbers))

        record.artifact(plots, "evaluate")
        record.artifact(metrics, "evaluate")
        stopwatch = draws[params.given].stopwatch
        if stopwatch.pictures:
            record.metrics({"seconds_per_image": stopwatch.seconds / stopwatch.pictures})
        version = None
        if register:
            version = record.register(model, f"m2m-{variant}", metrics=measured, tags=tags, gate=params.gate)
    shutil.rmtree(drafts)
    return table.Evaluation(numbers, version)


def _draws(
    params: EvaluateMis, sets: ImageSets, pipeline: M2MPipeline, folder: Path, workers: Workers
) -> dict[int, Continuations]:
    """By number of given pictures: all sets for the usual one, the first of them for others."""
    stopwatch = Stopwatch()
    return {
        given: Continuations(
            pipeline=pipeline,
            sets=sets,
            count=params.sets if given == params.given else params.subset.sets,
            given=given,
            total=params.given + params.generated,
            params=params,
            folder=folder,
            stopwatch=stopwatch,
            workers=workers,
        )
        for given in dict.fromkeys((params.given, *params.subset.given))
    }


def _measure(
    params: EvaluateMis,
    sets: ImageSets,
    draws: Mapping[int, Continuations],
    networks: Networks,
    foundation: Path,
    work: Path,
    device: str,
    workers: Workers,
) -> tuple[Scores, dict[str, float]]:
    """Draws what is missing, shows all of it to the networks, and compares."""
    with progress(sum(draw.pictures for draw in draws.values()), "evaluate", unit="images") as advance:
        ours = measure(draws[params.given].batches(advance), networks)
        others = {given: draw for given, draw in draws.items() if given != params.given}
        more_given = {given: read(draw.batches(advance), networks) for given, draw in others.items()}

    def held_out() -> Iterator[Batch]:
        return lots.held_out(sets, count=params.sets, batch=params.sets_per_batch)

    captions = [sets[index].caption for index in range(params.sets)]
    benchmark = Benchmark(captions, measure(held_out(), networks), params.given)
    after_given = ((words, images[:, params.given : params.given + params.generated]) for words, images in held_out())
    base = lots.unconditional(
        captions,
        stable_diffusion=foundation / "stable-diffusion",
        params=params,
        work=work / "unconditional",
        device=device,
        workers=workers,
    )
    measured = Lots(
        ours=ours,
        more_given=more_given,
        unconditional=measure(base, networks),
        shuffled=read(lots.colours_shuffled(after_given, seed=params.seed), networks),
    )
    return compare(measured, benchmark, networks, params)


def _require(params: EvaluateMis, *, images_per_set: int, sets: int) -> None:
    total = params.given + params.generated
    if params.sets > sets:
        raise UserError(
            f"evaluate.mis.sets is {params.sets}, but there are {sets} test sets; lower it, or raise captions.test"
        )
    if total > images_per_set:
        raise UserError(
            f"evaluate.mis.given + evaluate.mis.generated is {total}, more than the {images_per_set} images of a set; "
            "lower one of them, or raise generate.images_per_set"
        )
    if params.generated < 2:
        raise UserError("evaluate.mis.generated is 1; distances within a set take at least 2")
    if params.subset.sets > params.sets:
        raise UserError(
            f"evaluate.mis.subset.sets is {params.subset.sets}, more than evaluate.mis.sets, {params.sets}; lower it"
        )
    if max(params.subset.given, default=0) >= total:
        raise UserError(
            f"evaluate.mis.subset.given holds {max(params.subset.given)}, which leaves nothing to generate of "
            f"evaluate.mis.given + evaluate.mis.generated = {total} images; lower it"
        )
