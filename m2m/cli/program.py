"""The program that the commands belong to."""

from __future__ import annotations

import io
import logging
import sys

import typer

from m2m.console import Commands

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


def main() -> None:
    """Entry point of the console script."""
    app()
