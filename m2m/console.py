"""What a command of the console has in common with every other: what people can mend is one line and an exit code."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from m2m.errors import OutsideError, UserError

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
