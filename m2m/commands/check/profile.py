"""What only some profiles ask for: GPUs of a size, published weights, and files that somebody has to put there."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, get_args

from m2m.errors import UserError, made_again
from m2m.files import open_regular
from m2m.foundation.sources import Sources, find, pins
from m2m.params import (
    Cc12mCaptions,
    FolderProcedures,
    FolderViews,
    HubFoundation,
    LearningParams,
    Params,
    Task,
    Variant,
)
from m2m.settings import Settings
from m2m.store import open_store

GIB = 1 << 30
OVERHEAD = 1.0
"""GiB of a GPU that CUDA takes, and what lies between tensors."""
HASHING = 3.0
"""Seconds in which as many weights are hashed as can be, the smallest first: all of them take five to eighty."""
CHUNK = 1 << 22
LINES, OBJECTS, START = 200, 5, 1 << 20
"""Of captions and of views that are looked at, and bytes of procedures: what comes first is as all of it, mostly."""


class Memory(Protocol):
    """GiB of a GPU for a part of a step, as ``m2m plan`` tells it; None where nothing does."""

    def __call__(
        self, variant: Variant, learning: LearningParams, *, set_size: int, sets: int, gpus: int
    ) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a machine is checked for."""

    params: Params
    fetch: str
    """The command that brings the profile's weights."""
    gpus: int | None
    """How many are planned; None: those that are here."""
    memory: Memory
    dataset: float
    """Bytes of the MIS dataset."""


@dataclass(frozen=True)
class Hint:
    """What was found, which may stay so, and what would be better."""

    what: str
    to_do: str


# GPUs


@dataclass(frozen=True)
class Step:
    """A stage that trains: the parts of its steps have to fit a GPU."""

    stage: str
    variant: Variant
    set_size: int
    sets: int


def gpus(settings: Settings, need: Need) -> str | Hint:
    """Those that are here, beside what training needs of each."""
    import torch

    here = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    sections = _sections(need.params)
    steps = [(step, learning) for learning, those in sections.values() for step in those]
    count = need.gpus or settings.ranks or len(here) or max(step.sets for step, _ in steps)
    most, stage = max((_needed(need, step, learning, count), step.stage) for step, learning in steps)
    wanted = f"{count} in all" + (
        f" take {most:,.0f} GiB each ({stage})" if most else ", and nobody measured what they take"
    )
    if settings.on_other_machines:
        return Hint(f"those of {settings.engine}: {wanted}", "its nodes are asked before any work is done")
    if not here:
        raise UserError(f"none here: {wanted}; go where they are, or name a cluster in M2M_ENGINE (docs/scale.md)")
    if settings.device == "cpu":
        raise UserError("M2M_DEVICE is cpu; unset it")
    room = min(card.total_memory for card in here) / GIB
    text = f"{len(here)} x {here[0].name}, {room:,.0f} GiB: {wanted}"
    changes = [
        _change(need, section, learning, those, count=count, room=room - OVERHEAD)
        for section, (learning, those) in sections.items()
    ]
    if any(changes):
        raise UserError(f"{text}; {', '.join(filter(None, changes))}")
    return text


def _sections(params: Params) -> dict[str, tuple[LearningParams, list[Step]]]:
    """Stages by the parameters that they share."""
    common, finetune, variants = params.train.common, params.finetune, get_args(Variant)
    train = [Step(f"train@{one}", one, common.set_size, params.train.variant.of(one).sets_per_step) for one in variants]
    of_tasks = [
        Step(f"finetune@{one}-{task}", one, finetune.of(task).set_size, finetune.of(task).of(one).sets_per_step)
        for one in variants
        for task in get_args(Task)
    ]
    return {"train.common": (common, train), "finetune.common": (finetune.common, of_tasks)}


def _needed(need: Need, step: Step, learning: LearningParams, count: int) -> float:
    """GiB of a GPU; 0 where nothing tells."""
    return need.memory(step.variant, learning, set_size=step.set_size, sets=step.sets, gpus=count) or 0.0


