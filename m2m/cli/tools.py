"""Commands that look at what the stages made, or use it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from m2m.cli.program import FOUNDATION, MANIFEST, PARAMS, RELEASED, FoundationFolder, app, model_folder
from m2m.errors import UserError
from m2m.params import SolverName, Task
from m2m.params_file import load_params
from m2m.runtime import Machine

PROFILES, EXAMPLES = Path("profiles"), Path("docs/examples")
DRAWN_CONTEXT = "How many drawn pictures later ones read, the first of them; 0: the given ones alone; all: what fits."
RATED = ("generate", "train@self", "train@dino")


def _count_or_all(text: str) -> int | None:
    if text != "all" and not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is no number of drawn pictures; expected 0, 1, … or all")
    return None if text == "all" else int(text)


@app.command()
def verify(manifest: Annotated[Path, typer.Argument(help="Manifest of the dataset.")] = MANIFEST) -> None:
    """Proves that the store holds what a manifest says."""
    machine = Machine("verify")
    from m2m.commands import verify

    typer.echo(f"{manifest}: {verify.run(manifest, store=machine.store())}")


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="Folder to fill.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest of the dataset.")] = MANIFEST,
) -> None:
    """Copies a dataset to where others can use it, with index, metadata and card: m2m export data/mis.json --to mis"""
    machine = Machine("export")
    from m2m.commands import export

    typer.echo(f"{to}: {export.run(manifest, to=to, store=machine.store())}")


@app.command()
def sample(
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Model folder; models/m2m-dino[-TASK], or else the released one. Several are compared."),
    ] = None,
    task: Annotated[Task | None, typer.Option(help="Of a fine-tuned model. nvs: novel views; vpg: procedures.")] = None,
    images: Annotated[list[Path] | None, typer.Option("--images", help="The preceding pictures.")] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGES]...", help="More of them.")] = None,
    num_images: Annotated[int, typer.Option(help="How many to draw.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for 001.png … and contact-sheet.png.")] = Path("out"),
    solver: Annotated[SolverName, typer.Option(help="Diffusion solver.")] = "dpmsolver++",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps an image.")] = 25,
    guidance_scale: Annotated[float, typer.Option(min=1.0, help="Classifier-free guidance; 1 turns it off.")] = 1.25,
    context_timestep: Annotated[int, typer.Option(min=0, help="Noise on the preceding images; 0: none.")] = 0,
    drawn_context: Annotated[
        int | None, typer.Option(parser=_count_or_all, metavar="N|all", show_default="all", help=DRAWN_CONTEXT)
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one draws others.")] = 0,
    azimuth: Annotated[
        list[float] | None,
        typer.Option(help="nvs: degrees around the object from the first picture, for each to draw; none: an orbit."),
    ] = None,
    elevation: Annotated[float | None, typer.Option(help="nvs: degrees above the object; as the given ones.")] = None,
    given_azimuth: Annotated[
        list[float] | None, typer.Option(help="nvs: of each given picture after the first.")
    ] = None,
    given_elevation: Annotated[float, typer.Option(help="nvs: degrees above the object of the given pictures.")] = 20.0,
) -> None:
    """Draws the next pictures of a set: m2m sample --model models/m2m-dino --images a.png b.jpg --num-images 6"""
    machine = Machine("sample")
    from m2m.commands import sample
    from m2m.settings import revision

    device = machine.device()
    angles = None
    if task == "nvs":
        angles = sample.ViewAngles(
            azimuth=tuple(azimuth or ()),
            elevation=elevation,
            given_azimuth=tuple(given_azimuth or ()),
            given_elevation=given_elevation,
        )
    drawing = sample.Drawing(
        num_images=len(azimuth) if task == "nvs" and azimuth else num_images,
        solver=solver,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        context_timestep=context_timestep,
        drawn_context=drawn_context,
        seed=seed,
    )
    models = model or [model_folder(f"dino-{task}" if task else "dino")]
    jobs = [
        sample.Job(
            drawing=drawing,
            angles=angles,
            model=folder,
            # An option takes one value, so a shell's a.png b.jpg arrives as an option and arguments.
            images=[*(images or ()), *(more or ())],
            out=out if len(models) == 1 else out / name,
        )
        for folder, name in zip(models, _names(models), strict=True)
    ]
    made = sample.run_all(jobs, out=out, commit=str(revision()), threads=machine.threads(), device=device)
    _tell(made)


@app.command("try")
def try_(
    models: Annotated[Path, typer.Option(help="Folder with m2m-dino, m2m-dino-nvs and m2m-self-vpg.")] = RELEASED,
    examples: Annotated[Path, typer.Option(help="Folder with the pictures to go on from.")] = EXAMPLES,
    out: Annotated[Path, typer.Option(help="Folder for contact-sheet.png, and one of each task.")] = Path("out/try"),
) -> None:
    """Draws with the released models, no training needed: more of a set, an object's other sides, the next steps."""
    if not examples.is_dir():
        raise UserError(f"no example pictures in {examples}/; call it in the checkout, or name a folder by --examples")
    machine = Machine("try")
    from m2m.commands import sample
    from m2m.settings import revision

    def job(name: str, pattern: str, *, num_images: int, steps: int, drawn_context: int | None) -> sample.Job:
        drawing = sample.Drawing(
            num_images=num_images,
            solver="dpmsolver++",
            num_inference_steps=steps,
            guidance_scale=1.25,
            context_timestep=0,
            drawn_context=drawn_context,
            seed=0,
        )
        orbit = sample.ViewAngles(azimuth=(), elevation=None, given_azimuth=(), given_elevation=20.0)
        return sample.Job(
            drawing=drawing,
            angles=orbit if name.endswith("-nvs") else None,
            model=models / name,
            images=sorted(examples.glob(pattern)) or [examples / pattern],
            out=out / name,
        )

    jobs = [
        job("m2m-dino", "neon-*.png", num_images=4, steps=12, drawn_context=1),
        job("m2m-dino-nvs", "object.png", num_images=7, steps=6, drawn_context=None),
        job("m2m-self-vpg", "step-1.png", num_images=4, steps=6, drawn_context=None),
    ]
    made = sample.run_all(jobs, out=out, commit=str(revision()), threads=machine.threads(), device=machine.device())
    _tell(made)


