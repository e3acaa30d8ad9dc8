"""Stage ``foundation``: the networks that all else builds on, trained on the embedded world or fetched as published."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from m2m.code import code_digest
from m2m.diffusion.stable_diffusion import SAFETY_CHECKER, SafetyChecker
from m2m.errors import UserError
from m2m.evaluation.published import INCEPTION_V3, LPIPS, InceptionV3, Lpips, Published, with_heads
from m2m.files import new_folder, write_digests
from m2m.foundation import hub, world
from m2m.foundation.sources import Sources
from m2m.foundation.sources import mirror as put_mirror
from m2m.params import HubFile, HubFoundation, WorldFoundation
from m2m.store import Store


def run(
    params: WorldFoundation | HubFoundation,
    *,
    out: Path,
    work: Path,
    device: str = "cpu",
    processes: int = 1,
    store: Store | None = None,
    weights: Path | None = None,
    mirror: bool = False,
) -> str:
    """Makes ``out``: the folders ``stable-diffusion``, ``dino``, ``clip`` and ``inception``, all of them or none.

    Of trained networks ``quality.json`` tells how good they are on pictures that they never saw. With published ones
    comes ``perceptual``, which compares pictures, and Stable Diffusion's safety checker in the folder of that.
    Networks and downloads that an earlier run finished are kept below ``work``, so a run that was killed goes on.

    Args:
        store: what may hold published weights, by their hashes.
        weights: a folder that may, another machine's ``work/hub``.
        mirror: put published weights into the store.

    Returns:
        what was put there, in words.

    Raises:
        UserError: a download fails or is not what was pinned, or the disk or the store refuses.
    """
    if mirror and (store is None or isinstance(params, WorldFoundation)):
        raise UserError("--mirror: foundation.source is world, whose networks are trained; only a hub's are mirrored")
    fetched = work / "hub"
    with new_folder(out) as draft:
        if isinstance(params, WorldFoundation):
            # What other parameters, code or devices made must not be taken for these parameters' own.
            made_from = (params.model_dump_json(), device.partition(":")[0], code_digest(__name__))
            digest = hashlib.sha256("\n".join(made_from).encode()).hexdigest()
            unfinished = work / "foundation" / digest[:16]
            world.train(params, out=draft, work=unfinished, device=device, processes=processes)
            figures = world.measure(draft, seed=params.seed, device=device)
            (draft / "quality.json").write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
        else:
            hub.fetch(
                params,
                out=draft,
                sources=Sources(fetched, store, weights),
                inception=hub.Judge(INCEPTION_V3),
                perceptual=hub.Judge(LPIPS, with_heads),
            )
            networks: dict[str, type[Published]] = {"inception": InceptionV3, "perceptual": Lpips}
            for name, network in networks.items():
                file: HubFile = getattr(params, name)
                try:  # other weights are refused here, not hours later in the evaluation
                    network.from_pretrained(draft / name)
                except RuntimeError as error:
                    raise UserError(
                        f"{file.url}: these are not the weights of {network.architecture}; check foundation.{name}"
                    ) from error
            try:
                SafetyChecker(draft / "stable-diffusion" / SAFETY_CHECKER, device="cpu")
            except UserError as error:
                pinned = f"{params.safety_checker.repo} at {params.safety_checker.revision}"
                text = "no safety checker of Stable Diffusion, or not all of it; check foundation.safety_checker"
                raise UserError(f"{pinned}: {text}") from error
        seal(draft)
    if mirror and store is not None and isinstance(params, HubFoundation):
        files, size = put_mirror(params, work=fetched, store=store)
        return f"{files} files, {size / 1e9:.1f} GB, are in the store {store.uri}"
    return ""


def seal(foundation: Path) -> None:
    """Writes into each folder of weights the digests by which the stages that read it know it.

    Raises:
        UserError: one is empty, or the disk refuses.
    """
    for folder in foundation.iterdir():
        if folder.is_dir():
            write_digests(folder)
