"""Stage ``evaluate``: measures whether a trained model reads all of its given images, beside what bounds it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from m2m.data.sets import ImageSets
from m2m.errors import UserError
from m2m.evaluation import claim, lots, nearest_set, table, validation
from m2m.evaluation.comparison import Lots, compare
from m2m.evaluation.gallery import draw_gallery, to_png
from m2m.evaluation.kept import folder_of, note_run, run_before
from m2m.evaluation.measure import Batch, Measurements, Readings, Scores, measure, read
from m2m.evaluation.model import Model
from m2m.evaluation.networks import Networks
from m2m.evaluation.pattern_numbers import told
from m2m.evaluation.sampling import Continuations
from m2m.files import folder_digest, write_atomically
from m2m.manifest import Manifest
from m2m.params import EvaluateMis, Variant
from m2m.pipeline import load_pipeline
from m2m.progress import progress
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers

UNCONDITIONAL_POSITIONS = 2
"""Without given pictures all positions are alike: two are enough for a spread, and for the distance within a set."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The sets of a dataset."""

    train: ImageSets
    validation: ImageSets
    test: ImageSets


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
        "device": device.partition(":")[0],
    }
    drafts = work / f"evaluate-{variant}"
    folder = folder_of(drafts, made_from)
    pipeline = load_pipeline(model, device=device, precision=params.precision)
    drawing = Model(pipeline=pipeline, params=params, folder=folder, workers=workers)
    floor = lots.Painter(
        foundation / "stable-diffusion",
        solver=params.solver,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=1,
        params=params,
        work=work / "unconditional",
        device=device,
        workers=workers,
    )

    tags = {"variant": variant, "manifest": data.digest, "model": digest}
    with tracker.run(f"evaluate-{variant}", stage="evaluate", tags=tags, resume_key=run_before(folder)) as record:
        note_run(folder, record.id)
        record.params(params.model_dump(mode="json"))
        record.dataset(data.kind, source=store.uri, digest=data.digest, context="evaluation", sets=data.sets)

        measuring = _Measuring(params, splits, drawing, networks, floor)
        scores, measured = measuring.all()
        draws = measuring.draws
        rests_on: dict[str, table.Number] = {
            "sets": params.sets,
            "images": sum(draw.pictures for draw in draws.values()),
            "given": params.main,
            "seed": params.seed,
            "manifest": data.digest,
            **{f"network/{judge}": name for judge, name in networks.names.items()},
        }
        write_atomically(plots / "positions.csv", table.to_csv(scores))
        write_atomically(plots / table.DETAILS, table.to_json({**measured, **rests_on}))
        for given, draw in draws.items():
            shown = [splits.test[index] for index in range(min(params.gallery_sets, draw.count))]
            rows = zip((one.images[:given] for one in shown), draw.first(len(shown)), strict=True)
            gallery = draw_gallery(rows)
            write_atomically(plots / f"given-{given}.png", to_png(gallery, [one.caption for one in shown]))
            record.image(gallery, key=f"gallery/given-{given}", step=0)
        numbers = {**table.headline(measured, _headlines(params)), **rests_on}
        write_atomically(metrics, table.to_json(numbers))

        record.artifact(plots, "evaluate")
        record.artifact(metrics, "evaluate")
        if drawing.stopwatch.pictures:
            record.metrics({"seconds_per_image": drawing.stopwatch.seconds / drawing.stopwatch.pictures})
        version = None
        if register:
            version = record.register(model, f"m2m-{variant}", metrics=measured, tags=tags, gate=params.gate)
    shutil.rmtree(drafts)
    return table.Evaluation(numbers, version)


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