def _names(models: list[Path]) -> list[str]:
    """A name for the pictures of each model: its folder's, with that of the folder above where two have one."""
    folders = [model.resolve() for model in models]
    names = [folder.name for folder in folders]
    twice = {name for name in names if names.count(name) > 1}
    return [f"{folder.parent.name}-{folder.name}" if folder.name in twice else folder.name for folder in folders]


def _tell(made: list[Path]) -> None:
    """Where the sheet is, and the pictures on it."""
    *pictures, sheet = made
    first, last = (path.relative_to(sheet.parent) for path in (pictures[0], pictures[-1]))
    typer.echo(f"{sheet}: {len(pictures)} pictures, {first} to {last} beside it")


@app.command()
def render(
    meshes: Annotated[list[Path] | None, typer.Argument(help="GLB, glTF, OBJ, PLY or STL files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to fill, with a folder a mesh.")] = Path("data/my_views"),
    views: Annotated[int, typer.Option(min=2, max=999, help="Pictures of each mesh.")] = 12,
    size: Annotated[int, typer.Option(min=16, max=1024, help="Pixels of a picture's side.")] = 512,
    seed: Annotated[int, typer.Option(help="Another one places the cameras elsewhere.")] = 0,
) -> None:
    """Renders your own meshes for the views stage: m2m render chair.glb table.obj --out data/my_views --views 12"""
    Machine("render")
    from m2m.commands import render

    bad = render.run(meshes or [], out=out, views=views, size=size, seed=seed)
    typer.echo(f"{out}: {len(meshes or []) - len(bad)} meshes rendered from {views} sides, {len(bad)} left out")


