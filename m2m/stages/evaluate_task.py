"""Stage ``evaluate`` of the fine-tuned models: novel views and visual procedures, beside what they must beat."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from m2m.code import code_digest
from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet
from m2m.errors import UserError
from m2m.evaluation import steps, table, views
from m2m.evaluation.gallery import draw_gallery, to_png
from m2m.evaluation.kept import folder_of, note_run, run_before
from m2m.evaluation.networks import Networks
from m2m.evaluation.task_sampling import Pictures, TaskDraws
from m2m.files import folder_digest, write_atomically, write_digests
from m2m.manifest import Manifest, Split
from m2m.params import EvaluateNvs, EvaluateVpg, Task, Variant
from m2m.pipeline import load_pipeline
from m2m.progress import progress
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers

HEADLINES: Mapping[Task, Sequence[str]] = {
    "nvs": (
        *(f"{name}/given={given}/mean" for given in (1, 2) for name in ("psnr", "ssim", "perceptual")),
        "baseline/nearest/psnr/given=1/mean",
        "paired/psnr/given=2-minus-1/mean",
    ),
    "vpg": (
        *("step_order/mean", "fid/mean", "clip_image_image/mean"),
        *("baseline/untuned/step_order/mean", "baseline/untuned/fid/mean"),
    ),
}
"""What the numbers file holds of each task, where it was measured."""


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
    """Writes headlines to `metrics` (flat JSON), all numbers and galleries into `plots`; registers the model.

    Args:
        model: a fine-tuned pipeline folder.
        untuned: the folder that it comes from, a baseline.
        foundation: the folder with ``inception/``, ``clip/`` and, of published networks, ``perceptual/``.
        manifest: of the task's dataset.
        work: where drawn pictures wait; a killed evaluation goes on with them.
        register: the model, with its scores; not what is only compared with it.

    Raises:
        UserError: the parameters ask for more than the dataset has, a folder is incomplete, store or disk refuse.
    """
    data = Manifest.read(manifest)
    members = _members(params.sets, ImageSets(store, data, "test"), f"evaluate.{task}.sets", "test")
    for_gate = _members(
        params.validation_sets, ImageSets(store, data, "validation"), f"evaluate.{task}.validation_sets", "validation"
    )
    if isinstance(params, EvaluateNvs):
        views.require(params, members)
        views.require(params, for_gate)
    networks = Networks.load(foundation, device=device)
    digest = folder_digest(model)
    made_from: dict[str, JsonValue] = {
        "model": digest,
        "untuned": folder_digest(untuned),
        "manifest": data.digest,
        "params": params.model_dump(mode="json", exclude={"bootstrap", "gallery_sets", "gate"}),
        "device": device.partition(":")[0],
        "code": code_digest(__name__),
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
        of_gate = replace(draws, members=for_gate, folder=folder / "validation")
        measured |= {f"validation/{key}": value for key, value in _judge(params, of_gate, networks, name).items()}
        table.require_gate(params.gate, measured, key=f"evaluate.{task}.gate")
        rests_on: dict[str, table.Number] = {
            "sets": params.sets,
            "images": sum(len(member.images) for member in members),
            "seed": params.seed,
            "manifest": data.digest,
            **networks.recorded("inception", "clip", *(("perceptual",) if isinstance(params, EvaluateNvs) else ())),
        }
        numbers = {**table.headline(measured, [*HEADLINES[task], params.gate.metric]), **rests_on}
        for given, pictures in shown.items():
            some = members[: params.gallery_sets]
            gallery = draw_gallery((one.images[:given], drawn) for one, drawn in zip(some, pictures, strict=False))
            write_atomically(plots / f"given-{given}.png", to_png(gallery, [one.caption for one in some]))
            record.image(gallery, key=f"gallery/given-{given}", step=0)
        if isinstance(params, EvaluateNvs):
            write_atomically(plots / "turntable.gif", views.turntable(draws))
        write_atomically(plots / table.DETAILS, table.to_json({**measured, **rests_on}))
        write_atomically(metrics, table.to_json(numbers))
        write_digests(plots)
        record.artifact(plots, "evaluate")
        record.artifact(metrics, "evaluate")
        if draws.stopwatch.pictures:
            record.metrics({"seconds_per_image": draws.stopwatch.seconds / draws.stopwatch.pictures})
        version = None
        if register:
            scored = table.headline(measured, [*HEADLINES[task], params.gate.metric, *params.gate.require])
            version = record.register(model, f"m2m-{variant}-{task}", metrics=scored, tags=tags, gate=params.gate)
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


def _judge(params: EvaluateNvs | EvaluateVpg, draws: TaskDraws, networks: Networks, name: str) -> dict[str, float]:
    """Flat numbers of what the fine-tuned model alone draws, after the fewest given pictures."""
    given = params.given[0] if isinstance(params, EvaluateNvs) else 1
    with progress(draws.pictures(given), f"{name}, validation", unit="images") as advance:
        drawn = draws.by("tuned", given, advance)
    if isinstance(params, EvaluateNvs):
        return views.of_model(draws.members, drawn, given, networks)
    return steps.of_model(draws.members, drawn, networks)


def _members(count: int, sets: ImageSets, key: str, split: Split) -> list[ImageSet]:
    if count > len(sets):
        raise UserError(f"{key} is {count}, but the dataset has {len(sets)} {split} sets; lower it, or make more")
    return [sets[index] for index in range(count)]
