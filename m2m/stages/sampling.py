"""Stage ``sampling``: what an image costs by how many were given, beside Stable Diffusion (the paper's figure)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.errors import UserError
from m2m.evaluation.efficiency import (
    Clock,
    hardware,
    in_turn,
    step_after_caption,
    steps_after_images,
    time_after_caption,
    time_after_images,
)
from m2m.evaluation.figures import to_csv, to_json
from m2m.files import folder_digest, write_atomically
from m2m.page.efficiency import BASE, figure
from m2m.params import SamplingParams, Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.progress import Advance, progress
from m2m.runtime import Runtime

GIGA = 1e9
COLUMNS = ("seconds", "gflop")


def run(
    params: SamplingParams,
    *,
    models: Mapping[Variant, Path],
    stable_diffusion: Path,
    metrics: Path,
    plots: Path,
    runtime: Runtime,
) -> Mapping[str, float | int | str]:
    """Writes `metrics` (flat JSON), and into `plots` a CSV for each model and the figure; returns the numbers.

    All models are timed in this one process and take turns. Each figure is the median of the turns, for one image.

    Args:
        models: pipeline folders.
        stable_diffusion: a diffusers folder.

    Raises:
        UserError: a folder is incomplete, the models have fewer timesteps than are asked for, the disk refuses.
    """
    base = StableDiffusion(
        stable_diffusion,
        solver=params.solver,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        device=runtime.device,
        precision=params.precision,
    )
    pipelines = {
        variant: load_pipeline(folder, device=runtime.device, precision=params.precision)
        for variant, folder in models.items()
    }
    for pipeline in pipelines.values():
        _require(params, timesteps=pipeline.scheduler.config.num_train_timesteps)
        pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]

    tags = {f"model.{variant}": folder_digest(folder) for variant, folder in models.items()}
    with runtime.tracker.run("sampling", stage="sampling", tags=tags) as record:
        record.params(params.model_dump(mode="json"))
        given = sorted(set(params.given))
        measured = {
            **_timed(params, given, base, pipelines, Clock(runtime.device)),
            **_counted(given, base, stable_diffusion, pipelines),
        }
        numbers: dict[str, float | int | str] = {
            **measured,
            **_ratios(measured),
            "images": params.batch_size,
            "repeats": params.repeats,
            "solver": params.solver,
            "num_inference_steps": params.num_inference_steps,
            "guidance_scale": params.guidance_scale,
            "pixels": base.image_size,
            "seed": params.seed,
            "device": hardware(runtime.device),
        }
        for name in (BASE, *pipelines):
            # Stable Diffusion's are all the same.
            cases = [(count, name if name == BASE else f"{name}/given={count}") for count in given]
            rows = [[count, *(measured[f"{column}/{case}"] for column in COLUMNS)] for count, case in cases]
            write_atomically(plots / f"{name}.csv", to_csv(["given", *COLUMNS], rows))
        write_atomically(plots / "seconds.svg", figure(numbers))
        write_atomically(metrics, to_json(numbers))
        record.metrics({name: value for name, value in numbers.items() if isinstance(value, float)})
        record.artifact(plots, "sampling")
        record.artifact(metrics, "sampling")
    return numbers


def _timed(
    params: SamplingParams,
    given: Sequence[int],
    base: StableDiffusion,
    pipelines: Mapping[Variant, M2MPipeline],
    clock: Clock,
) -> dict[str, float]:
    """``seconds/<case>`` and its like, medians; and ``spread``, how far turns of one case went apart, at most."""
    cases: dict[str, Callable[[], dict[str, float]]] = {BASE: partial(time_after_caption, base, params, clock)}
    for count in given:
        for variant, pipeline in pipelines.items():
            cases[f"{variant}/given={count}"] = partial(time_after_images, pipeline, count, params, clock)
    total = len(cases) * (1 + params.repeats) * params.batch_size
    with progress(total, "sampling", unit="images") as advance:
        works = [partial(_then_advance, work, advance, params.batch_size) for work in cases.values()]
        turns = dict(zip(cases, in_turn(works, repeats=params.repeats), strict=True))
    medians = {
        f"{part}/{case}": statistics.median(turn[part] for turn in of_case)
        for case, of_case in turns.items()
        for part in of_case[0]
    }
    spread = max(
        (max(seconds) - min(seconds)) / statistics.median(seconds)
        for seconds in ([turn["seconds"] for turn in of_case] for of_case in turns.values())
    )
    return {**medians, "spread": spread}


def _then_advance(work: Callable[[], dict[str, float]], advance: Advance, images: int) -> dict[str, float]:
    seconds = work()
    advance(images)
    return seconds


def _counted(
    given: Sequence[int], base: StableDiffusion, stable_diffusion: Path, pipelines: Mapping[Variant, M2MPipeline]
) -> dict[str, float]:
    """``gflop/<case>`` of a guided denoising step; ``window/<case>``: how many of the given images it looks at."""
    found: dict[str, float] = {f"gflop/{BASE}": step_after_caption(base, stable_diffusion) / GIGA}
    for variant, pipeline in pipelines.items():
        for count, counted in steps_after_images(pipeline, given).items():
            found[f"gflop/{variant}/given={count}"] = counted / GIGA
            found[f"window/{variant}/given={count}"] = min(count, pipeline.unet.max_context)
    return found


def _ratios(measured: Mapping[str, float]) -> dict[str, float]:
    """Seconds and operations of each case over those of Stable Diffusion."""
    found = {}
    for part, ratio in (("seconds", "ratio"), ("gflop", "gflop_ratio")):
        for name, value in measured.items():
            kind, _, case = name.partition("/")
            if kind == part and case != BASE:
                found[f"{ratio}/{case}"] = value / measured[f"{part}/{BASE}"]
    return found


def _require(params: SamplingParams, *, timesteps: int) -> None:
    if params.num_inference_steps > timesteps:
        raise UserError(
            f"sampling.num_inference_steps is {params.num_inference_steps}, but the models have {timesteps} timesteps; "
            "lower it"
        )