def _change(need: Need, section: str, learning: LearningParams, steps: list[Step], *, count: int, room: float) -> str:
    """What lets all steps fit; empty if they do. One more part of a step costs less than activations computed again."""
    fewest = min(step.sets for step in steps)
    parts = [one for one in range(1, fewest // count + 1) if not any(step.sets % (count * one) for step in steps)]
    if not parts:
        return f"plan a number of GPUs that divides {fewest}, the sets of a step (--gpus)"
    if learning.gradient_accumulation in parts:
        parts = [learning.gradient_accumulation, *parts]
    for again in dict.fromkeys((learning.gradient_checkpointing, True)):
        for part in parts:
            values = {"gradient_accumulation": part, "gradient_checkpointing": again}
            tried = learning.model_copy(update=values)
            if all(_needed(need, step, tried, count) <= room for step in steps):
                changed = [f"{key} {value}" for key, value in values.items() if getattr(learning, key) != value]
                return f"set {section}: {', '.join(changed).replace('True', 'true')}" if changed else ""
    return f"{section} fits no GPU of this size"


# Weights


def weights(
    params: HubFoundation, settings: Settings, foundation: Path, fetch: str, store_answers: Callable[[], bool]
) -> str:
    """Where each pinned one is; those on this machine are hashed, as far as there is time."""
    sources = Sources(settings.work / "hub", folder=settings.weights)
    find_ = partial(find, foundation=foundation, sources=sources)
    found = {name: find_(pin, name) for name, pin in pins(params).items()}
    files = [*dict.fromkeys(file for one in found.values() if one for file in one.files)]
    hashed, damaged = _hashed(files)
    if damaged:
        remedy = made_again("foundation") if foundation in damaged.parents else fetch
        raise UserError(f"{damaged} is missing or damaged; {remedy}")
    if not all(found.values()) and store_answers():
        sources.store = open_store(settings.store, cache=settings.work / "cache")
        found |= {name: find_(pin, name) for name, pin in pins(params).items() if not found[name]}
    places: dict[str, list[str]] = {}
    for name, one in found.items():
        places.setdefault(f"in {one.where}" if one else "missing", []).append(name)
    told = " / ".join(f"{', '.join(names)} {where}" for where, names in places.items())
    if files:
        told += f" ({hashed} of {len(files)} files by hash)"
    if places.keys() != {f"in {foundation}"}:
        raise UserError(f"{told}; {fetch}")
    return told


def _hashed(files: list[tuple[Path, str]]) -> tuple[int, Path | None]:
    """How many files are as they were, of those that could be hashed in time; and one that is not, if there is one."""
    for path, _ in files:
        if not path.is_file():
            return 0, path
    deadline = time.monotonic() + HASHING
    for done, (path, sha256) in enumerate(sorted(files, key=lambda file: file[0].stat().st_size)):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(partial(file.read, CHUNK), b""):
                if time.monotonic() > deadline:
                    return done, None
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            return done, path
    return len(files), None


# Files that somebody puts there


def captions(params: Cc12mCaptions) -> str:
    """Whether they begin as they should."""
    from m2m.data.captions import BadLine, read_lines

    path = Path(params.path)
    if not path.exists():
        raise UserError(f"captions.path: {path} is not there; put Conceptual 12M's file there (docs/scale.md)")
    lines = [*islice(read_lines(params), LINES)]
    bad = [line.fault for line in lines if isinstance(line, BadLine)]
    if 2 * len(bad) >= len(lines):
        reason = f"{len(bad)} of its first {len(lines)} lines are bad: {bad[0]}" if bad else "it is empty"
        raise UserError(f"captions.path: {path}: {reason}; see captions.format, or fetch it again (docs/scale.md)")
    return f"{path}, {path.stat().st_size / 1e9:,.1f} GB, {len(bad)} of its first {len(lines)} lines bad"


def views(params: FolderViews) -> str:
    """Whether some objects have their pictures, and cameras that see them."""
    told = []
    for key, path in _named("views", params.path, params.test_path):
        try:
            with os.scandir(path) as entries:  # a million of them may follow
                folders = [*islice((Path(one) for one in entries if one.is_dir() and one.name[0] != "."), OBJECTS)]
        except OSError as error:
            raise UserError(
                f"{key}: {path} cannot be read ({error.strerror}); put renderings there (docs/data.md)"
            ) from error
        faults = [fault for folder in folders if (fault := _view_fault(folder, params))]
        if len(faults) == len(folders):
            reason = faults[0] if faults else f"{path} holds no folders; put renderings there"
            raise UserError(f"{key}: {reason} (docs/data.md)")
        told.append(f"{path}, {len(faults)} of {len(folders)} objects bad")
    return ", ".join(told)


def _view_fault(folder: Path, params: FolderViews) -> str:
    from m2m.data.folder_sets import TO_OPENCV, read_camera, sees_origin

    for view in (0, params.views - 1):
        for kind in ("png", "npy"):
            if not (path := folder / f"{view:03}.{kind}").is_file():
                return f"{path} is missing; views.views asks for {params.views} of each object"
    try:
        camera = read_camera(folder / "000.npy")
    except UserError as error:
        return str(error)
    if not sees_origin(TO_OPENCV[params.camera_convention] @ camera):
        return f"{folder / '000.npy'} does not see its object; see views.camera_convention, {params.camera_convention}"
    return ""


def procedures(params: FolderProcedures) -> str:
    """Whether they begin with one, whose first picture is there."""
    from m2m.data.folder_sets import Instructions

    told = []
    for key, path in _named("procedures", params.path, params.test_path):
        try:
            with open_regular(Path(path)) as file:
                text = file.read(START).decode("utf-8-sig", errors="replace").lstrip().removeprefix("[").lstrip()
            one = Instructions.model_validate(json.JSONDecoder().raw_decode(text)[0])
            with open_regular(Path(path).parent / one.images[0]):
                told.append(f"{path}, which begins with {one.goal[:40]!r}")
        except OSError as error:
            named = error.filename or path
            raise UserError(f"{key}: {named} cannot be read ({error.strerror}); put it there (docs/data.md)") from error
        except (ValueError, IndexError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{key}: {path} begins with no procedure ({reason}); see docs/data.md") from error
    return ", ".join(told)


def _named(stage: str, path: str, test_path: str) -> Iterator[tuple[str, str]]:
    """The paths of a source, each with its parameter."""
    yield f"{stage}.path", path
    if test_path:
        yield f"{stage}.test_path", test_path
