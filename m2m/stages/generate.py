"""Stage ``generate``: draws Multi-Image Sets, N images for each caption from N noises (paper, section on MIS)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from m2m.data.captions import Caption, captions_digest, read_captions, read_source
from m2m.data.card import mis_card, stated_licence
from m2m.data.sets import ImageSets
from m2m.data.shards import ImageSet, write_shard
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.errors import UserError
from m2m.files import folder_digest, write_atomically
from m2m.manifest import Manifest, ShardEntry, Split, shard_key
from m2m.params import GenerateParams
from m2m.progress import Advance, progress
from m2m.seeds import image_seed
from m2m.store import Store
from m2m.tracking import Tracker
from m2m.workers import ALONE, Workers, once

T = TypeVar("T")

SHOWN_SETS = 4
"""Sets whose images the tracker shows."""


class FinishedShard(BaseModel):
    """The record of a shard that the store holds: with it a run that was killed goes on after its last shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: ShardEntry
    redrawn: int


def run(
    params: GenerateParams,
    *,
    captions: Path,
    stable_diffusion: Path,
    manifest: Path,
    work: Path,
    store: Store,
    tracker: Tracker,
    device: str,
    workers: Workers = ALONE,
) -> Manifest:
    """Draws a set for each caption, a shard a worker; writes the manifest last, with its card (``.md``) beside it.

    A shard is drawn, written, uploaded and verified, then recorded below `work`. The make-up and shape of every batch
    depend on its shard alone: on the same kind of processor any number of workers gives the same bytes.

    Raises:
        UserError: captions, model folder or store cannot be used, the disk refuses, or an image stays bad.
    """
    store.check()
    source, sets = read_source(captions), sum(1 for _ in read_captions(captions))
    if not sets:
        raise UserError(f"{captions} holds no captions; run the captions stage again")
    made_by: dict[str, JsonValue] = {
        "stage": "generate",
        "parameters": params.model_dump(mode="json"),
        "captions": {**vars(source), "sha256": captions_digest(read_captions(captions))},
        "stable_diffusion": {"licence": stated_licence(stable_diffusion), "sha256": folder_digest(stable_diffusion)},
    }
    kind = device.partition(":")[0]  # a dataset begun on a CPU does not go on from there on a GPU
    recipe: list[JsonValue] = [made_by["parameters"], made_by["stable_diffusion"], kind]
    # Loaded when the first shard is missing: a run that finds all of them needs no networks.
    model = once(partial(_load, stable_diffusion, params, device))
    drawn: list[int] = []
    with (
        tracker.run("generate", stage="generate", tags={}) as run_,
        progress(sets * params.images_per_set, "generate", unit="images") as advance,
    ):
        run_.params(params.model_dump(mode="json"))
        started = time.perf_counter()

        def finish(shard: list[Caption]) -> FinishedShard:
            name = work / "generate" / _digest([*recipe, *([*astuple(caption)] for caption in shard)])
            images = len(shard) * params.images_per_set
            if (done := _recorded(name, store)) is not None:
                advance(images, skipped=True)
                return done
            drawn.append(images)
            return _make(model(), params, shard, name, store, advance)

        finished = list(workers.map(finish, _shards(captions, params.sets_per_shard)))
        seconds = time.perf_counter() - started
        result = Manifest(
            schema_version=1,
            kind="mis",
            made_by=made_by,
            images_per_set=params.images_per_set,
            redrawn=sum(done.redrawn for done in finished),
            shards=tuple(done.entry for done in finished),
        )
        dataset = ImageSets(store, result, result.shards[0].split)
        shown = [dataset[index].images for index in range(min(SHOWN_SETS, len(dataset)))]
        card = mis_card(result, image_size=shown[0].shape[1])
        write_atomically(manifest.with_suffix(".md"), card.encode())
        result.write(manifest)
        run_.tags({"manifest": result.digest})
        run_.dataset("mis", source=str(manifest), digest=result.digest, context="generation", sets=result.sets)
        run_.metrics({"images": sets * params.images_per_set, "redrawn": result.redrawn})
        if drawn:
            run_.metrics({"images_per_second": sum(drawn) / seconds})
        for index, images in enumerate(shown):
            run_.image(Image.fromarray(np.concatenate(images, axis=1)), key=f"set/{index:02}", step=0)
    return result


