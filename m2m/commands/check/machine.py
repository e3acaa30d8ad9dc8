"""What every profile asks of a machine; of some things a profile says how much."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path

from m2m.commands.check.profile import GIB, Hint, Need
from m2m.errors import UserError
from m2m.files import check_digests, stated_digest
from m2m.foundation.sources import SOURCES
from m2m.manifest import Manifest
from m2m.params import HubFoundation
from m2m.settings import Settings, sqlite_file, without_password
from m2m.store import open_store
from m2m.tracking import check_tracking, installed_libraries, open_history

FREE_SPACE = 4 * GIB
"""Bytes that the embedded profile, MLflow and DVC's cache fit in with room to spare."""
MODELS = 6
"""Of both variants, and of each for two tasks."""
MODEL, CHECKPOINT, WEIGHTS = 4.5e9, 14e9, 9e9
"""Bytes of a model of the published size, of its checkpoint on the way to the store, of what is fetched."""
FOUNDATION = ("stable-diffusion/model_index.json", "dino/config.json", "clip/config.json", "inception/config.json")


def python() -> str:
    """The version."""
    if sys.version_info[:2] != (3, 11):
        raise UserError(f"Python {platform.python_version()}; the packages need 3.11: make setup PYTHON=python3.11")
    return platform.python_version()


