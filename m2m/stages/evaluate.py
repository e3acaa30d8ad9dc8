"""Stage ``evaluate``: measures a model on the sets of its task, beside what bounds it and what it must beat."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import JsonValue

from m2m.code import code_digest
from m2m.contact_sheet import draw_gallery, to_png
from m2m.data.dataset import ImageSets
from m2m.errors import UserError
from m2m.evaluation import mis, nvs, vpg
from m2m.evaluation.continuations import Drawer, Measured, Subject, folder_of, note_run, run_before
from m2m.evaluation.figures import DETAILS, Number, curves, to_json
from m2m.evaluation.networks import Networks
from m2m.files import check_digests, folder_digest, write_atomically, write_digests
from m2m.manifest import Manifest, Split
from m2m.params import EvaluatedTask, EvaluateMis, EvaluateNvs, EvaluateVpg, Precision, Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.runtime import Runtime
from m2m.workers import Once

Require = Callable[[Subject[Any]], None]
Measure = Callable[[Subject[Any]], Measured]
EVALUATORS: Mapping[EvaluatedTask, tuple[Require | None, Measure]] = {
    "mis": (mis.require, mis.measure),
    "nvs": (nvs.require, nvs.measure),
    "vpg": (None, vpg.measure),
}
"""Of each task what says that it cannot be measured, before anything is drawn for it, and what measures it."""
ASKED: Mapping[str, Split] = {"sets": "test", "validation_sets": "validation"}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation made."""

    numbers: Mapping[str, Number]
    version: str | None
    """of the registered model; None if there is no tracking server, or none now"""


def run(
    params: EvaluateMis | EvaluateNvs | EvaluateVpg,
    task: EvaluatedTask,
    variant: Variant,
    *,
    model: Path,
    untuned: Path | None,
    foundation: Path,
    manifest: Path,
    metrics: Path,
    plots: Path,
    runtime: Runtime,
    register: bool = True,
) -> Evaluation:
    """Writes headlines to `metrics` (flat JSON), all numbers and galleries into `plots`; registers the model.

    Drawn pictures wait in the runtime's work folder; a killed evaluation goes on with them.

    Args:
        model: a pipeline folder.
        untuned: the folder that a fine-tuned model comes from, a baseline.
        foundation: the folder with ``inception/``, ``clip/``, ``stable-diffusion/`` and, of published networks,
            ``perceptual/``.
        manifest: of the task's dataset.
        register: the model, with its scores; not what is only compared with it.

    Raises:
        UserError: the parameters ask for more than the dataset has, a folder is incomplete, store or disk refuse.
    """
    data = Manifest.read(manifest)
    sets = {split: ImageSets(runtime.store, data, split) for split in get_args(Split)}
    for key, split in ASKED.items():
        if (wanted := getattr(params, key)) > (there := len(sets[split])):
            more = f"raise captions.{split}" if task == "mis" else "make more"
            raise UserError(
                f"evaluate.{task}.{key} is {wanted}, but the dataset has {there} {split} sets; lower it, or {more}"
            )
    networks = Networks.load(foundation, device=runtime.own_device or runtime.device)
    for folder in (model, untuned):
        if folder:
            check_digests(folder)  # now, not when the first picture is to be drawn
    digest = folder_digest(model)
    made_from: dict[str, JsonValue] = {
        "model": digest,
        # Judges decide on what is drawn where pictures are painted anew.
        **({"untuned": folder_digest(untuned)} if untuned else {"judges": dict(networks.names)}),
        "manifest": data.digest,
        "params": params.model_dump(mode="json", exclude={"bootstrap", "gallery_sets", "gate"}),
        "device": runtime.device_type,
        "code": code_digest(__name__),
    }
    item = variant if task == "mis" else f"{variant}-{task}"
    shared = [runtime.engine.share(folder) for folder in (model, untuned) if folder]
    load = Once(partial(_load, shared, device=runtime.device, precision=params.precision))
    subject: Subject[Any] = Subject(
        params=params,
        name=f"evaluate-{item}",
        sets=sets,
        data=data,
        drawer=Drawer(load=load),
        networks=networks,
        stable_diffusion=foundation / "stable-diffusion",
        folder=folder_of(runtime.work / f"evaluate-{item}", made_from),
        runtime=runtime,
    )
    require, measure = EVALUATORS[task]
    if require:
        require(subject)
    of_task = {} if task == "mis" else {"task": task}
    tags = {"variant": variant, "manifest": data.digest, "model": digest, **of_task}
    resumed = run_before(subject.folder)
    with runtime.tracker.run(subject.name, stage="evaluate", tags=tags, resume_key=resumed) as record:
        note_run(subject.folder, record.id)
        record.params(params.model_dump(mode="json"))
        record.dataset(data.kind, source=runtime.store.uri, digest=data.digest, context="evaluation", sets=data.sets)
        found = measure(subject)
        rests_on = {"sets": params.sets, "seed": params.seed, "manifest": data.digest, **found.about}
        # The scores by which a run is known, as many as there are: hundreds would hide what runs are compared by.
        known_by = {key: found.numbers[key] for key in (*found.headlines, params.gate.metric) if key in found.numbers}
        numbers: dict[str, Number] = {**known_by, **rests_on}
        for name, content in found.files.items():
            write_atomically(plots / name, content)
        for name, rows in found.galleries.items():
            gallery = draw_gallery((given, drawn) for _, given, drawn in rows)
            write_atomically(plots / f"{name}.png", to_png(gallery, [caption for caption, _, _ in rows]))
            record.image(gallery, key=f"gallery/{name}", step=0)
        write_atomically(plots / DETAILS, to_json({**found.numbers, **rests_on}))
        write_atomically(metrics, to_json(numbers))
        write_digests(plots)
        record.artifact(plots, "evaluate")
        record.artifact(metrics, "evaluate")
        given = found.about.get("given", 1)
        for position, values in curves(found.numbers, int(given)).items():
            record.metrics(values, step=position)
        if subject.timed:
            seconds, pictures = map(sum, zip(*subject.timed, strict=True))
            record.metrics({"seconds_per_image": seconds / pictures})
        version = None
        if register:
            scored = known_by | {key: found.numbers[key] for key in params.gate.require if key in found.numbers}
            version = record.register(model, f"m2m-{item}", metrics=scored, tags=tags, gate=params.gate)
    shutil.rmtree(subject.folder.parent)
    return Evaluation(numbers, version)


def _load(
    shared: Sequence[Callable[[], Path]], *, device: str, precision: Precision
) -> tuple[M2MPipeline, M2MPipeline]:
    loaded = [load_pipeline(found(), device=device, precision=precision) for found in shared]
    return loaded[0], loaded[-1]