def draw_sets(
    model: StableDiffusion, params: GenerateParams, captions: Sequence[Caption], advance: Advance
) -> tuple[list[ImageSet], int]:
    """A set for each caption, and how many images were drawn again because they were not finite or of one colour.

    Each image starts from its own noise, each caption is embedded once, and every batch has `params.batch_size` rows:
    what is missing in the last one is filled with its first row. Bad images come in batches of their own at the end.

    Raises:
        UserError: an image is bad at every attempt; names its set.
    """
    shape = (len(captions), params.images_per_set)
    latents = np.empty((*shape, *model.latent_shape), np.float32)
    images = np.empty((*shape, model.image_size, model.image_size, 3), np.uint8)
    seeds = np.empty(shape, np.int64)
    filled = [caption.text for caption in captions]
    filled += [""] * (params.sets_per_shard - len(filled))
    embeddings = model.embed(filled)  # (sets_per_shard, L, D): the short last shard's shape is that of all others
    missing = [(row, index) for row in range(shape[0]) for index in range(shape[1])]
    redrawn = 0
    for attempt in range(params.max_redraws + 1):
        redrawn += len(missing) if attempt else 0
        bad: list[tuple[int, int]] = []
        for batch in _blocks(missing, params.batch_size):
            full = batch + batch[:1] * (params.batch_size - len(batch))
            numbers = [image_seed(params.seed, captions[row].id, index, attempt) for row, index in full]
            noise = torch.stack([model.noise(number) for number in numbers])  # (batch_size, 4, h, w)
            drawn = model.denoise(noise, embeddings[[row for row, _ in full]])  # (batch_size, 4, h, w)
            pictures = model.decode(drawn)[: len(batch)].cpu().numpy()  # (rows, H, W, 3)
            z = drawn[: len(batch)].cpu().numpy()  # (rows, 4, h, w)
            place = tuple(np.transpose(batch))
            latents[place], images[place], seeds[place] = z, pictures, numbers[: len(batch)]
            good = np.isfinite(z).all(axis=(1, 2, 3)) & (np.ptp(pictures, axis=(1, 2, 3)) > 0)
            bad += [batch[row] for row in np.flatnonzero(~good)]
            advance(int(good.sum()))
        missing = bad
        if not missing:
            return [
                ImageSet(id=caption.id, caption=caption.text, images=x, latents=z, extras={"seeds": numbers})
                for caption, x, z, numbers in zip(captions, images, latents, seeds.tolist(), strict=True)
            ], redrawn
    row, index = missing[0]
    raise UserError(
        f"set {captions[row].id}: image {index} is not finite or of one colour in all {params.max_redraws + 1} "
        "attempts; check the Stable Diffusion folder and generate.guidance_scale"
    )


def _make(
    model: StableDiffusion,
    params: GenerateParams,
    captions: Sequence[Caption],
    name: Path,
    store: Store,
    advance: Advance,
) -> FinishedShard:
    """Draws, writes, uploads and verifies a shard, then records that it is done."""
    sets, redrawn = draw_sets(model, params, captions, advance)
    tar = name.with_suffix(".tar")
    try:
        stats = write_shard(sets, tar)
        key = shard_key(stats.sha256)
        store.put(key, tar, stats.sha256)
    finally:
        tar.unlink(missing_ok=True)
    done = FinishedShard(entry=ShardEntry(key=key, split=captions[0].split, **vars(stats)), redrawn=redrawn)
    write_atomically(name.with_suffix(".json"), done.model_dump_json().encode())
    return done


def _recorded(name: Path, store: Store) -> FinishedShard | None:
    """The shard, if an earlier run finished it and the store still holds it."""
    record = name.with_suffix(".json")
    if not record.is_file():
        return None
    try:
        done = FinishedShard.model_validate_json(record.read_bytes())
    except ValidationError:  # damaged, or of an older format: the shard is drawn again
        return None
    return done if store.exists(done.entry.key, done.entry.size) else None


def _shards(captions: Path, sets_per_shard: int) -> Iterator[list[Caption]]:
    """The captions of each shard: those of training in order, then those of the test. No shard mixes splits."""
    for split in get_args(Split):
        yield from _blocks((caption for caption in read_captions(captions) if caption.split == split), sets_per_shard)


def _blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in order, `size` at a time; the last block may be shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def _load(folder: Path, params: GenerateParams, device: str) -> StableDiffusion:
    return StableDiffusion(
        folder,
        solver=params.solver,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        device=device,
    )


def _digest(content: JsonValue) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
