"""Options that several commands have, and where things lie unless these say otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2m.errors import UserError
from m2m.params import Task, Variant

if TYPE_CHECKING:
    from m2m.params import Params

ParamsFile = Annotated[Path, typer.Option("--params", help="Parameter file.")]
VariantOption = Annotated[Variant, typer.Option("--variant", help="What encodes the preceding images.")]
FoundationFolder = Annotated[Path, typer.Option("--foundation", help="Folder with the foundation's models.")]
ManifestFile = Annotated[Path, typer.Option("--manifest", help="Manifest of the MIS dataset.")]

PARAMS = Path("params.yaml")
FOUNDATION = Path("models/foundation")
CAPTIONS = Path("data/captions.parquet")
MANIFEST = Path("data/mis.json")
VIEWS_MANIFEST = Path("data/nvs.json")
PROCEDURES_MANIFEST = Path("data/vpg.json")
PROFILES = Path("profiles")
RATED = ("generate", "train@self", "train@dino")


def task_manifest(task: Task) -> Path:
    """Where the manifest of a task's dataset lies."""
    return VIEWS_MANIFEST if task == "nvs" else PROCEDURES_MANIFEST


def read_params(path: Path) -> Params:
    """The parameters in a file.

    Raises:
        UserError: the first thing that is wrong with it.
    """
    from m2m.params_file import load_params

    return load_params(path)


def profile_file(name: str) -> Path:
    """The parameter file of a profile.

    Raises:
        UserError: there is none of this name; names those that there are.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in PROFILES.glob("*.yaml"))) or "none here"
        raise UserError(f"no profile {name!r} in {PROFILES}/; there are {there}")
    return path


def read_rates(texts: Sequence[str]) -> dict[str, float]:
    """Images a second by stage, from texts such as ``train@self=800``.

    Raises:
        UserError: one is not of this form.
    """
    rates = {}
    for text in texts:
        stage, _, number = text.partition("=")
        if stage not in RATED or not re.fullmatch(r"\d*\.?\d+", number) or float(number) <= 0:
            raise UserError(f"--rate {text}: expected STAGE=N, N images a second, for {', '.join(RATED)}")
        rates[stage] = float(number)
    return rates
