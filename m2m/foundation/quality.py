"""How good the small networks are, measured on pictures that none of them has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from m2m.devices import align
from m2m.foundation import encoders, text_to_image
from m2m.foundation.world import Lessons
from m2m.models.classifier import WorldClassifier
from m2m.photos import as_signal
from m2m.seeds import derive
from m2m.world.corpus import make_corpus
from m2m.world.grammar import (
    ALL_STYLES,
    COLOUR_NAMES,
    KINDS,
    NOUNS,
    WORDS,
    Caption,
    captions_naming,
    completions,
    picture_captions,
)

PICTURES, VIEWS, STEPS = 768, 192, 192
DRAWINGS, SOLVER_STEPS, GUIDANCE = 384, 20, 3.0
OPEN_CAPTIONS, OF_EACH = 8, 16
"""Of each open kind so many captions, or all if they are fewer; and pictures of each."""


@torch.no_grad()
def measure(folder: Path, *, seed: int, device: str = "cpu") -> dict[str, float]:
    """Figures of a foundation folder on held-out combinations, those of the test.

    ``vae/psnr`` in dB. ``inception/<what>/<of>``: shares that the class network reads as captioned (content: noun and
    colour both) of the world's pictures, views and steps (``real-…``), of those as the autoencoder restores them
    (``restored-…``), and of what the small Stable Diffusion draws for full captions that it never saw (``drawn``).
    ``open/…``: what it draws for open captions, see `freedom`. ``clip/match``: the share of pictures nearer to their
    own full caption than to any other of 48.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "stable-diffusion").to(device)
    align(pipeline.text_encoder, pipeline.unet, pipeline.vae)
    classifier = WorldClassifier.from_pretrained(folder / "inception").to(device)
    corpus = make_corpus(pictures=PICTURES, views=VIEWS, steps=STEPS, seed=seed, split="test")
    unseen = Lessons.of(corpus, device)
    restored = torch.cat([*text_to_image.decoded(pipeline.vae, text_to_image.encoded(pipeline.vae, unseen.images)[0])])
    figures = {"vae/psnr": text_to_image.psnr(restored, unseen.images)}
    for kind, rows in (
        ("picture", slice(PICTURES)),
        ("view", slice(PICTURES, PICTURES + VIEWS)),
        ("step", slice(-STEPS, None)),
    ):
        labels = {head: label[rows] for head, label in unseen.labels.items()}
        figures |= readings(classifier, unseen.images[rows], labels, f"real-{kind}")
        figures |= readings(classifier, restored[rows], labels, f"restored-{kind}")
    captions = held_out_captions()
    labels = {
        head: torch.tensor([names.index(caption.meaning[place]) for caption in captions], device=device)
        for place, (head, names) in enumerate(WORDS.items())
    }
    figures |= readings(classifier, drawings(pipeline, captions, seed), labels, "drawn")
    figures |= freedom(pipeline, classifier, seed)
    figures["clip/match"] = match(folder / "clip", unseen)
    return {name: round(value, 4) for name, value in figures.items()}


def held_out_captions() -> list[Caption]:
    """`DRAWINGS` full captions of the test, in turn."""
    captions = picture_captions("test")
    return [captions[index % len(captions)] for index in range(DRAWINGS)]


def readings(network: WorldClassifier, images: Tensor, labels: dict[str, Tensor], kind: str) -> dict[str, float]:
    """The shares of pictures read right, by head, and of those with noun and colour both right."""
    right = encoders.right(network, images, labels)
    shares = {f"inception/{head}/{kind}": float(hits.float().mean()) for head, hits in right.items()}
    return shares | {f"inception/content/{kind}": float((right["noun"] & right["colour"]).float().mean())}


