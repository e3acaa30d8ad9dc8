"""The program that the commands belong to, and options that they share: what people can mend is one line."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m2m.errors import OutsideError, UserError

ParamsFile = Annotated[Path, typer.Option("--params", help="Parameter file.")]
FoundationFolder = Annotated[Path, typer.Option("--foundation", help="Folder with the foundation's models.")]
PARAMS, FOUNDATION, MANIFEST = Path("params.yaml"), Path("models/foundation"), Path("data/mis.json")
RELEASED = Path("models/released")
OUTSIDE_NOTE = "M2M_OUTSIDE_NOTE"
"""Names a file to write when a server did not answer: DVC, in between, hides exit codes from whoever may try again."""
DISK_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class Commands(TyperGroup):
    """Turns what people can mend into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"m2m: {error}", err=True)
            if isinstance(error, OutsideError) and (note := os.environ.get(OUTSIDE_NOTE)):
                Path(note).write_text(f"{error}\n")
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in DISK_REFUSALS:
                raise
            typer.echo(f"m2m: cannot write {error.filename or 'to the disk'}: {error.strerror}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("m2m: interrupted; the same command goes on where it was", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Many-to-many image generation: each command is a stage of the pipeline, or looks at what one made.",
)


@app.callback()
def _every_command() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr's: file names may hold bytes that are no text
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


def model_folder(item: str) -> Path:
    """The model that was trained here; where there is none, the released one."""
    trained, released = Path(f"models/m2m-{item}"), RELEASED / f"m2m-{item}"
    if trained.exists() or not released.exists():
        return trained
    typer.echo(f"m2m: {trained} was not trained here: {released} takes its place", err=True)
    return released


def main() -> None:
    """Entry point of the console script, which belongs to one checkout and is called in any."""
    _hand_over(Path.cwd())
    app(prog_name="m2m")


def _hand_over(folder: Path) -> None:
    """Becomes the command line of the checkout that `folder` lies in, unless that is this one."""
    for checkout in (folder, *folder.parents):
        theirs = checkout / "m2m" / "cli" / "program.py"
        if not theirs.is_file() or not (checkout / "dvc.yaml").is_file():
            continue
        if not theirs.samefile(__file__):
            places = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(places)
            # -P: from a folder below, Python must not look there first.
            os.execv(sys.executable, [sys.executable, "-P", "-m", "m2m.cli", *sys.argv[1:]])
        return
