"""The stages that make weights to start from and datasets, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2m.cli.options import (
    CAPTIONS,
    FOUNDATION,
    MANIFEST,
    PARAMS,
    PROCEDURES_MANIFEST,
    VIEWS_MANIFEST,
    FoundationFolder,
    ParamsFile,
    read_params,
)
from m2m.cli.program import app
from m2m.runtime import Machine

if TYPE_CHECKING:
    from m2m.manifest import Manifest


@app.command()
def foundation(
    params: ParamsFile = PARAMS, out: Annotated[Path, typer.Option(help="Folder to make.")] = FOUNDATION
) -> None:
    """Trains the small models on the embedded world, or fetches the published ones."""
    wanted = read_params(params).foundation
    machine = Machine("foundation", offline=wanted.source == "world")
    from m2m.stages import foundation

    foundation.run(wanted, out=out, work=machine.settings.work, device=machine.device(), processes=machine.threads())
    published = ", perceptual" if wanted.source == "hub" else ""
    typer.echo(f"{out}: stable-diffusion, dino, clip, inception{published}")


@app.command()
def captions(params: ParamsFile = PARAMS, out: Annotated[Path, typer.Option(help="File to make.")] = CAPTIONS) -> None:
    """Writes the captions that the image sets will be drawn from."""
    wanted = read_params(params).captions
    Machine("captions")
    from m2m.stages import captions

    made = captions.run(wanted, out=out)
    counts = f"{made.train} captions for training, {made.validation} for validation, {made.test} for the test"
    typer.echo(f"{out}: {counts}, {made.bad} lines left out")


@app.command()
def generate(
    params: ParamsFile = PARAMS,
    captions: Annotated[Path, typer.Option(help="What to draw.")] = CAPTIONS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: Annotated[Path, typer.Option(help="Manifest to write.")] = MANIFEST,
) -> None:
    """Draws a set of images for each caption, into the object store."""
    wanted = read_params(params).generate
    machine = Machine("generate")
    from m2m.stages import generate

    made = generate.run(
        wanted,
        captions=captions,
        stable_diffusion=foundation / "stable-diffusion",
        inception=foundation / "inception",
        manifest=manifest,
        runtime=machine.runtime(),
    )
    _tell(manifest, made)


@app.command()
def views(
    params: ParamsFile = PARAMS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: Annotated[Path, typer.Option(help="Manifest to write.")] = VIEWS_MANIFEST,
) -> None:
    """Makes the sets of novel view synthesis, objects seen by many cameras, in the object store."""
    wanted = read_params(params).views
    machine = Machine("views")
    from m2m.stages import views

    weights = foundation / "stable-diffusion"
    _tell(manifest, views.run(wanted, stable_diffusion=weights, manifest=manifest, runtime=machine.runtime()))


@app.command()
def procedures(
    params: ParamsFile = PARAMS,
    foundation: FoundationFolder = FOUNDATION,
    manifest: Annotated[Path, typer.Option(help="Manifest to write.")] = PROCEDURES_MANIFEST,
) -> None:
    """Makes the sets of visual procedure generation, pictures step after step, in the object store."""
    wanted = read_params(params).procedures
    machine = Machine("procedures")
    from m2m.stages import procedures

    weights = foundation / "stable-diffusion"
    _tell(manifest, procedures.run(wanted, stable_diffusion=weights, manifest=manifest, runtime=machine.runtime()))


def _tell(manifest: Path, made: Manifest) -> None:
    """How large a dataset is."""
    sets = ", ".join(f"{count} {split} sets" for split, count in made.sets.items())
    most = "up to " if made.kind == "vpg" else ""
    typer.echo(f"{manifest}: {sets} of {most}{made.images_per_set} images in {len(made.shards)} shards")
