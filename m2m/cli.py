"""The command line: reads parameters and environment, calls one stage, says in one line what is wrong.

Whatever computes is imported by the command that needs it, so that ``m2m --help`` and shell completion answer at once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from m2m.console import Commands
from m2m.machine import Machine
from m2m.params import SolverName, Variant

if TYPE_CHECKING:
    from m2m.params import Params

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Many-to-many image generation: each command is a stage of the pipeline, or looks at what one made.",
)


ParamsFile = Annotated[Path, typer.Option("--params", help="Parameter file.")]
VariantOption = Annotated[Variant, typer.Option("--variant", help="What encodes the preceding images.")]
FoundationFolder = Annotated[Path, typer.Option("--foundation", help="Folder with the foundation's models.")]
ManifestFile = Annotated[Path, typer.Option("--manifest", help="Manifest of the MIS dataset.")]

PARAMS = Path("params.yaml")
FOUNDATION = Path("models/foundation")
CAPTIONS = Path("data/captions.parquet")
MANIFEST = Path("data/mis.json")


@app.callback()
def _every_command() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@app.command()
def foundation(
    params: ParamsFile = PARAMS, out: Annotated[Path, typer.Option(help="Folder to make.")] = FOUNDATION
) -> None:
    """Trains the small models on the embedded world, or fetches the published ones."""
    wanted = _params(params).foundation
    machine = Machine("foundation", offline=wanted.source == "world")
    from m2m.stages import foundation

    machine.prepare_torch()
    foundation.run(wanted, out=out, work=machine.settings.work)
    typer.echo(f"{out}: stable-diffusion, dino, clip, inception")


@app.command()
def captions(params: ParamsFile = PARAMS, out: Annotated[Path, typer.Option(help="File to make.")] = CAPTIONS) -> None:
    """Writes the captions that the image sets will be drawn from."""
    wanted = _params(params).captions
    Machine("captions")
    from m2m.stages import captions

    made = captions.run(wanted, out=out)
    typer.echo(f"{out}: {made.train} captions for training, {made.test} for the test, {made.bad} lines left out")


@app.command()
def generate(
    params: ParamsFile = PARAMS,
    captions: Annotated[Path, typer.Option(help="What to draw.")] = CAPTIONS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: Annotated[Path, typer.Option(help="Manifest to write.")] = MANIFEST,
) -> None:
    """Draws a set of images for each caption, into the object store."""
    wanted = _params(params).generate
    machine = Machine("generate")
    from m2m.stages import generate

    made = generate.run(
        wanted,
        captions=captions,
        stable_diffusion=foundation / "stable-diffusion",
        manifest=manifest,
        work=machine.settings.work,
        store=machine.store(),
        tracker=machine.tracker(),
        device=machine.device(),
        workers=machine.workers(),
    )
    sets = ", ".join(f"{count} {split} sets" for split, count in made.sets.items())
    typer.echo(f"{manifest}: {sets} of {made.images_per_set} images in {len(made.shards)} shards")


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
    wanted = _params(params).train
    machine = Machine(f"train@{variant}")
    from m2m.stages import train

    out = out or Path(f"models/m2m-{variant}")
    made = train.run(
        wanted.common,
        variant,
        wanted.variant.of(variant),
        manifest=manifest,
        foundation=foundation,
        out=out,
        curve=curve or Path(f"reports/train-{variant}.csv"),
        work=machine.settings.work,
        store=machine.store(),
        tracker=machine.tracker(),
        device=machine.device(),
        workers=machine.workers(),
    )
    typer.echo(f"{out}: {made.images_seen} images seen, held-out loss {made.held_out_loss:.4f}")


@app.command()
def evaluate(
    variant: VariantOption,
    params: ParamsFile = PARAMS,
    manifest: ManifestFile = MANIFEST,
    foundation: FoundationFolder = FOUNDATION,
    model: Annotated[Path | None, typer.Option(help="Model folder; models/m2m-VARIANT.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="JSON to write; metrics/evaluate-VARIANT.json.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder to fill; reports/evaluate-VARIANT.")] = None,
) -> None:
    """Measures a trained variant on the test sets, as the paper does, and registers it."""
    wanted = _params(params).evaluate
    machine = Machine(f"evaluate@{variant}")
    from m2m.stages import evaluate

    metrics = metrics or Path(f"metrics/evaluate-{variant}.json")
    made = evaluate.run(
        wanted,
        variant,
        model=model or Path(f"models/m2m-{variant}"),
        foundation=foundation,
        manifest=manifest,
        metrics=metrics,
        plots=plots or Path(f"reports/evaluate-{variant}"),
        work=machine.settings.work,
        store=machine.store(),
        tracker=machine.tracker(),
        device=machine.device(),
        workers=machine.workers(),
    )
    registered = f"registered as m2m-{variant} version {made.version}" if made.version else "to be registered later"
    typer.echo(f"{metrics}: {len(made.numbers)} numbers; {registered}")


@app.command()
def report(
    params: ParamsFile = PARAMS,
    manifest: ManifestFile = MANIFEST,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("reports/index.html"),
) -> None:
    """Writes one page with tables beside the paper's, curves and galleries of both variants."""
    wanted = _params(params).report
    Machine("report")
    from m2m.stages import report

    items = [
        report.Evaluated(
            variant=variant,
            metrics=Path(f"metrics/evaluate-{variant}.json"),
            plots=Path(f"reports/evaluate-{variant}"),
            curve=Path(f"reports/train-{variant}.csv"),
        )
        for variant in get_args(Variant)
    ]
    report.run(wanted, items=items, manifest=manifest, out=out)
    typer.echo(str(out))