class _Measuring:
    """Draws what is missing, shows all of it to the networks, and compares."""

    def __init__(
        self, params: EvaluateMis, splits: Splits, model: Model, networks: Networks, floor: lots.Painter
    ) -> None:
        self._params, self._splits, self._model, self._networks, self._floor = params, splits, model, networks, floor
        self.draws: dict[int, Continuations] = {
            given: model.after(
                f"given-{given}", splits.test, count=params.sets, given=given, generated=params.generated
            )
            for given in params.given
        }
        self._long = model.after(
            "long", splits.test, count=params.long.sets, given=params.long.given, generated=params.long.generated
        )
        self._validation = model.after(
            "validation",
            splits.validation,
            count=params.validation_sets,
            given=params.main,
            generated=params.generated,
        )

    def all(self) -> tuple[Scores, dict[str, float]]:
        """The scores at the main number of given pictures, and all numbers."""
        params, networks = self._params, self._networks
        captions, held_out, ground = validation.look_at(self._splits.test, params.sets, networks, params)
        lots_to_draw = [*self.draws.values(), self._long, self._validation]
        with progress(sum(draw.pictures for draw in lots_to_draw), "evaluate", unit="images") as advance:
            ours = {given: measure(draw.batches(advance), networks) for given, draw in self.draws.items()}
            of_validation = measure(self._validation.batches(advance), networks)
            long = read(self._long.batches(advance), networks) if params.long.sets else None
        of_gate = validation.gate_numbers(of_validation, self._splits.validation, networks, params)
        table.require_gate(params.gate, of_gate, key="evaluate.mis.gate")
        numbers = told(of_gate)
        baselines = {"stable_diffusion": self._unconditional(captions)}
        nearest = self._nearest(held_out) if ground else {}
        if nearest:
            baselines["nearest"] = nearest[params.main]
        after_given = (
            Batch(batch.captions, batch.given, batch.images[:, params.main : params.main + params.generated])
            for batch in self._held_out()
        )
        shuffled = read(lots.colours_shuffled(after_given, seed=params.seed), networks)
        of_lots = Lots(ours=ours, held_out=held_out, baselines=baselines, shuffled=shuffled)
        scores, compared = compare(of_lots, captions, networks, params)
        numbers |= compared
        if ground:
            floor = dict.fromkeys(params.given, baselines["stable_diffusion"].readings)
            seen = claim.Read(
                ours=_readings(ours),
                baselines={"stable_diffusion": floor, "nearest": _readings(nearest)},
                long=long,
            )
            numbers |= claim.pattern_numbers(ground, seen, params)
        return scores, numbers

    def _held_out(self) -> Iterator[Batch]:
        return lots.held_out(self._splits.test, count=self._params.sets, batch=self._params.sets_per_batch)

    def _unconditional(self, captions: list[str]) -> Measurements:
        params = self._params
        positions = params.generated if self._networks.attributes else UNCONDITIONAL_POSITIONS
        drawn = self._floor.draw([""] * len(captions), positions, noise="unconditional")
        return measure(lots.following(self._held_out(), drawn, given=params.main), self._networks)

    def _nearest(self, held_out: Measurements) -> dict[int, Measurements]:
        """The training set that is nearest to the given pictures, as if drawn, by number of given ones."""
        params, training = self._params, self._splits.train
        embedded = nearest_set.mean_embeddings(training, self._networks.clip, self._networks.device)

        def pictures(given: int) -> Iterator[NDArray[np.uint8]]:
            numbers = nearest_set.nearest(held_out.embeddings[:, :given], embedded)
            return nearest_set.pictures_of(training, numbers, params.generated, batch=params.sets_per_batch)

        return {
            given: measure(lots.following(self._held_out(), pictures(given), given=given), self._networks)
            for given in params.given
        }


def _readings(measured: Mapping[int, Measurements]) -> dict[int, Readings]:
    return {given: one.readings for given, one in measured.items()}


def _require(params: EvaluateMis, *, images_per_set: int, splits: Splits) -> None:
    most = max(*params.given, params.long.given if params.long.sets else 0)
    for key, wanted, split, there in (
        ("sets", params.sets, "test", len(splits.test)),
        ("validation_sets", params.validation_sets, "validation", len(splits.validation)),
    ):
        if wanted > there:
            raise UserError(
                f"evaluate.mis.{key} is {wanted}, but there are {there} {split} sets; lower it, or raise captions.{split}"
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
