"""``m2m sample``: pictures in, the next ones of their set out."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2m.contact_sheet import animation, contact_sheet
from m2m.diffusion.sampler import make_scheduler
from m2m.errors import UserError
from m2m.files import file_digest, folder_digest, write_atomically, writing
from m2m.params import SolverName
from m2m.photos import drawn_by_a_model, open_photo, square
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.progress import progress
from m2m.world.cameras import Camera


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How to draw; the defaults of the command line are the only ones."""

    num_images: int
    solver: SolverName
    num_inference_steps: int
    guidance_scale: float
    context_timestep: int
    drawn_context: int | None
    """How many drawn pictures later ones read, as `M2MPipeline` takes it."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class ViewAngles:
    """From where a model of views sees the object, in degrees; all cameras look at it from one distance."""

    azimuth: tuple[float, ...]
    """of the pictures to draw, counter-clockwise seen from above, from the first given one's camera; none: an orbit"""
    elevation: float | None
    """of these; None: as the given ones"""
    given_azimuth: tuple[float, ...]
    """of the given pictures after the first"""
    given_elevation: float

    def cameras(self, given: int, num_images: int) -> list[Camera]:
        """Of the given pictures, then of those to draw.

        Raises:
            UserError: there are not as many azimuths as pictures, or one is not a direction.
        """
        drawn = self.azimuth or tuple(360 * k / (num_images + 1) for k in range(1, num_images + 1))
        if len(drawn) != num_images:
            raise UserError(f"{len(drawn)} of --azimuth for {num_images} pictures to draw; name one for each, or none")
        if 1 + len(self.given_azimuth) != given:
            raise UserError(
                f"{len(self.given_azimuth)} of --given-azimuth for {given} given pictures; "
                "name one for each but the first"
            )
        elevation = self.given_elevation if self.elevation is None else self.elevation
        return [
            *(Camera(azimuth, self.given_elevation) for azimuth in (0.0, *self.given_azimuth)),
            *(Camera(azimuth, elevation) for azimuth in drawn),
        ]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one model draws."""

    drawing: Drawing
    angles: ViewAngles | None
    """for a model of views, and only for one"""
    model: Path
    """a pipeline folder"""
    images: Sequence[Path]
    """picture files of any kind and size, in order; the middle square of each is used"""
    out: Path


def run_all(jobs: Sequence[Job], *, out: Path, commit: str, threads: int, device: str) -> list[Path]:
    """As `run` with one job; with several, one sheet in `out` has a row of each.

    Raises:
        UserError: as `run`, or two jobs have one folder.
    """
    if len(jobs) == 1:
        return run(jobs[0], commit=commit, threads=threads, device=device)
    sheet = out / "contact-sheet.png"
    # Before the first one draws: what none of them can do, or one is not.
    for job in jobs:
        _keep_given(job.images, [sheet])
        for path in job.images:
            open_photo(path)
        if not (job.model / "model_index.json").is_file():
            raise UserError(f"{job.model}: not a model folder; give one that training made")
    for number, job in enumerate(jobs):
        if job.out in [other.out for other in jobs[:number]]:
            raise UserError(f"two models are named {job.out.name}: their pictures would have one folder; rename one")
    made = [run(job, commit=commit, threads=threads, device=device) for job in jobs]
    rows = [Image.open(files[-1]) for files in made]
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        whole.paste(row, (0, sum(above.height for above in rows[:number])))
    write_atomically(sheet, _png(whole, {"rows": [json.loads(row.info["m2m"]) for row in rows]}))
    return [*(file for files in made for file in files[:-1]), sheet]


def run(job: Job, *, commit: str, threads: int, device: str) -> list[Path]:
    """Writes ``001.png`` … and ``contact-sheet.png``, the last of the files that are returned.

    The text entry ``m2m`` of each names the command that made it. A model of views also makes ``turntable.gif``.

    Args:
        commit: of the code, for the note.
        threads: of the CPU, for the note: another number changes the last bits.

    Raises:
        UserError: no pictures are given or wanted, one cannot be read or would be overwritten, the folder is no model,
            the disk refuses.
    """
    drawing, angles, model, images, out = job.drawing, job.angles, job.model, job.images, job.out
    if not images:
        raise UserError("no pictures given; name at least one: --images a.png b.jpg")
    if drawing.num_images < 1:
        raise UserError(f"--num-images is {drawing.num_images}; ask for at least 1")
    given = [open_photo(path) for path in images]
    files = tuple(out / f"{number:03}.png" for number in range(1, drawing.num_images + 1))
    sheet, turntable = out / "contact-sheet.png", out / "turntable.gif"
    _keep_given(images, [*files, sheet, *([turntable] if angles else [])])
    pipeline = load_pipeline(model, device=device)
    pipeline.scheduler = make_scheduler(drawing.solver, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    last_timestep = pipeline.scheduler.config.num_train_timesteps - 1
    if drawing.num_inference_steps > last_timestep + 1 or drawing.context_timestep > last_timestep:
        raise UserError(f"the model has {last_timestep + 1} timesteps; give fewer steps, or a smaller context timestep")

    poses = _poses(angles, pipeline, len(given), drawing.num_images)
    with writing(files[0]):  # a place that cannot be written to is better known before the drawing
        out.mkdir(parents=True, exist_ok=True)
    steps = drawing.num_images * drawing.num_inference_steps
    with progress(steps, "sample", unit="steps") as advance:

        def after_step(_: object, __: int, ___: object, state: dict[str, object]) -> dict[str, object]:
            advance()
            return state

        drawn = pipeline(
            given,
            num_images=drawing.num_images,
            num_inference_steps=drawing.num_inference_steps,
            guidance_scale=drawing.guidance_scale,
            context_timestep=drawing.context_timestep,
            drawn_context=drawing.drawn_context,
            generator=drawing.seed,
            poses=poses,
            callback_on_step_end=after_step,
            return_dict=False,
        )[0]

    note = {
        "command": _command(drawing, angles, model, images),
        "model": {"folder": str(model), "sha256": folder_digest(model)},
        "images": [{"file": str(path), "sha256": file_digest(path)} for path in images],
        "commit": commit,
        "threads": threads,
        "device": device,
        **asdict(drawing),
        **(asdict(angles) if angles else {}),
    }
    for number, (file, picture) in enumerate(zip(files, drawn, strict=True), 1):
        write_atomically(file, _png(picture, {**note, "number": number}, wholly=True))
    seen = [square(photo, pipeline.image_size) for photo in given]
    write_atomically(sheet, _png(contact_sheet([(seen, drawn)]), note))
    if angles:
        write_atomically(turntable, animation([*seen, *drawn]))
    return [*files, sheet]


def _keep_given(images: Sequence[Path], written: Sequence[Path]) -> None:
    """Nobody who continues a set loses what it begins with."""
    for path in written:
        for given in images:
            if given.exists() and path.exists() and path.samefile(given):
                raise UserError(f"{given} is given and would be overwritten by a drawn picture; name another --out")


def _poses(
    angles: ViewAngles | None, pipeline: M2MPipeline, given: int, num_images: int
) -> npt.NDArray[np.float64] | None:
    if (angles is not None) != (pipeline.unet.pose_dim > 0):
        remedy = "name another --model, or leave --task out" if angles else "say --task nvs, and --azimuth"
        raise UserError(f"the model {'draws no views' if angles else 'draws views of an object'}; {remedy}")
    if angles is None:
        return None
    return np.stack([camera.matrix() for camera in angles.cameras(given, num_images)])


def _command(drawing: Drawing, angles: ViewAngles | None, model: Path, images: Sequence[Path]) -> str:
    """What to type in the same folder to draw the same again."""
    views: list[object] = []
    if angles:
        views = ["--task", "nvs", "--given-elevation", angles.given_elevation]
        views += [word for azimuth in angles.azimuth for word in ("--azimuth", azimuth)]
        views += [word for azimuth in angles.given_azimuth for word in ("--given-azimuth", azimuth)]
        views += [] if angles.elevation is None else ["--elevation", angles.elevation]
    options = (
        *("--model", model, "--num-images", drawing.num_images, "--solver", drawing.solver),
        *("--steps", drawing.num_inference_steps, "--guidance-scale", drawing.guidance_scale),
        *("--context-timestep", drawing.context_timestep, "--seed", drawing.seed),
        *("--drawn-context", "all" if drawing.drawn_context is None else drawing.drawn_context),
        *views,
    )
    return shlex.join(["m2m", "sample", *map(str, options), "--images", *map(str, images)])


def _png(picture: Image.Image, note: Mapping[str, object], *, wholly: bool = False) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=drawn_by_a_model(note, wholly=wholly))
    return buffer.getvalue()
