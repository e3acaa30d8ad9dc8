"""Published weights as model folders: snapshots of the Hugging Face hub at pinned commits, files of pinned SHA-256.

Nothing is loaded that could run code: safetensors, JSON and text are all that is fetched from the hub, and the files
that are published as pickles are read as plain tensors, once, and kept as safetensors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError

import httpx2
import torch
from huggingface_hub import HfApi, constants, errors, snapshot_download
from safetensors.torch import save
from torch import Tensor

from m2m.errors import UserError
from m2m.files import file_digest, has_content, write_atomically, writing
from m2m.foundation.sources import SOURCES, Note, Sources, file_of, folder_of, kept_note, pins
from m2m.params import HubFile, HubFoundation, HubSnapshot
from m2m.progress import progress

Layout = Mapping[str, str | None]
"""Folder of a repository -> how its file of weights is called (without suffix), if it has weights."""

STABLE_DIFFUSION: Layout = {
    "": None,
    "feature_extractor": None,
    "scheduler": None,
    "tokenizer": None,
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""A ``StableDiffusionPipeline`` without its safety checker."""
TRANSFORMER: Layout = {"": "model"}
CHECKER: Layout = {"safety_checker": "model", "feature_extractor": None}
"""The safety checker of a ``StableDiffusionPipeline``, which sees pictures by the image processor of the pipeline."""
OPTIONAL = {"feature_extractor"}
TERMS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""What says on which terms the weights may be used."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5")

SECONDS_TO_ANSWER = 30
CHUNK = 2**20

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Judge:
    """What becomes of a pinned file."""

    architecture: str
    """what ``config.json`` calls the network that the file belongs to"""
    arranged: Callable[[State], State] = dict
    """the tensors that are kept, of those in the file"""


def fetch(params: HubFoundation, *, out: Path, sources: Sources, inception: Judge, perceptual: Judge) -> None:
    """Fill ``out`` with the folders ``stable-diffusion``, ``dino``, ``clip``, ``inception`` and ``perceptual``.

    Stable Diffusion's folder gets a ``safety_checker``, whose own repository need not be that of the other networks.
    Files are kept in the sources' work folder by what pins them, and only linked into ``out``: a run that was killed
    goes on, a second one asks nobody. The hub is asked for what no other source has.

    Raises:
        UserError: no network; no such repository, revision or file; weights that are pickles only; a checksum that does
            not agree; a disk that refuses.
    """
    # The environment variable is read when the library is imported, which may have been long before.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    snapshots = (
        ("stable-diffusion", params.stable_diffusion, STABLE_DIFFUSION),
        ("dino", params.dino, TRANSFORMER),
        ("clip", params.clip, TRANSFORMER),
        ("stable-diffusion/safety_checker", params.safety_checker, CHECKER),
    )
    files = (("inception", params.inception, inception), ("perceptual", params.perceptual, perceptual))
    with writing(sources.work):
        for name, snapshot, layout in snapshots:
            for part in bring(name, snapshot, layout, sources):
                # What a checker needs of a pipeline's folders lies in one.
                place = out / name / (PurePosixPath(part).name if layout is CHECKER else part)
                _link(folder_of(snapshot, sources.work) / part, place)
        received = [resume(name, file, sources) for name, file, _ in files]
    for weights, (name, file, judge) in zip(received, files, strict=True):
        convert(weights, file, judge, out / name)
    fetched_by = {name: pin.model_dump() for name, pin in pins(params).items()}
    write_atomically(out / SOURCES, (json.dumps(fetched_by, indent=1) + "\n").encode())


def choose(names: Collection[str], layout: Layout) -> list[str]:
    """The files of a repository that the layout needs: no half precision, no second format, nothing twice.

    Raises:
        UserError: something is missing; says what, and whether it is there as a pickle only.
    """
    chosen = [name for name in TERMS if name in names]
    for folder, stem in layout.items():
        inside = sorted(path.name for path in map(PurePosixPath, names) if path.parent == PurePosixPath(folder))
        texts = [name for name in inside if name.endswith((".json", ".txt")) and not name.endswith(".index.json")]
        if not any(name.endswith(".json") for name in texts) and folder not in OPTIONAL:
            raise UserError(f"no configuration (JSON) in {folder or 'its root'}")
        weights = _weights(inside, stem) if stem else []
        if stem and not weights:
            pickles = [name for name in inside if name.endswith(PICKLES)]
            only = f" (only {pickles[0]}, and pickles are never loaded)" if pickles else ""
            raise UserError(f"no {stem}.safetensors in {folder or 'its root'}{only}")
        chosen += [str(PurePosixPath(folder, name)) for name in (*texts, *weights) if name not in TERMS]
    return chosen


