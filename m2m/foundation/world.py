"""The foundation of the embedded world: five small networks, trained one after the other on its pictures.

How good they are is measured on pictures that none of them has seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from m2m.devices import align
from m2m.foundation import encoders, text_to_image
from m2m.foundation.fit import Loss, fit
from m2m.models.classifier import WorldClassifier
from m2m.params import TransformerFit, WorldFoundation
from m2m.photos import as_signal
from m2m.seeds import derive
from m2m.world.corpus import Corpus, make_corpus, make_looks
from m2m.world.grammar import KINDS, WORDS, Caption, captions_naming, completions, picture_captions

Network = TypeVar("Network", bound=nn.Module)

RESTORED_PICTURES = 12000  # how many the class network also sees through the autoencoder
NETWORKS = ("stable-diffusion", "dino", "clip", "inception")
PICTURES, VIEWS, STEPS = 768, 192, 192
DRAWINGS, SOLVER_STEPS, GUIDANCE = 384, 20, 3.0
OPEN_CAPTIONS, OF_EACH = 8, 16
"""Of each open kind so many captions, or all if they are fewer; and pictures of each."""


@dataclass(frozen=True)
class Lessons:
    """A corpus as tensors."""

    images: Tensor  # uint8 (n, 3, 64, 64)
    captions: list[str]
    labels: dict[str, Tensor]  # head -> (n,) class indices
    shown: Tensor  # (n, traits): what the pictures show
    said: Tensor  # (n, traits): what of it the captions name
    geometry: Tensor  # (n, 5) float32
    placed: Tensor  # (n,) bool: has a geometry

    @classmethod
    def of(cls, corpus: Corpus, device: str = "cpu") -> Lessons:
        return cls(
            images=torch.from_numpy(corpus.images).to(device).permute(0, 3, 1, 2).contiguous(),
            captions=corpus.captions,
            labels={head: torch.from_numpy(label).to(device) for head, label in corpus.labels.items()},
            shown=torch.from_numpy(corpus.shown).to(device),
            said=torch.from_numpy(corpus.said).to(device),
            geometry=torch.from_numpy(corpus.geometry).to(device),
            placed=torch.from_numpy(corpus.has_geometry).to(device),
        )


class Training:
    """Trains each network on the same lessons; finished ones stay in ``work``: a killed run goes on where it was."""

    def __init__(self, params: WorldFoundation, work: Path, *, device: str, processes: int) -> None:
        self.params, self.work, self.device, self.processes = params, work, device, processes
        print("drawing the corpus", flush=True)
        self.counts = {"pictures": params.pictures, "views": params.views, "steps": params.steps}
        corpus = make_corpus(**self.counts, seed=params.seed, split="train", processes=processes)
        self.lessons = Lessons.of(corpus, device)
        self.tokenizer: CLIPTokenizer = text_to_image.learn_tokenizer(self.lessons.captions)
        self.tokens = text_to_image.tokenize(self.tokenizer, self.lessons.captions).to(device)

    def learn(
        self, name: str, build: Callable[[], Network], loss: Callable[[Network], Loss], *, pictures: int = 0
    ) -> Network:
        """A network by the parameters of its name, its initial weights a function of the seed.

        Of a transformer Muon trains the matrices, in a third of AdamW's steps or fewer.

        Args:
            pictures: how many others there are to learn from than those of the lessons.
        """
        params, count = self.params, pictures or len(self.tokens)
        torch.manual_seed(derive(params.seed, name, "weights"))
        network = build().to(self.device)
        sizes = params.unet if name == "text_to_image" else getattr(params, name)
        matrices = encoders.matrices(network) if isinstance(sizes, TransformerFit) else ()
        fit(
            name, network, loss(network), fit=sizes, pictures=count, seed=params.seed, work=self.work, matrices=matrices
        )
        return network

    def vae(self) -> Any:
        """The autoencoder, its scaling factor set so that scaled latents have unit variance over the lessons."""

        def build() -> Any:
            untrained: Any = text_to_image.build_autoencoder(self.params.vae)
            return untrained.to(memory_format=torch.channels_last)

        images = self.lessons.images
        network = self.learn("vae", build, lambda network: text_to_image.reconstruction_loss(network, images))
        sample = images[:: max(1, len(images) // 2048)]
        network.register_to_config(scaling_factor=float(1 / text_to_image.encoded(network, sample)[0].std()))
        return network

    def text_to_image(self, vae: Any) -> text_to_image.TextToImage:
        """The U-Net and its text encoder, trained on the autoencoder's latents."""

        def loss(networks: text_to_image.TextToImage) -> Loss:
            mean, spread = (
                part * vae.config.scaling_factor for part in text_to_image.encoded(vae, self.lessons.images)
            )
            empty = text_to_image.tokenize(self.tokenizer, [""]).to(self.device)
            prediction_type = self.params.unet.prediction_type
            return text_to_image.text_to_image_loss(networks, mean, spread, self.tokens, empty, prediction_type)

        return self.learn("text_to_image", lambda: text_to_image.TextToImage(self.params.unet, self.tokenizer), loss)

    def inception(self, vae: Any) -> WorldClassifier:
        """The class network, which sees some pictures as drawn and some as the autoencoder restores them."""
        lessons, count = self.lessons, len(self.tokens)
        # Every kind of picture lies in a stretch of its own: a stride takes its share of each.
        chosen = torch.arange(0, count, max(1, count // RESTORED_PICTURES))

        def loss(network: WorldClassifier) -> Loss:
            means, _ = text_to_image.encoded(vae, lessons.images[chosen])
            return encoders.naming_loss(
                network,
                torch.cat([lessons.images, *text_to_image.decoded(vae, means)]),
                {head: torch.cat([label, label[chosen]]) for head, label in lessons.labels.items()},
                torch.cat([lessons.geometry, lessons.geometry[chosen]]),
                torch.cat([lessons.placed, lessons.placed[chosen]]),
            )

        pictures = count + len(chosen)
        return self.learn("inception", lambda: WorldClassifier(encoders.CLASSES), loss, pictures=pictures)

    def clip(self) -> CLIPModel:
        """The model of pictures and captions in one space."""
        lessons = self.lessons
        return self.learn(
            "clip",
            lambda: encoders.build_clip(self.params.clip, self.tokenizer),
            lambda model: encoders.clip_loss(model, lessons.images, self.tokens, lessons.shown, lessons.said),
        )

    def dino(self) -> encoders.DinoTraining:
        """The encoder trained without labels, on two looks at each of as many scenes."""
        print("looking twice at each scene", flush=True)
        looked = make_looks(**self.counts, seed=self.params.seed, processes=self.processes)
        looks = torch.from_numpy(looked).to(self.device).permute(0, 1, 4, 2, 3)
        return self.learn(
            "dino",
            lambda: encoders.DinoTraining(self.params.dino),
            lambda network: encoders.dino_loss(network, looks),
            pictures=looks.shape[1],
        )


def train(params: WorldFoundation, *, out: Path, work: Path, device: str, processes: int) -> None:
    """Train all `NETWORKS` and write their folders with a card in each, as ``README.md``.

    Args:
        processes: how many draw pictures at the same time.
    """
    training, prediction_type = Training(params, work, device=device, processes=processes), params.unet.prediction_type
    vae = training.vae()
    networks, tokenizer = training.text_to_image(vae), training.tokenizer
    text_to_image.save_pipeline(out / "stable-diffusion", vae, networks, tokenizer, prediction_type)
    training.inception(vae).save_pretrained(out / "inception")
    encoders.save_clip(out / "clip", training.clip(), tokenizer)
    encoders.save_dino(out / "dino", training.dino().encoder)
    for name in NETWORKS:
        (out / name / "README.md").write_text(card(name, params))


def card(network: str, params: WorldFoundation) -> str:
    """What a network's folder says of itself in Markdown, with its licence where hubs look for it."""
    loader = PackageLoader("m2m.foundation", "")
    cards = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return cards.get_template("card.md.jinja").render(network=network, params=params)


# Measuring


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
    return [*islice(cycle(picture_captions("test")), DRAWINGS)]


def readings(network: WorldClassifier, images: Tensor, labels: dict[str, Tensor], kind: str) -> dict[str, float]:
    """The shares of pictures read right, by head, and of those with noun and colour both right."""
    right = {head: found == labels[head] for head, found in encoders.read(network, images, labels).items()}
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
    captions: list[Caption] = []
    for named in KINDS[:-1]:
        # All of a kind, or with a stride that goes through the values of both of its words.
        kind = captions_naming(named, "train")
        captions += kind if len(kind) <= OPEN_CAPTIONS else kind[:: len(kind) // OPEN_CAPTIONS + 1]
    images = drawings(pipeline, [caption for caption in captions for _ in range(OF_EACH)], seed)
    read = encoders.read(network, images, WORDS)
    shown = {head: [WORDS[head][index] for index in found.tolist()] for head, found in read.items()}
    figures: dict[str, float] = {}
    for head in WORDS:
        found: dict[str, list[float]] = {"kept": [], "repeats": [], "repeats-world": []}
        for place, caption in enumerate(captions):
            seen = shown[head][place * OF_EACH : (place + 1) * OF_EACH]
            if (word := getattr(caption, head)) is not None:
                found["kept"] += [one == word for one in seen]
                continue
            found["repeats"] += [one == other for one, other in combinations(seen, 2)]
            free = Counter(getattr(full, head) for full in completions(caption))
            found["repeats-world"].append(sum((count / free.total()) ** 2 for count in free.values()))
        figures |= {f"open/{head}/{what}": sum(shares) / len(shares) for what, shares in found.items()}
    trained = {full.meaning for full in picture_captions("train")}
    triples = list(zip(*shown.values(), strict=True))
    figures["open/held-out"] = sum(triple not in trained for triple in triples) / len(triples)
    return figures


@torch.no_grad()
def match(folder: Path, unseen: Lessons) -> float:
    """The share of pictures whose own full caption is the nearest of 48 with different meanings."""
    model: Any = CLIPModel.from_pretrained(folder).eval()
    model.to(unseen.images.device)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    own = [tuple(row) for row in unseen.shown[:PICTURES].tolist()]
    meanings = list(dict.fromkeys(own))[:48]
    chosen = [index for index, meaning in enumerate(own) if meaning in meanings]
    words = [[names[index] for names, index in zip(WORDS.values(), row[1:], strict=False)] for row in meanings]
    texts = [Caption(*named).text() for named in words]
    logits = model(
        input_ids=text_to_image.tokenize(tokenizer, texts).to(unseen.images.device),
        pixel_values=as_signal(unseen.images[chosen]),
    ).logits_per_image
    nearest = [meanings[index] for index in logits.argmax(dim=1).tolist()]
    hits: list[bool] = [found == own[index] for found, index in zip(nearest, chosen, strict=True)]
    return sum(hits) / len(hits)