def packages(constraints: Path, settings: Settings) -> str:
    """Whether they are those that are pinned."""
    if not constraints.exists():
        raise UserError(f"{constraints} is not there; run this in the repository's folder")
    pins = re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text(), re.MULTILINE)
    found, extras = {name: _version(name) for name, _ in pins}, _extras()
    optional = [f"{name}, of the extra {extra}" for name, extra in extras.items() if found.get(name) == "missing"]
    wrong = [
        f"{name} {found[name]}, not {pin}"
        for name, pin in pins
        if found[name] != pin and (found[name] != "missing" or name not in extras)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{', '.join(wrong[:3])}{more}; run make setup")
    if settings.engine != "local" and _version("ray") == "missing":
        raise UserError(f"M2M_ENGINE is {settings.engine}, but ray is missing; pip install -c constraints.txt '.[ray]'")
    without = f"; optional, and not there: {'; '.join(optional)}" if optional else ""
    return f"{len(pins) - len(optional)} as pinned{without}"


def _extras() -> dict[str, str]:
    """By name, the packages that only an extra asks for."""
    try:
        asked = importlib.metadata.requires("m2m") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout: what is missing is told
        return {}
    found = (re.match(r"([\w.-]+)[^;]*; extra == .(\w+)", one) for one in asked)
    return {one[1]: one[2] for one in found if one and one[2] != "dev"}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def disk(checkout: Path, settings: Settings, foundation: Path, need: Need | None) -> str:
    """What comes to lie on each disk, against what is free there."""
    if need is None or not isinstance(need.params.foundation, HubFoundation):
        parts = [("all", checkout, float(FREE_SPACE))]
    else:
        missing = MODELS - len([*(checkout / "models").glob("m2m-*")])
        copies = 2 if sqlite_file(settings.tracking_uri) else 1  # MLflow keeps one of each beside its database
        parts = [
            ("models", checkout, copies * missing * MODEL),
            ("a checkpoint", settings.work, CHECKPOINT),
            ("weights", settings.work, 0.0 if (foundation / SOURCES).exists() else WEIGHTS),
        ]
        if "://" in settings.store:
            kept = sum(path.stat().st_size for path in (settings.work / "cache").rglob("*") if path.is_file())
            parts.append(("the cache", settings.work, max(0.0, settings.cache_bytes - kept)))
        elif not (checkout / "data" / "mis.json").exists():
            parts.append(("the dataset", Path(settings.store), need.dataset))
    told, disks = [], dict[int, Path]()
    for _, folder, _ in parts:
        disks.setdefault(_standing(folder).stat().st_dev, _standing(folder))
    for number, at in disks.items():
        here = {what: size / GIB for what, folder, size in parts if _standing(folder).stat().st_dev == number}
        free, wanted = shutil.disk_usage(at).free / GIB, sum(here.values())
        each = ", ".join(f"{what} {size:,.0f}" for what, size in here.items())
        text = f"{free:,.{0 if free > 10 else 1}f} GiB free in {at}, of {wanted:,.0f} wanted ({each})"
        if free < wanted:
            raise UserError(f"{text}; free some, or set M2M_STORE")
        told.append(text)
    return ", ".join(told)


def _standing(folder: Path) -> Path:
    """The first folder on the way to this one that is there: what is made there comes to lie on its disk."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


def device(settings: Settings) -> str:
    """What computes, for whoever sets nothing else."""
    import torch

    found = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if settings.device.startswith("cuda") and not found:
        raise UserError(f"M2M_DEVICE is {settings.device}, but torch {torch.__version__} finds no GPU; unset it")
    threads = settings.threads or torch.get_num_threads()
    return f"{settings.device}: {', '.join(found) or 'no GPU'}, {threads} CPU threads"


def foundation(folder: Path) -> str:
    """Whether the small models are there and whole."""
    missing = [name for name in FOUNDATION if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder / missing[0]} is missing; check it out of git, or make it: dvc repro foundation")
    for one in folder.iterdir():
        check_digests(one)
    return str(folder)


def store(settings: Settings, need: Need | None) -> str | Hint:
    """Whether it takes, gives and removes an object; and whether other machines have it."""
    opened, began = open_store(settings.store, cache=settings.work / "cache"), time.monotonic()
    opened.check()
    text = f"{opened.uri}, a trial in {time.monotonic() - began:.2f} s"
    several = settings.on_other_machines or (need is not None and (need.gpus or settings.ranks or 1) > 1)
    if several and "://" not in opened.uri:
        return Hint(text, "for several machines: a folder on a disk that all share, or M2M_STORE=s3://bucket/prefix")
    return text


def tracking(settings: Settings) -> str:
    """Whether runs can be recorded."""
    uri, shown = settings.tracking_uri, without_password(settings.tracking_uri)
    file = sqlite_file(uri)
    if file and settings.on_other_machines:
        raise UserError(f"{shown} is a file, which no node of a cluster reaches; set MLFLOW_TRACKING_URI to a server")
    if file and not file.exists():  # MLflow takes seconds to make it
        there = _standing(file)
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"{shown}: {there} cannot be written; set MLFLOW_TRACKING_URI")
        return f"{shown}, which the first run makes"
    try:
        check_tracking(uri)
    except UserError as error:
        raise UserError(f"{error}; start it, or set MLFLOW_TRACKING_URI to another, or to none") from error
    waiting = len(list((settings.work / "spool").glob("*/header.json")))
    return shown + (f"; {waiting} unfinished runs, which the next run sends" if waiting else "")


def outputs(settings: Settings, checkout: Path) -> str:
    """Whether what is there was made by the libraries that are installed: a person decides whether to make it again."""
    if settings.tracking_uri == "none":
        return "tracking is off: nothing tells which libraries made them"
    manifests = [path for name in ("mis", "nvs", "vpg") if (path := checkout / "data" / f"{name}.json").exists()]
    models = sorted(path for path in (checkout / "models").glob("m2m-*") if path.is_dir())
    told, file = f"{len(manifests)} datasets and {len(models)} models", sqlite_file(settings.tracking_uri)
    if not (manifests or models):
        return told
    if file and not file.exists():
        return f"{told}, of which no run tells"
    history, other, silent = open_history(settings.tracking_uri), [], 0
    for path in [*manifests, *models]:
        is_model = path in models
        digest = stated_digest(path) if is_model else Manifest.read(path).digest
        made_by = history.libraries("model" if is_model else "manifest", digest)
        silent += not made_by
        if changed := [" ".join(library) for library in made_by.items() - installed_libraries().items()]:
            other.append(f"{path.relative_to(checkout)} (by {', '.join(sorted(changed))})")
    if other:
        raise UserError(f"made by other libraries: {', '.join(other)}; keep them, or make them anew: dvc repro --force")
    return f"{told}, by the libraries that are installed" + (f"; of {silent} no run tells" if silent else "")
