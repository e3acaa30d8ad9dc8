"""Stage ``sampling``: what an image costs by how many were given, beside Stable Diffusion (the paper's figure)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
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
from m2m.page.charts import BASE, figure
from m2m.params import SamplingParams, Variant
from m2m.pipeline import load_pipeline
from m2m.progress import progress
from m2m.runtime import Runtime

GIGA = 1e9
Work = Callable[[], dict[str, float]]
COLUMNS = {"seconds": "ratio", "gflop": "gflop_ratio"}
"""What is measured of each case, and the key of its ratio to Stable Diffusion's."""


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
    how = params.model_dump(include={"solver", "num_inference_steps", "guidance_scale"})
    base = StableDiffusion(stable_diffusion, device=runtime.device, precision=params.precision, **how)
    load = partial(load_pipeline, device=runtime.device, precision=params.precision)
    pipelines = {variant: load(folder) for variant, folder in models.items()}
    for pipeline in pipelines.values():
        if params.num_inference_steps > (timesteps := pipeline.scheduler.config.num_train_timesteps):
            raise UserError(
                f"sampling.num_inference_steps is {params.num_inference_steps}, but the models have {timesteps} "
                "timesteps; lower it"
            )
        pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]

    tags = {f"model.{variant}": folder_digest(folder) for variant, folder in models.items()}
    with runtime.tracker.run("sampling", stage="sampling", tags=tags) as record:
        record.params(params.model_dump(mode="json"))
        given = sorted(set(params.given))
        clock = Clock(runtime.device)
        works: dict[str, Work] = {BASE: partial(time_after_caption, base, params, clock)}
        for count, (variant, pipeline) in product(given, pipelines.items()):
            works[f"{variant}/given={count}"] = partial(time_after_images, pipeline, count, params, clock)
        measured = _timed(works, params)
        measured[f"gflop/{BASE}"] = step_after_caption(base, stable_diffusion) / GIGA
        for variant, pipeline in pipelines.items():
            for count, operations in steps_after_images(pipeline, given).items():
                case = f"{variant}/given={count}"
                measured[f"gflop/{case}"] = operations / GIGA
                measured[f"window/{case}"] = min(count, pipeline.unet.max_context)
                for part, ratio in COLUMNS.items():
                    measured[f"{ratio}/{case}"] = measured[f"{part}/{case}"] / measured[f"{part}/{BASE}"]
        numbers: dict[str, float | int | str] = {
            **measured,
            **how,
            **params.model_dump(include={"repeats", "seed"}),
            "images": params.batch_size,
            "pixels": base.image_size,
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


def _timed(works: Mapping[str, Work], params: SamplingParams) -> dict[str, float]:
    """``seconds/<case>`` and its like, medians; and ``spread``, how far turns of one case went apart, at most."""
    total = len(works) * (1 + params.repeats) * params.batch_size
    with progress(total, "sampling", unit="images") as advance:

        def seconds_of(work: Work) -> dict[str, float]:
            seconds = work()
            advance(params.batch_size)
            return seconds

        in_turns = in_turn([partial(seconds_of, work) for work in works.values()], repeats=params.repeats)
        turns = dict(zip(works, in_turns, strict=True))
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
