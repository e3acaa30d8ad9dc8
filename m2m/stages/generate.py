"""Stage ``generate``: draws Multi-Image Sets, N images for each caption from N noises (paper, section on MIS)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from m2m.code import code_digest
from m2m.data.captions import read_captions, read_origin, read_parts, survey_captions
from m2m.data.making import make_dataset
from m2m.data.sets import ImageSet
from m2m.data.shards import Kept, MadeSets, PlannedSet, ShardJob, blocks, shard_jobs
from m2m.diffusion.stable_diffusion import SAFETY_CHECKER, SafetyChecker, StableDiffusion
from m2m.errors import UserError, made_again
from m2m.files import check_digests, folder_digest
from m2m.manifest import Manifest, Split, weights_of
from m2m.models.classifier import ARCHITECTURE, WorldClassifier, load_class_network
from m2m.params import GenerateParams
from m2m.progress import Advance
from m2m.runtime import Runtime
from m2m.seeds import image_seed
from m2m.workers import Once
from m2m.world.grammar import ATTRIBUTES, SHAPES, STYLES, parse, split_of

GROWTH = {"more_images", "extends"}
"""Parameters that say what is added, not how it is drawn."""


def run(
    params: GenerateParams, *, captions: Path, stable_diffusion: Path, inception: Path, manifest: Path, runtime: Runtime
) -> Manifest:
    """Draws a set for each caption, a shard a worker; writes the manifest last, with its card (``.md``) beside it.

    A shard is drawn, written, uploaded and verified, then recorded in the store. The make-up and shape of
    every batch depend on its shard alone: on the same kind of processor any number of workers gives the same bytes.

    Args:
        inception: the class network. If it names what the embedded world shows, images in combinations that are held
            out of training are drawn again; another one says nothing here.

    Raises:
        UserError: captions, model folder or store cannot be used, the disk refuses, or an image stays bad.
    """
    runtime.store.check()
    origin, (sets, told) = read_origin(captions), survey_captions(captions)
    if not sets:
        raise UserError(f"{captions} holds no captions; make it again: {made_again('captions')}")
    check_digests(stable_diffusion)
    weights = weights_of(stable_diffusion)
    made_by: dict[str, JsonValue] = {
        "stage": "generate",
        # As it was when it began: a dataset that grew tells by how much beside it.
        "parameters": params.model_dump(mode="json", exclude=GROWTH),
        "captions": {**vars(origin), "sha256": told},
        "stable_diffusion": weights,
    }
    parts = read_parts(captions)
    grew: dict[str, JsonValue] = {"captions": list(parts), "more_images": list(params.more_images)}
    made_by |= {"grew": grew} if any(grew.values()) else {}
    if _judge(inception) is not None:
        made_by["inception"] = {"sha256": folder_digest(inception)}
    if params.safety_checker:
        checker = stable_diffusion / SAFETY_CHECKER
        if not checker.is_dir():
            raise UserError(
                f"{checker}: no such folder, but generate.safety_checker is true; have the foundation stage fetch one "
                "(foundation.safety_checker of profiles/paper.yaml), or set it to false"
            )
        made_by["safety_checker"] = weights_of(checker)
    share = runtime.engine.share

    def planned(split: Split) -> Iterator[PlannedSet]:
        for row in read_captions(captions, split):
            yield PlannedSet(id=row.id, caption=row.text, count=params.images_per_set)

    jobs = partial(
        shard_jobs,
        depends=[
            # How many sets may lack changes none, nor does what is added to them.
            params.model_dump(mode="json", exclude={"max_bad_fraction", *GROWTH}),
            *map(made_by.get, ("stable_diffusion", "inception")),
            code_digest(__name__),
        ],
        sets_per_shard=params.sets_per_shard,
        parts=parts,
        more_images=params.more_images,
        runtime=runtime,
    )

    def all_jobs() -> Iterator[ShardJob]:
        return jobs({split: planned(split) for split in get_args(Split)})

    kept = Kept(Path(params.extends), runtime.store) if params.extends is not None else None
    if kept:
        _check_alike(kept.manifest, made_by, captions, params)
        kept.check(all_jobs())
        made_by["extends"] = kept.manifest.digest
    draw = DrawSets(
        share(stable_diffusion), share(inception), params, generator=str(weights["sha256"]), device=runtime.device
    )
    plan = Manifest(schema_version=1, kind="mis", made_by=made_by, images_per_set=params.images, redrawn=0, shards=())
    images = sets * params.images
    return make_dataset(
        all_jobs(), draw, plan, params, sets=sets, images=images, before=kept, manifest=manifest, runtime=runtime
    )


def _check_alike(before: Manifest, made_by: Mapping[str, JsonValue], captions: Path, params: GenerateParams) -> None:
    """Raises UserError where a dataset that grows would not go on from what it was."""

    def refused(text: str) -> UserError:
        return UserError(f"generate.extends: {params.extends} cannot be extended: {text}")

    was, now = _of_drawing(before.made_by), _of_drawing(made_by)
    for key in was | now:
        if was.get(key) != now.get(key):
            anew = "a dataset that is drawn in another way begins anew: set it to null"
            raise refused(f"{key} was {was.get(key)} there, and is {now.get(key)} now; {anew}")
    grew, grows = (_growth(one) for one in (before.made_by, made_by))
    for key, was_there in grew.items():
        if grows[key][: len(was_there)] != was_there:
            raise refused(f"{key} came {was_there} at a time, and are {grows[key]} now; add a number behind them")
    # New captions stand behind the old ones, so the file began as it was.
    sets = sum(before.sets.values()) + int(str(before.made_by.get("left_out", 0)))
    source = before.made_by.get("captions")
    if not isinstance(source, dict) or survey_captions(captions, rows=sets) != (sets, source.get("sha256")):
        raise refused(f"{captions} does not begin with its {sets} captions; leave captions as they were, but for more")


def _of_drawing(made_by: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """How a dataset is drawn, by the names of parameters and of weights."""
    drawn, weights = made_by.get("parameters"), ("stage", "stable_diffusion", "inception", "safety_checker")
    found = {f"generate.{key}": value for key, value in drawn.items()} if isinstance(drawn, dict) else {}
    found.pop("generate.max_bad_fraction", None)
    return found | {key: made_by.get(key) for key in weights}


def _growth(made_by: Mapping[str, JsonValue]) -> dict[str, list[JsonValue]]:
    """How many captions and images came at a time; nothing where all came at once."""
    grew = made_by.get("grew")
    told = {key: grew[key] for key in ("captions", "more_images")} if isinstance(grew, dict) else {}
    return {key: value if isinstance(value := told.get(key), list) else [] for key in ("captions", "more_images")}


class DrawSets:
    """Draws the sets of a shard wherever it is sent; loads its networks when the first shard is missing there."""

    def __init__(
        self,
        stable_diffusion: Callable[[], Path],
        inception: Callable[[], Path],
        params: GenerateParams,
        *,
        generator: str,
        device: str,
    ) -> None:
        self._params, self._generator = params, generator
        how = params.model_dump(include={"solver", "num_inference_steps", "guidance_scale", "precision"})
        self._model = Once(lambda: StableDiffusion(stable_diffusion(), device=device, **how))
        self._judge = Once(lambda: _judge(inception(), device=device))
        self._checker = Once(lambda: SafetyChecker(stable_diffusion() / SAFETY_CHECKER, device=device))

    def __call__(self, planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
        checker = self._checker() if self._params.safety_checker else None
        return draw_sets(
            self._model(), self._params, planned, advance, self._judge(), checker, generator=self._generator
        )


def _judge(inception: Path, *, device: str = "cpu") -> WorldClassifier | None:
    judge, _ = load_class_network(inception, {ARCHITECTURE: WorldClassifier.from_pretrained})
    return judge and judge.to(device)


def draw_sets(
    model: StableDiffusion,
    params: GenerateParams,
    planned: Sequence[PlannedSet],
    advance: Advance,
    judge: WorldClassifier | None = None,
    checker: SafetyChecker | None = None,
    *,
    generator: str | None = None,
) -> MadeSets:
    """The sets of a shard's captions.

    Drawn again are images that are not finite, of one colour, or read by the judge as a combination that is held out of
    training, unless their caption names it: free values complete to what training shows, in every split. So are those
    that the safety checker rejects, counted apart; a set of which it rejects an image at every attempt is left out.

    Each image starts from its own noise, each caption is embedded once, and every batch has `params.batch_size` rows:
    what is missing in the last one is filled with its first row. Bad images come in batches of their own at the end.

    Args:
        generator: SHA-256 of the model's folder, which is kept with each set and image.

    Raises:
        UserError: an image is bad at every attempt, at the last one not by the safety checker; names its set.
    """
    first, shape = planned[0].first, (len(planned), planned[0].count)
    latents = np.empty((*shape, *model.latent_shape), params.latents)
    images = np.empty((*shape, model.image_size, model.image_size, 3), np.uint8)
    seeds = np.empty(shape, np.int64)
    filled = [one.caption for one in planned]
    filled += [""] * (params.sets_per_shard - len(filled))
    embeddings = model.embed(filled)  # (sets_per_shard, L, D): the short last shard's shape is that of all others
    guarded = [judge is not None and _keeps_to_training(one.caption) for one in planned]
    missing = [(row, index) for row in range(shape[0]) for index in range(shape[1])]
    redrawn = rejected = 0
    for attempt in range(params.max_redraws + 1):
        redrawn += len(missing) if attempt else 0
        bad, refused = list[tuple[int, int]](), list[tuple[int, int]]()
        for batch in blocks(missing, params.batch_size):
            full = batch + batch[:1] * (params.batch_size - len(batch))
            numbers = [image_seed(params.seed, planned[row].id, first + index, attempt) for row, index in full]
            noise = torch.stack([model.noise(number) for number in numbers])  # (batch_size, 4, h, w)
            drawn = model.denoise(noise, embeddings[[row for row, _ in full]])  # (batch_size, 4, h, w)
            decoded = model.decode(drawn)  # (batch_size, H, W, 3)
            held_out = np.zeros(len(full), np.bool_) if judge is None else read_as_held_out(judge, decoded)
            safe = np.ones(len(full), np.bool_) if checker is None else ~checker(decoded)
            pictures = decoded[: len(batch)].cpu().numpy()  # (rows, H, W, 3)
            z = drawn[: len(batch)].cpu().numpy()  # (rows, 4, h, w)
            place = tuple(np.transpose(batch))
            latents[place], images[place], seeds[place] = z, pictures, numbers[: len(batch)]
            good = np.isfinite(z).all(axis=(1, 2, 3)) & (np.ptp(pictures, axis=(1, 2, 3)) > 0)
            good &= ~(held_out[: len(batch)] & np.array([guarded[row] for row, _ in batch]))
            bad += [batch[row] for row in np.flatnonzero(~good)]
            refused += [batch[row] for row in np.flatnonzero(good & ~safe[: len(batch)])]
            advance(int((good & safe[: len(batch)]).sum()))
        rejected += len(refused)
        missing = sorted(bad + refused)
    tried = f"in all {params.max_redraws + 1} attempts"
    for row, index in bad:
        raise UserError(
            f"set {planned[row].id}: image {first + index} is not finite, of one colour or in a held-out combination "
            f"{tried}; check the Stable Diffusion folder and generate.guidance_scale"
        )
    left_out = dict(reversed(refused))  # of each set its first image
    advance(len(refused))
    sets = [
        ImageSet(
            id=one.id,
            caption=one.caption,
            images=x,
            latents=z,
            extras={"seeds": numbers.tolist()},
            generator=generator,
            first_image=first,
        )
        for row, (one, x, z, numbers) in enumerate(zip(planned, images, latents, seeds, strict=True))
        if row not in left_out
    ]
    named = {
        planned[row].id: f"set {planned[row].id}: image {first + index} is rejected by the safety checker {tried}"
        for row, index in sorted(left_out.items())
    }
    return MadeSets(sets=sets, redrawn=redrawn, rejected=rejected, bad=named)


@torch.inference_mode()
def read_as_held_out(judge: WorldClassifier, pictures: Tensor) -> NDArray[np.bool_]:
    """Whether each picture, uint8 (B, H, W, 3), shows a combination that is held out of training: (B,)."""
    readings = judge(pictures.permute(0, 3, 1, 2))
    triples = zip(*(readings.names(judge.classes, head) for head in ATTRIBUTES), strict=True)
    return np.array(
        [
            noun in SHAPES and style in STYLES and split_of(noun, colour, style) != "train"
            for noun, colour, style in triples
        ]
    )


def _keeps_to_training(text: str) -> bool:
    """Whether pictures of a caption show combinations of training alone; of words of another world nothing is known."""
    try:
        return parse(text).split == "train"
    except UserError:
        return False
