"""``m2m check``: whether this machine is ready; each line says ok or what to do."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from m2m.errors import UserError
from m2m.files import check_digests, folder_digest
from m2m.manifest import Manifest
from m2m.settings import Settings, without_password
from m2m.store import open_store
from m2m.tracking import check_tracking, installed_libraries, open_history

FREE_SPACE = 4 * 2**30
"""Bytes that the embedded profile, MLflow and DVC's cache fit in with room to spare."""
FOUNDATION = ("stable-diffusion/model_index.json", "dino/config.json", "clip/config.json", "inception/config.json")


def run(settings: Settings, *, checkout: Path, foundation: Path) -> Iterator[tuple[bool, str]]:
    """Looks at one thing after the other; nothing is changed but for a trial object in the store, which is removed.

    Args:
        checkout: folder with ``constraints.txt``, datasets and models.
        foundation: folder with the foundation's models.

    Yields:
        whether a thing is as it should be, and the line that says so, or what to do.
    """
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "packages": lambda: _packages(checkout / "constraints.txt"),
        "disk": lambda: _disk(checkout),
        "device": lambda: _device(settings),
        "foundation": lambda: _foundation(foundation),
        "store": lambda: _store(settings),
        "tracking": lambda: _tracking(settings),
        "outputs": lambda: _outputs(settings, checkout),
    }
    for name, check in checks.items():
        try:
            ok, text = True, check()
        except UserError as error:
            ok, text = False, str(error)
        yield ok, f"{name:<10}  {'ok     ' if ok else 'TO DO  '}  {text}"


def _python() -> str:
    if sys.version_info[:2] != (3, 11):
        raise UserError(f"Python {platform.python_version()}; the packages need 3.11: make setup PYTHON=python3.11")
    return platform.python_version()


def _packages(constraints: Path) -> str:
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


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < FREE_SPACE:
        raise UserError(f"{free / 2**30:.1f} GiB free in {folder}; free {FREE_SPACE / 2**30:.0f} GiB, or set M2M_STORE")
    return f"{free / 2**30:.0f} GiB free"


def _device(settings: Settings) -> str:
    import torch

    found = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if settings.device.startswith("cuda") and not found:
        raise UserError(f"M2M_DEVICE is {settings.device}, but torch {torch.__version__} finds no GPU; unset it")
    threads = settings.threads or torch.get_num_threads()
    return f"{settings.device}: {', '.join(found) or 'no GPU'}, {threads} CPU threads"


def _foundation(folder: Path) -> str:
    missing = [name for name in FOUNDATION if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder / missing[0]} is missing; check it out of git, or make it: dvc repro foundation")
    for one in folder.iterdir():
        check_digests(one)
    return str(folder)


def _store(settings: Settings) -> str:
    store = open_store(settings.store, cache=settings.work / "cache")
    store.check()
    return store.uri


def _tracking(settings: Settings) -> str:
    check_tracking(settings.tracking_uri)
    waiting = len(list((settings.work / "spool").glob("*/header.json")))
    later = f"; {waiting} unfinished runs, which the next run sends" if waiting else ""
    return without_password(settings.tracking_uri) + later


def _outputs(settings: Settings, checkout: Path) -> str:
    """Whether what is there was made by the libraries that are installed: a person decides whether to make it again."""
    if settings.tracking_uri == "none":
        return "tracking is off: nothing tells which libraries made them"
    history, other, silent = open_history(settings.tracking_uri), [], 0
    manifests = [path for name in ("mis", "nvs", "vpg") if (path := checkout / "data" / f"{name}.json").exists()]
    models = sorted(path for path in (checkout / "models").glob("m2m-*") if path.is_dir())
    for path in [*manifests, *models]:
        is_model = path in models
        digest = folder_digest(path) if is_model else Manifest.read(path).digest
        made_by = history.libraries("model" if is_model else "manifest", digest)
        silent += not made_by
        if changed := [" ".join(library) for library in made_by.items() - installed_libraries().items()]:
            other.append(f"{path.relative_to(checkout)} (by {', '.join(sorted(changed))})")
    if other:
        raise UserError(f"made by other libraries: {'; '.join(other)}; keep them, or make them anew: dvc repro --force")
    told = f"{len(manifests)} datasets and {len(models)} models"
    return f"{told}, by the libraries that are installed" + (f"; of {silent} no run tells" if silent else "")
