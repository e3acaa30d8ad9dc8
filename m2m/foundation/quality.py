"""How good the small networks are, measured on pictures that none of them has seen."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from m2m.foundation import classify, contrast, text_to_image, vae
from m2m.foundation.world import Lessons
from m2m.models.classifier import WorldClassifier
from m2m.seeds import derive
from m2m.world.corpus import make_corpus
from m2m.world.grammar import parse, picture_captions
from m2m.world.vocabulary import ALL_STYLES, COLOUR_NAMES, NOUNS

PICTURES, VIEWS, STEPS = 768, 192, 192
DRAWINGS, SOLVER_STEPS, GUIDANCE = 384, 20, 3.0


@torch.no_grad()
def measure(folder: Path, *, seed: int) -> dict[str, float]:
    """Figures of a foundation folder on held-out combinations.

    ``vae/psnr`` in dB. ``inception/<what>/<of>``: shares that the class network reads as captioned (content: noun and
    colour both) of the world's pictures, views and steps (``real-…``), of those as the autoencoder restores them
    (``restored-…``), and of what the small Stable Diffusion draws for captions it never saw (``drawn``).
    ``clip/match``: the share of pictures nearer to their own caption than to any other of 48.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "stable-diffusion")
    classifier = WorldClassifier.from_pretrained(folder / "inception")
    unseen = Lessons.of(make_corpus(pictures=PICTURES, views=VIEWS, steps=STEPS, seed=seed, held_out=True))
    restored = torch.cat(list(vae.decode(pipeline.vae, vae.encode(pipeline.vae, unseen.images)[0])))
    figures = {"vae/psnr": vae.psnr(restored, unseen.images)}
    for kind, rows in (
        ("picture", slice(PICTURES)),
        ("view", slice(PICTURES, PICTURES + VIEWS)),
        ("step", slice(-STEPS, None)),
    ):
        labels = {head: label[rows] for head, label in unseen.labels.items()}
        figures |= readings(classifier, unseen.images[rows], labels, f"real-{kind}")
        figures |= readings(classifier, restored[rows], labels, f"restored-{kind}")
    figures |= readings(classifier, *drawings(pipeline, seed), "drawn")
    figures["clip/match"] = match(folder / "clip", unseen)
    return {name: round(value, 4) for name, value in figures.items()}


def readings(network: WorldClassifier, images: Tensor, labels: dict[str, Tensor], kind: str) -> dict[str, float]:
    """The shares of pictures read right, by head, and of those with noun and colour both right."""
    right = classify.right(network, images, labels)
    shares = {f"inception/{head}/{kind}": float(hits.float().mean()) for head, hits in right.items()}
    return shares | {f"inception/content/{kind}": float((right["noun"] & right["colour"]).float().mean())}


def drawings(pipeline: StableDiffusionPipeline, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures uint8 (n, 3, 64, 64) that the small Stable Diffusion draws for held-out captions, and their labels."""
    held_out = picture_captions("test")
    captions = [held_out[index % len(held_out)] for index in range(DRAWINGS)]
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    draws = [torch.Generator().manual_seed(derive(seed, "drawing", index)) for index in range(DRAWINGS)]
    images = []
    for start in range(0, DRAWINGS, 64):
        text = [caption.text(index % caption.templates) for index, caption in enumerate(captions[start : start + 64])]
        out = pipeline(
            text,
            num_inference_steps=SOLVER_STEPS,
            guidance_scale=GUIDANCE,
            generator=draws[start : start + 64],
            output_type="pt",
        )
        images.append((out.images * 255).round().to(torch.uint8))
    labels = {
        "noun": torch.tensor([NOUNS.index(caption.noun) for caption in captions]),
        "colour": torch.tensor([COLOUR_NAMES.index(caption.colour) for caption in captions]),
        "style": torch.tensor([ALL_STYLES.index(caption.style) for caption in captions]),
    }
    return torch.cat(images), labels


def match(folder: Path, unseen: Lessons, among: int = 48) -> float:
    """The share of pictures whose own caption is the nearest of ``among`` with different meanings."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    meanings = list(dict.fromkeys(parse(text) for text in unseen.captions[:PICTURES]))[:among]
    chosen = [index for index in range(PICTURES) if parse(unseen.captions[index]) in meanings]
    logits = model(
        input_ids=text_to_image.tokenize(tokenizer, [meaning.text() for meaning in meanings]),
        pixel_values=contrast.pixels(unseen.images[chosen]),
    ).logits_per_image
    own = torch.tensor([meanings.index(parse(unseen.captions[index])) for index in chosen])
    return float((logits.argmax(dim=1) == own).float().mean())
