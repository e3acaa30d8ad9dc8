"""The stages of the pipeline, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from m2m.cli.program import FOUNDATION, MANIFEST, PARAMS, RELEASED, FoundationFolder, ParamsFile, app, model_folder
from m2m.params import EvaluatedTask, Task, Variant
from m2m.params_file import load_params
from m2m.runtime import Machine

if TYPE_CHECKING:
    from m2m.manifest import Manifest

VariantOption = Annotated[Variant, typer.Option("--variant", help="What encodes the preceding images.")]
ManifestFile = Annotated[Path, typer.Option("--manifest", help="Manifest of the MIS dataset.")]
MadeManifest = Annotated[Path, typer.Option("--manifest", help="Manifest to write.")]
TASKS = "nvs: novel views; vpg: visual procedures."
CAPTIONS = Path("data/captions.parquet")
SAMPLING = Path("metrics/sampling.json")
ABLATIONS = Path("ablations/results")


@app.command()
def foundation(
    params: ParamsFile = PARAMS,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = FOUNDATION,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Put published weights into the store: other machines then need no hub.")
    ] = False,
) -> None:
    """Trains the small models on the embedded world, or fetches the published ones."""
    wanted = load_params(params).foundation
    is_published = wanted.source == "hub"
    machine = Machine("foundation", offline=not is_published)
    from m2m.stages import foundation

    mirrored = foundation.run(
        wanted,
        out=out,
        work=machine.settings.work,
        device=machine.device(),
        processes=machine.threads(),
        store=machine.store() if is_published else None,
        weights=machine.settings.weights,
        mirror=mirror,
    )
    typer.echo(f"{out}: stable-diffusion, dino, clip, inception{', perceptual' if is_published else ''}")
    if mirrored:
        typer.echo(mirrored)


@app.command()
def captions(params: ParamsFile = PARAMS, out: Annotated[Path, typer.Option(help="File to make.")] = CAPTIONS) -> None:
    """Writes the captions that the image sets will be drawn from."""
    wanted = load_params(params).captions
    Machine("captions")
    from m2m.stages import captions

    left_out = captions.run(wanted, out=out)
    train = wanted.train + sum(wanted.more)
    counts = f"{train} captions for training, {wanted.validation} for validation, {wanted.test} for the test"
    typer.echo(f"{out}: {counts}, {left_out} lines left out")


@app.command()
def generate(
    params: ParamsFile = PARAMS,
    captions: Annotated[Path, typer.Option(help="What to draw.")] = CAPTIONS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: MadeManifest = MANIFEST,
) -> None:
    """Draws a set of images for each caption, into the object store."""
    wanted = load_params(params).generate
    machine = Machine("generate")
    from m2m.stages import generate

    made = generate.run(
        wanted,
        captions=captions,
        stable_diffusion=foundation / "stable-diffusion",
        inception=foundation / "inception",
        manifest=manifest,
        runtime=machine.runtime(on_cluster=True),
    )
    _tell(manifest, made)


@app.command()
def views(
    params: ParamsFile = PARAMS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: MadeManifest = Path("data/nvs.json"),
) -> None:
    """Makes the sets of novel view synthesis, objects seen by many cameras, in the object store."""
    wanted = load_params(params).views
    machine = Machine("views")
    from m2m.stages import views

    weights = foundation / "stable-diffusion"
    _tell(
        manifest,
        views.run(wanted, stable_diffusion=weights, manifest=manifest, runtime=machine.runtime(on_cluster=True)),
    )


@app.command()
def procedures(
    params: ParamsFile = PARAMS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: MadeManifest = Path("data/vpg.json"),
) -> None:
    """Makes the sets of visual procedure generation, pictures step after step, in the object store."""
    wanted = load_params(params).procedures
    machine = Machine("procedures")
    from m2m.stages import procedures

    weights = foundation / "stable-diffusion"
    _tell(
        manifest,
        procedures.run(wanted, stable_diffusion=weights, manifest=manifest, runtime=machine.runtime(on_cluster=True)),
    )


@app.command()
def train(
    variant: VariantOption,
    params: ParamsFile = PARAMS,
    manifest: ManifestFile = MANIFEST,
    foundation: FoundationFolder = FOUNDATION,
    out: Annotated[Path | None, typer.Option(help="Model folder to make; models/m2m-VARIANT.")] = None,
    curve: Annotated[Path | None, typer.Option(help="CSV to write; reports/train-VARIANT.csv.")] = None,
) -> None:
    """Trains one variant; the same command resumes. On several GPUs: torchrun --nproc-per-node N -m m2m.cli train …"""
    wanted = load_params(params).train
    machine = Machine(f"train@{variant}")
    from m2m.stages import train

    out, own = out or Path(f"models/m2m-{variant}"), wanted.variant.of(variant)
    made = machine.train(
        train.run,
        wanted.common,
        variant,
        own,
        inputs={"manifest": manifest, "foundation": foundation, **({"model": Path(own.start)} if own.start else {})},
        outputs={"out": out, "curve": curve or Path(f"reports/train-{variant}.csv")},
    )
    typer.echo(f"{out}: {made.images_seen} images seen, held-out loss {made.held_out_loss:.4f}")


@app.command()
def finetune(
    variant: VariantOption,
    task: Annotated[Task, typer.Option(help=TASKS)],
    params: ParamsFile = PARAMS,
    manifest: Annotated[Path | None, typer.Option(help="Manifest of the task's dataset; data/TASK.json.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder to start from; models/m2m-VARIANT, or else the released one.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start from Stable Diffusion's weights, to compare.")
    ] = False,
    foundation: FoundationFolder = FOUNDATION,
    out: Annotated[Path | None, typer.Option(help="Model folder to make; models/m2m-VARIANT-TASK.")] = None,
    curve: Annotated[Path | None, typer.Option(help="CSV to write; reports/finetune-VARIANT-TASK.csv.")] = None,
) -> None:
    """Fine-tunes a trained variant to a task; the same command resumes. On several GPUs as train."""
    wanted = load_params(params)
    item = f"{variant}-{task}"
    machine = Machine(f"finetune@{item}")
    from m2m.stages import finetune

    out = out or Path(f"models/m2m-{item}")
    model = foundation if from_scratch else model or model_folder(variant)
    made = machine.train(
        finetune.run,
        wanted.finetune.common,
        task,
        variant,
        wanted.finetune.of(task),
        inputs={"manifest": manifest or Path(f"data/{task}.json"), "model": model},
        outputs={"out": out, "curve": curve or Path(f"reports/finetune-{item}.csv")},
        scratch=wanted.train.common if from_scratch else None,
    )
    typer.echo(f"{out}: {made.images_seen} images seen, held-out loss {made.held_out_loss:.4f}")


@app.command()
def evaluate(
    variant: VariantOption,
    task: Annotated[EvaluatedTask, typer.Option(help=f"Of the model; mis: image sets; {TASKS}")] = "mis",
    params: ParamsFile = PARAMS,
    manifest: Annotated[Path | None, typer.Option(help="Manifest of the dataset; data/TASK.json.")] = None,
    foundation: FoundationFolder = FOUNDATION,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; models/m2m-VARIANT[-TASK], or else the released one.")
    ] = None,
    metrics: Annotated[Path | None, typer.Option(help="JSON to write; metrics/evaluate-VARIANT[-TASK].json.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder to fill; reports/evaluate-VARIANT[-TASK].")] = None,
    register: Annotated[bool, typer.Option(help="Register the model with its scores.")] = True,
) -> None:
    """Measures a model on the test sets, as the paper does, and registers it."""
    item = _item(variant, task)
    wanted = load_params(params).evaluate
    machine = Machine(f"evaluate@{item}")
    from m2m.stages import evaluate

    model = model or model_folder(item)
    # Of a released model the parent lies beside it.
    parent = model.with_name(f"m2m-{variant}")
    metrics = metrics or Path(f"metrics/evaluate-{item}.json")
    made = evaluate.run(
        wanted.of(task),
        task,
        variant,
        model=model,
        untuned=None if task == "mis" else parent if parent.exists() else model_folder(variant),
        foundation=foundation,
        manifest=manifest or Path(f"data/{task}.json"),
        metrics=metrics,
        plots=plots or Path(f"reports/evaluate-{item}"),
        runtime=machine.runtime(on_cluster=True),
        register=register,
    )
    registered = f"registered as m2m-{item} version {made.version}" if made.version else "not registered, or later"
    typer.echo(f"{metrics}: {len(made.numbers)} numbers; {registered}")


@app.command()
def sampling(
    params: ParamsFile = PARAMS,
    models: Annotated[Path, typer.Option(help="Folder with m2m-self and m2m-dino.")] = Path("models"),
    foundation: FoundationFolder = FOUNDATION,
    metrics: Annotated[Path, typer.Option(help="JSON to write.")] = SAMPLING,
    plots: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("reports/sampling"),
) -> None:
    """Measures what an image costs by how many were given, beside Stable Diffusion."""
    wanted = load_params(params).sampling
    machine = Machine("sampling")
    from m2m.stages import sampling

    numbers = sampling.run(
        wanted,
        models={variant: models / f"m2m-{variant}" for variant in get_args(Variant)},
        stable_diffusion=foundation / "stable-diffusion",
        metrics=metrics,
        plots=plots,
        runtime=machine.runtime(),
    )
    most = max(wanted.given)
    times = ", ".join(f"{numbers[f'ratio/{variant}/given={most}']:.2f} ({variant})" for variant in get_args(Variant))
    typer.echo(f"{metrics}: an image after {most} given ones takes {times} times as long as Stable Diffusion's")


@app.command()
def report(
    params: ParamsFile = PARAMS,
    manifest: ManifestFile = MANIFEST,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("reports/index.html"),
    to_come: Annotated[
        list[str] | None, typer.Option(help="Stage that has not ended, such as evaluate@self-nvs; the page says so.")
    ] = None,
) -> None:
    """Writes one page with tables beside the paper's, curves and galleries of both variants."""
    wanted = load_params(params).report
    Machine("report")
    from m2m.stages import report

    items = [
        report.Evaluated(
            task=task,
            variant=variant,
            metrics=Path(f"reports/evaluate-{_item(variant, task)}/details.json"),
            plots=Path(f"reports/evaluate-{_item(variant, task)}"),
            curve=Path(f"reports/train-{variant}.csv") if task == "mis" else None,
            beside={
                "the same steps from Stable Diffusion": ABLATIONS / f"from-scratch-{task}-{variant}-seed-0.json",
                "released, on its own test sets": RELEASED / f"reports/evaluate-{_item(variant, task)}/details.json",
            },
        )
        for task in get_args(EvaluatedTask)
        for variant in get_args(Variant)
    ]
    report.run(wanted, items=items, sampling=SAMPLING, manifest=manifest, out=out, to_come=to_come or ())
    typer.echo(str(out))


def _tell(manifest: Path, made: Manifest) -> None:
    """How large a dataset is."""
    sets = ", ".join(f"{count} {split} sets" for split, count in made.sets.items())
    most = "up to " if made.kind == "vpg" else ""
    typer.echo(f"{manifest}: {sets} of {most}{made.images_per_set} images in {len(made.shards)} shards")


def _item(variant: Variant, task: EvaluatedTask) -> str:
    """As its model, its numbers and its part of the graph are named."""
    return variant if task == "mis" else f"{variant}-{task}"