def _weights(names: Collection[str], stem: str) -> list[str]:
    """One file, or the parts of one with their index; none if there is neither."""
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if whole in names:
        return [whole]
    parts = [name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.safetensors", name)]
    return [index, *parts] if parts and index in names else []


def bring(name: str, snapshot: HubSnapshot, layout: Layout, sources: Sources) -> list[str]:
    """Bring the files of a snapshot that the layout needs into the sources' work folder, and give their names.

    Raises:
        UserError: as :func:`fetch`.
    """
    folder, note, there = folder_of(snapshot, sources.work), sources.note(snapshot), set[str]()
    if note is not None:
        try:
            names = choose(note.names, layout)
        except UserError as error:
            if not (note.files and kept_note(snapshot, sources.work)):
                raise UserError(f"{note.where}: {error}; remove it, and the hub is asked again") from error
            note = None  # so far other parts of this repository were fetched
        else:
            note = note.only(names)
            there = {*names} - {*sources.bring(snapshot, note, name=name)}
            if there == {*names}:
                sources.keep(snapshot, note)
                return names
    try:
        names = download(snapshot, layout, folder, there)
    except UserError as error:
        raise sources.without(error) from error
    found = Note.of(folder, names)
    if note is not None and found.files != note.files:
        whose = f"{snapshot.repo} at {snapshot.revision}"
        raise UserError(
            f"{whose}: the hub has other files than {note.where} tells of; remove that, if you trust the hub"
        )
    sources.keep(snapshot, found)
    return names


def download(snapshot: HubSnapshot, layout: Layout, folder: Path, there: Collection[str] = ()) -> list[str]:
    """Bring the files of a snapshot that the layout needs into a folder, and give their names.

    What is there already stays, and is not asked for if it is among the names `there`. All are held against the
    checksums that the hub states for this commit; a bad one is fetched once more.

    Raises:
        UserError: as :func:`fetch`.
    """
    repo, revision = snapshot.repo, snapshot.revision
    api = HfApi()
    with _asking(repo, revision):
        found = api.model_info(repo, revision=revision, timeout=SECONDS_TO_ANSWER)
    try:
        names = choose([file.rfilename for file in found.siblings or []], layout)
    except UserError as error:
        raise UserError(f"{repo} at {revision}: {error}; pin a repository or a revision that has it") from error
    wanted = [name for name in names if name not in there]
    for _ in range(2):
        # The library names these anew in every process: what a killed one left is of no use to the next.
        for orphan in folder.glob(".cache/huggingface/download/**/*.incomplete"):
            orphan.unlink()
        with _asking(repo, revision):
            snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=wanted)
            checked = api.verify_repo_checksums(repo, revision=revision, local_dir=folder)
        if not checked.mismatches:
            return names
        for mismatch in checked.mismatches:
            (folder / mismatch["path"]).unlink()
            wanted.append(mismatch["path"])
    bad = checked.mismatches[0]["path"]
    raise UserError(f"{repo} at {revision}: {bad} has not the checksum that the hub states, even when fetched again")


def resume(name: str, file: HubFile, sources: Sources) -> Path:
    """Bring a file to the work folder, under a name that it gets once its SHA-256 is right, and give its path.

    It is ``foundation.<name>`` of the parameters.
    What an earlier run received stays and is not fetched again. A bad one is fetched once more, from its start.

    Raises:
        UserError: the server does not give the file, or gives another one.
    """
    whole = sources.work / file_of(file)
    if has_content(whole, file.sha256):
        return whole
    if (note := sources.note(file)) is not None and not sources.bring(file, note, name=name):
        return whole
    part = whole.with_suffix(".part")
    for _ in range(2):
        try:
            with _asking(file.url):
                _receive(name, file.url, part)
        except UserError as error:
            raise sources.without(error) from error
        digest = file_digest(part)
        if digest == file.sha256:
            part.rename(whole)
            return whole
        part.unlink()
    raise UserError(f"{file.url}: its SHA-256 is {digest}, but foundation.{name}.sha256 says {file.sha256}")


def _receive(name: str, url: str, part: Path) -> None:
    """Append to ``part`` what it still lacks of the file at ``url``."""
    part.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with httpx2.stream("GET", url, headers=headers, follow_redirects=True, timeout=SECONDS_TO_ANSWER) as response:
        if done and response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            return  # nothing is lacking, or the part is of another file: the checksum will tell
        response.raise_for_status()
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            done = 0
        chunks, kept = -(-(done + int(response.headers.get("Content-Length", 0))) // CHUNK), done // CHUNK
        with part.open("ab" if done else "wb") as file, progress(chunks, name, unit="MiB") as advance:
            advance(kept, skipped=True)
            for chunk in response.iter_raw(CHUNK):
                file.write(chunk)
                advance()


def convert(weights: Path, file: HubFile, judge: Judge, folder: Path) -> None:
    """Write a state dictionary that torch saved as ``model.safetensors``, with a ``config.json`` that says whose.

    Raises:
        UserError: the file holds anything but tensors by name.
    """
    refusal = f"{file.url}: not a state dictionary of tensors by name, as torch saves one"
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(refusal) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(refusal)
    kept = judge.arranged(state)
    # Cloned: safetensors refuses tensors that share memory.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in kept.items()}
    config = {"architecture": judge.architecture, **file.model_dump()}
    write_atomically(folder / "model.safetensors", save(tensors))
    write_atomically(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@contextmanager
def _asking(whom: str, revision: str = "") -> Iterator[None]:
    """Turns what the hub or another server answers, or a network that fails, into one line for a person."""
    page = f"{constants.ENDPOINT}/{whom}"
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{whom!r} is not the name of a repository; expected 'owner/name'") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{whom}: accept its terms at {page}, then set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{page}: not found, or private; check the name, or set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{page}: there is no revision {revision}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{whom}: HF_HUB_OFFLINE is set, so the hub may not be asked; unset it") from error
    except (errors.HfHubHTTPError, httpx2.HTTPStatusError) as error:
        answer = f"{error.response.status_code} {error.response.reason_phrase}"
        raise UserError(f"{whom}: the server answers {answer}; check the address, or try again later") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's, not the network's
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        text = f"{whom}: not received ({reason}); check the network; the same command then goes on where it was"
        raise UserError(text) from error
