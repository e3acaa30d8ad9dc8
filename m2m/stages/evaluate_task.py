"""Stage ``evaluate`` of the fine-tuned models: novel views and visual procedures, beside what they must beat."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import JsonValue

from m2m.data.sets import ImageSets
from m2m.errors import UserError
from m2m.evaluation import steps, table, views
from m2m.evaluation.gallery import draw_gallery, to_png
from m2m.evaluation.kept import folder_of, note_run, run_before
from m2m.evaluation.networks import Networks
from m2m.evaluation.task_sampling import Pictures, TaskDraws
from m2m.files import folder_digest, write_atomically
from m2m.manifest import Manifest
from m2m.params import EvaluateNvs, EvaluateVpg, Task, Variant
from m2m.pipeline import load_pipeline
from m2m.progress import progress
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers


def run(
    params: EvaluateNvs | EvaluateVpg,
    task: Task,
    variant: Variant,
    *,
    model: Path,
    untuned: Path,
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
    """Writes `metrics` (flat JSON) and galleries into `plots`; registers the model with its scores.

    Args:
        model: a fine-tuned pipeline folder.
        untuned: the folder that it comes from, a baseline.
        foundation: the folder with ``inception/`` and ``clip/``.
        manifest: of the task's dataset.
        work: where drawn pictures wait; a killed evaluation goes on with them.
        register: the model, with its scores; not what is only compared with it.

    Raises:
        UserError: the parameters ask for more than the dataset has, a folder is incomplete, store or disk refuse.
    """
    data = Manifest.read(manifest)
    sets = ImageSets(store, data, "test")
    if params.sets > len(sets):
        raise UserError(
            f"evaluate.{task}.sets is {params.sets}, but the dataset has {len(sets)} test sets; lower it, or make more"
        )
    members = [sets[index] for index in range(params.sets)]
    if isinstance(params, EvaluateNvs):
        views.require(params, members)
    networks = Networks.load(foundation, device=device)
    digest = folder_digest(model)
    made_from: dict[str, JsonValue] = {
        "model": digest,
        "untuned": folder_digest(untuned),
        "manifest": data.digest,
        "params": params.model_dump(mode="json", exclude={"bootstrap", "gallery_sets", "gate"}),
        "device": device.partition(":")[0],
    }
    name = f"evaluate-{variant}-{task}"
    drafts = work / name
    folder = folder_of(drafts, made_from)
    tags = {"variant": variant, "task": task, "manifest": data.digest, "model": digest}
    with tracker.run(name, stage="evaluate", tags=tags, resume_key=run_before(folder)) as record:
        note_run(folder, record.id)
        record.params(params.model_dump(mode="json"))
        record.dataset(data.kind, source=store.uri, digest=data.digest, context="evaluation", sets=data.sets)
        draws = TaskDraws(
            tuned=load_pipeline(model, device=device, precision=params.precision),
            untuned=load_pipeline(untuned, device=device, precision=params.precision),
            members=members,
            params=params,
            folder=folder,
            workers=workers,
        )
        measured, shown = _measure(params, draws, networks, name)
        table.require_gate(params.gate.metric, measured, key=f"evaluate.{task}.gate.metric")
        numbers: dict[str, float | int | str] = {
            **measured,
            "sets": params.sets,
            "images": sum(len(member.images) for member in members),
            "seed": params.seed,
            "manifest": data.digest,
            **{f"network/{judge}": network for judge, network in networks.names.items()},
            "network/lpips": networks.names["inception"],
        }
        for given, pictures in shown.items():
            some = members[: params.gallery_sets]
            gallery = draw_gallery((one.images[:given], drawn) for one, drawn in zip(some, pictures, strict=False))
            write_atomically(plots / f"given-{given}.png", to_png(gallery, [one.caption for one in some]))
            record.image(gallery, key=f"gallery/given-{given}", step=0)
        if isinstance(params, EvaluateNvs):
            write_atomically(plots / "turntable.gif", views.turntable(draws))
        write_atomically(metrics, table.to_json(numbers))
        record.artifact(plots, "evaluate")
        record.artifact(metrics, "evaluate")
        if draws.stopwatch.pictures:
            record.metrics({"seconds_per_image": draws.stopwatch.seconds / draws.stopwatch.pictures})
        version = None
        if register:
            version = record.register(model, f"m2m-{variant}-{task}", metrics=measured, tags=tags, gate=params.gate)
    shutil.rmtree(drafts)
    return table.Evaluation(numbers, version)


def _measure(
    params: EvaluateNvs | EvaluateVpg, draws: TaskDraws, networks: Networks, name: str
) -> tuple[dict[str, float], dict[int, Pictures]]:
    """The numbers, and the drawn pictures of each set by number of given ones."""
    if isinstance(params, EvaluateNvs):
        few, many = params.given
        wanted = 2 * draws.pictures(few) + draws.pictures(many)
        with progress(wanted, name, unit="images") as advance:
            by_tuned = {given: draws.by("tuned", given, advance) for given in params.given}
            by_untuned = draws.by("untuned", few, advance)
        return views.measure(params, draws.members, by_tuned, by_untuned, networks), by_tuned
    with progress(2 * draws.pictures(1), name, unit="images") as advance:
        by_tuned = {1: draws.by("tuned", 1, advance)}
        by_untuned = draws.by("untuned", 1, advance)
    return steps.measure(draws.members, by_tuned[1], by_untuned, networks), by_tuned