def drawings(pipeline: StableDiffusionPipeline, captions: Sequence[Caption], seed: int) -> Tensor:
    """Pictures uint8 (n, 3, 64, 64) that the small Stable Diffusion draws, one for each caption."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    draws = [torch.Generator().manual_seed(derive(seed, "drawing", index)) for index in range(len(captions))]
    texts = [caption.text(index % caption.templates) for index, caption in enumerate(captions)]
    images = []
    for start in range(0, len(captions), 64):
        out = pipeline(
            texts[start : start + 64],
            num_inference_steps=SOLVER_STEPS,
            guidance_scale=GUIDANCE,
            generator=draws[start : start + 64],
            output_type="pt",
        )
        images.append((out.images * 255).round().to(torch.uint8))
    return torch.cat(images)


def freedom(pipeline: StableDiffusionPipeline, network: WorldClassifier, seed: int) -> dict[str, float]:
    """Whether open captions are kept where they name something, and drawn as freely as the world has it elsewhere.

    ``open/<attribute>/kept``: the share of pictures that show what their caption names. ``open/<attribute>/repeats``:
    of a caption that leaves it open, the share of pairs of pictures that show the same; ``…/repeats-world``: the same
    of the world's own pictures. ``open/held-out``: the share of pictures in combinations that no training shows.
    """
    kinds = [captions_naming(named, "train") for named in KINDS[:-1]]
    captions = [caption for kind in kinds for caption in _some(kind)]
    images = drawings(pipeline, [caption for caption in captions for _ in range(OF_EACH)], seed)
    logits = [network(part).logits for part in torch.split(images, 256)]
    shown = {
        head: [names[index] for part in logits for index in part[head].argmax(dim=1).tolist()]
        for head, names in WORDS.items()
    }
    figures = {}
    for head in WORDS:
        kept: list[bool] = []
        repeats: list[bool] = []
        in_world: list[float] = []
        for place, caption in enumerate(captions):
            seen = shown[head][place * OF_EACH : (place + 1) * OF_EACH]
            if (word := getattr(caption, head)) is not None:
                kept += [one == word for one in seen]
                continue
            repeats += [one == other for one, other in combinations(seen, 2)]
            free = Counter(getattr(full, head) for full in completions(caption))
            in_world.append(sum((count / free.total()) ** 2 for count in free.values()))
        figures[f"open/{head}/kept"] = sum(kept) / len(kept)
        figures[f"open/{head}/repeats"] = sum(repeats) / len(repeats)
        figures[f"open/{head}/repeats-world"] = sum(in_world) / len(in_world)
    trained = {full.meaning for full in picture_captions("train")}
    triples = list(zip(*shown.values(), strict=True))
    figures["open/held-out"] = sum(triple not in trained for triple in triples) / len(triples)
    return figures


def _some(captions: Sequence[Caption]) -> Sequence[Caption]:
    """All of a kind, or with a stride that goes through the values of both of its words."""
    return captions if len(captions) <= OPEN_CAPTIONS else captions[:: len(captions) // OPEN_CAPTIONS + 1]


@torch.no_grad()
def match(folder: Path, unseen: Lessons, among: int = 48) -> float:
    """The share of pictures whose own full caption is the nearest of ``among`` with different meanings."""
    model: Any = CLIPModel.from_pretrained(folder).eval()
    model.to(unseen.images.device)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    own = [tuple(row) for row in unseen.shown[:PICTURES].tolist()]
    meanings = list(dict.fromkeys(own))[:among]
    chosen = [index for index, meaning in enumerate(own) if meaning in meanings]
    texts = [Caption(NOUNS[noun], COLOUR_NAMES[hue], ALL_STYLES[style]).text() for _, noun, hue, style, *_ in meanings]
    logits = model(
        input_ids=text_to_image.tokenize(tokenizer, texts).to(unseen.images.device),
        pixel_values=as_signal(unseen.images[chosen]),
    ).logits_per_image
    nearest = [meanings[index] for index in logits.argmax(dim=1).tolist()]
    hits: list[bool] = [found == own[index] for found, index in zip(nearest, chosen, strict=True)]
    return sum(hits) / len(hits)