@app.command()
def lineage(
    ref: Annotated[
        str,
        typer.Argument(
            help="models:/m2m-dino@champion, models:/m2m-dino/3, a run id, an experiment, a released folder."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs, with whole hashes.")] = False,
) -> None:
    """Tells where a model comes from, from its dataset to its aliases, and the command that makes it again."""
    machine = Machine("lineage")
    from m2m.commands import lineage

    if (Path(ref) / "model_index.json").is_file():
        typer.echo(lineage.of_release(Path(ref), as_json=as_json))
        return
    typer.echo(lineage.run(ref, tracking_uri=machine.settings.tracking_uri, as_json=as_json))


@app.command()
def plan(
    profile: Annotated[str, typer.Argument(help="One of profiles/, such as paper.")] = "paper",
    gpus: Annotated[int, typer.Option(min=1, help="How many share the work.")] = 8,
    pixels: Annotated[int | None, typer.Option(min=8, help="Of a picture's side; by default the profile's.")] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="STAGE=N: images a second of one GPU, in place of what was measured.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="H200, H100, A100 or L40S; where it was not measured, operations are counted.")
    ] = None,
    results: Annotated[Path, typer.Option(help="What make bench wrote.")] = Path("benchmarks/results"),
    bytes_per_image: Annotated[float | None, typer.Option(min=1, help="In a shard, latents included.")] = None,
    gpu_hour: Annotated[float, typer.Option(min=0, help="Price of an hour of one GPU.")] = 0.0,
    gigabyte_month: Annotated[float, typer.Option(min=0, help="Price of 1e9 bytes kept for a month.")] = 0.0,
    thousand_writes: Annotated[float, typer.Option(min=0, help="Price of 1000 requests that write.")] = 0.0,
    thousand_reads: Annotated[float, typer.Option(min=0, help="Price of 1000 requests that read.")] = 0.0,
    simulate: Annotated[bool, typer.Option("--simulate", help="Run it through with failing nodes, too.")] = False,
    node_hours: Annotated[float, typer.Option(min=0.1, help="Between two failures of a node.")] = 6300.0,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="That fail together.")] = 8,
    back_minutes: Annotated[float, typer.Option(min=0, help="Until a node that failed works again.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="The same for programs.")] = False,
) -> None:
    """Tells what a profile takes: GPU-hours, bytes, requests and money. m2m plan paper --gpus 64 --gpu-hour 2"""
    path = _profile_file(profile)
    Machine("plan")
    from m2m.commands import plan
    from m2m.engines.simulation import Failures

    made = plan.run(
        load_params(path),
        results=results,
        pixels=pixels,
        gpus=gpus,
        given=_read_rates(rate or []),
        card=_known_card(card),
        prices=plan.Prices(
            gpu_hour=gpu_hour,
            gigabyte_month=gigabyte_month,
            thousand_writes=thousand_writes,
            thousand_reads=thousand_reads,
        ),
        bytes_per_image=bytes_per_image,
        failures=Failures(node_hours=node_hours, gpus_per_node=gpus_per_node, back_minutes=back_minutes)
        if simulate
        else None,
    )
    typer.echo(plan.to_json(made) if as_json else plan.to_text(made))


@app.command()
def check(
    profile: Annotated[
        str | None, typer.Argument(help="One of profiles/, such as paper; by default what params.yaml holds.")
    ] = None,
    foundation: FoundationFolder = FOUNDATION,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many share the work; by default those here.")] = None,
    results: Annotated[Path, typer.Option(help="What make bench wrote.")] = Path("benchmarks/results"),
) -> None:
    """Tells whether this machine is ready, and what to do if not. For another profile: m2m check paper --gpus 64"""
    machine = Machine("check")
    from m2m.commands import check, plan
    from m2m.commands.check.profile import Need
    from m2m.params import LearningParams, Variant

    path, need = PARAMS if profile is None else _profile_file(profile), None
    if path.is_file():
        params = load_params(path)
        pixels = plan.side(params)

        def memory(variant: Variant, learning: LearningParams, *, set_size: int, sets: int, gpus: int) -> float | None:
            found = plan.memory(
                variant, learning, set_size=set_size, sets=sets, pixels=pixels, gpus=gpus, results=results
            )
            return found.value if found else None

        active = PARAMS.is_file() and PARAMS.read_bytes() == path.read_bytes()
        need = Need(
            params=params,
            fetch=("" if active else f"make profile PROFILE={profile} && ") + "dvc repro foundation",
            gpus=gpus,
            memory=memory,
            dataset=plan.dataset_bytes(params, pixels),
        )
    to_do = 0
    for row in check.run(machine.settings, checkout=Path.cwd(), foundation=foundation, need=need):
        typer.echo(str(row))
        to_do += row.state == "TO DO"
    raise typer.Exit(1 if to_do else 0)


def _profile_file(name: str) -> Path:
    """The parameter file of a profile."""
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in PROFILES.glob("*.yaml"))) or "none here"
        raise UserError(f"no profile {name!r} in {PROFILES}/; there are {there}")
    return path


def _known_card(name: str | None) -> str | None:
    from m2m.commands.plan import CARDS

    if name is not None and name not in CARDS:
        raise UserError(f"--card {name}: expected one of {', '.join(CARDS)}; for another one give each --rate")
    return name


def _read_rates(texts: list[str]) -> dict[str, float]:
    """Images a second by stage, from texts such as ``train@self=800``."""
    rates = {}
    for text in texts:
        stage, _, number = text.partition("=")
        if stage not in RATED or not re.fullmatch(r"\d*\.?\d+", number) or float(number) <= 0:
            raise UserError(f"--rate {text}: expected STAGE=N, N images a second, for {', '.join(RATED)}")
        rates[stage] = float(number)
    return rates