@app.command()
def verify(manifest: Annotated[Path, typer.Argument(help="Manifest of the dataset.")] = MANIFEST) -> None:
    """Proves that the store holds what a manifest says."""
    machine = Machine("verify")
    from m2m.stages import verify

    found = verify.run(manifest, store=machine.store())
    size = f"{found.shards} shards, {found.sets} sets, {found.images} images, {found.size} bytes"
    typer.echo(f"{manifest}: {size}: all whole")


@app.command()
def sample(
    model: Annotated[Path, typer.Option(help="Model folder.")] = Path("models/m2m-dino"),
    images: Annotated[list[Path] | None, typer.Option("--images", help="The preceding pictures.")] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGES]...", help="More of them.")] = None,
    num_images: Annotated[int, typer.Option(help="How many to draw.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for 001.png … and contact-sheet.png.")] = Path("out"),
    solver: Annotated[SolverName, typer.Option(help="Diffusion solver.")] = "dpmsolver++",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps an image.")] = 25,
    guidance_scale: Annotated[float, typer.Option(min=1.0, help="Classifier-free guidance; 1 turns it off.")] = 1.5,
    context_timestep: Annotated[int, typer.Option(min=0, help="Noise on the preceding images; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Another one draws others.")] = 0,
) -> None:
    """Draws the next pictures of a set: m2m sample --model models/m2m-dino --images a.png b.jpg --num-images 6"""
    machine = Machine("sample")
    from m2m.settings import revision
    from m2m.stages import sample

    device = machine.device()
    made = sample.run(
        sample.Drawing(
            num_images=num_images,
            solver=solver,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            context_timestep=context_timestep,
            seed=seed,
        ),
        model=model,
        # An option takes one value, so a shell's a.png b.jpg arrives as an option and arguments.
        images=[*(images or ()), *(more or ())],
        out=out,
        commit=str(revision()),
        threads=machine.threads(),
        device=device,
    )
    typer.echo(f"{made.sheet}: {len(made.images)} pictures, {made.images[0].name} to {made.images[-1].name} beside it")


@app.command()
def lineage(
    ref: Annotated[str, typer.Argument(help="models:/m2m-dino@champion, models:/m2m-dino/3, a run id, an experiment.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs, with whole hashes.")] = False,
) -> None:
    """Tells where a model comes from, from its dataset to its aliases, and the command that makes it again."""
    machine = Machine("lineage")
    from m2m.stages import lineage

    found = lineage.run(ref, tracking_uri=machine.settings.tracking_uri)
    typer.echo(lineage.to_json(found) if as_json else lineage.to_text(found))


@app.command()
def check(foundation: FoundationFolder = FOUNDATION) -> None:
    """Tells whether this machine is ready, and what to do if not."""
    machine = Machine("check")
    from m2m.stages import check

    to_do = 0
    for finding in check.run(machine.settings, checkout=Path.cwd(), foundation=foundation):
        typer.echo(str(finding))
        to_do += not finding.ok
    raise typer.Exit(1 if to_do else 0)


def _params(path: Path) -> Params:
    from m2m.params_file import load_params

    return load_params(path)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
