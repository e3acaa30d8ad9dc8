"""The foundation of the embedded world: five small networks, trained one after the other on its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

from m2m.foundation import encoders, text_to_image
from m2m.foundation.fit import Loss, fit
from m2m.models.classifier import WorldClassifier
from m2m.params import WorldFoundation
from m2m.seeds import derive
from m2m.world.corpus import Corpus, make_corpus, make_looks

RESTORED_PICTURES = 12000  # how many the class network also sees through the autoencoder
NETWORKS = {
    "stable-diffusion": "A small text-to-image model, a StableDiffusionPipeline folder configured like SD 2.1-base: "
    "f = 8, four latent channels, linear projections, its noise schedule.",
    "dino": "A small Dinov2Model, trained without labels: two looks at one scene belong together.",
    "clip": "A small CLIPModel: pictures and captions in one space.",
    "inception": "The class network that stands in for Inception-v3: 64 features for FID, classes for noun, colour, "
    "style and step, and readings of place, size and angle.",
}
"""What each folder's model card says, with the licence where hubs look for it."""


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

    def fit(
        self, name: str, network: nn.Module, loss: Loss, *, pictures: int | None = None, matrices: Sequence[str] = ()
    ) -> None:
        """A network, by the parameters of its name, on all pictures or so many others."""
        params, count = self.params, pictures or len(self.tokens)
        sizes = params.unet if name == "text_to_image" else getattr(params, name)
        fit(name, network, loss, fit=sizes, pictures=count, seed=params.seed, work=self.work, matrices=matrices)

    def begin(self, name: str) -> None:
        """Make the initial weights of the next network a function of the seed."""
        torch.manual_seed(derive(self.params.seed, name, "weights"))

    def vae(self) -> Any:
        """The autoencoder, its scaling factor set so that scaled latents have unit variance over the lessons."""
        self.begin("vae")
        network: Any = text_to_image.build_autoencoder(self.params.vae)
        network.to(self.device, memory_format=torch.channels_last)
        self.fit("vae", network, text_to_image.reconstruction_loss(network, self.lessons.images))
        sample = self.lessons.images[:: max(1, len(self.tokens) // 2048)]
        network.register_to_config(scaling_factor=float(1 / text_to_image.encoded(network, sample)[0].std()))
        return network

    def text_to_image(self, vae: Any) -> text_to_image.TextToImage:
        """The U-Net and its text encoder, trained on the autoencoder's latents."""
        self.begin("text_to_image")
        networks = text_to_image.TextToImage(self.params.unet, self.tokenizer).to(self.device)
        scale, prediction_type = vae.config.scaling_factor, self.params.unet.prediction_type
        mean, spread = (part * scale for part in text_to_image.encoded(vae, self.lessons.images))
        empty = text_to_image.tokenize(self.tokenizer, [""]).to(self.device)
        loss = text_to_image.text_to_image_loss(networks, mean, spread, self.tokens, empty, prediction_type)
        self.fit("text_to_image", networks, loss)
        return networks

    def inception(self, vae: Any) -> WorldClassifier:
        """The class network, which sees some pictures as drawn and some as the autoencoder restores them."""
        self.begin("inception")
        lessons, count = self.lessons, len(self.tokens)
        # Every kind of picture lies in a stretch of its own: a stride takes its share of each.
        chosen = torch.arange(0, count, max(1, count // RESTORED_PICTURES))
        means, _ = text_to_image.encoded(vae, lessons.images[chosen])
        classifier = WorldClassifier(encoders.CLASSES).to(self.device)
        loss = encoders.naming_loss(
            classifier,
            torch.cat([lessons.images, *text_to_image.decoded(vae, means)]),
            {head: torch.cat([label, label[chosen]]) for head, label in lessons.labels.items()},
            torch.cat([lessons.geometry, lessons.geometry[chosen]]),
            torch.cat([lessons.placed, lessons.placed[chosen]]),
        )
        self.fit("inception", classifier, loss, pictures=count + len(chosen))
        return classifier

    def clip(self) -> CLIPModel:
        """The model of pictures and captions in one space."""
        self.begin("clip")
        model: Any = encoders.build_clip(self.params.clip, self.tokenizer)
        model.to(self.device)
        lessons = self.lessons
        loss = encoders.clip_loss(model, lessons.images, self.tokens, lessons.shown, lessons.said)
        self.fit("clip", model, loss, matrices=encoders.clip_matrices(model))
        return model  # type: ignore[no-any-return]

    def dino(self) -> Dinov2Model:
        """The encoder trained without labels, on two looks at each of as many scenes."""
        print("looking twice at each scene", flush=True)
        looked = make_looks(**self.counts, seed=self.params.seed, processes=self.processes)
        looks = torch.from_numpy(looked).to(self.device).permute(0, 1, 4, 2, 3)
        self.begin("dino")
        network = encoders.DinoTraining(self.params.dino).to(self.device)
        loss = encoders.dino_loss(network, looks)
        self.fit("dino", network, loss, pictures=looks.shape[1], matrices=network.matrices())
        return network.encoder


def train(params: WorldFoundation, *, out: Path, work: Path, device: str, processes: int) -> None:
    """Train all networks and write their folders: ``stable-diffusion``, ``dino``, ``clip``, ``inception``.

    Args:
        processes: how many draw pictures at the same time.
    """
    training, prediction_type = Training(params, work, device=device, processes=processes), params.unet.prediction_type
    vae = training.vae()
    networks, tokenizer = training.text_to_image(vae), training.tokenizer
    text_to_image.save_pipeline(out / "stable-diffusion", vae, networks, tokenizer, prediction_type)
    training.inception(vae).save_pretrained(out / "inception")
    encoders.save_clip(out / "clip", training.clip(), tokenizer)
    encoders.save_dino(out / "dino", training.dino())
    write_cards(out, params)


def write_cards(folder: Path, params: WorldFoundation) -> None:
    """Write ``README.md`` into each network's folder."""
    for name, text in NETWORKS.items():
        card = (
            "---\nlicense: apache-2.0\n---\n\n"
            f"# {name}, on the embedded world\n\n{text}\n\n"
            f"Trained from scratch on {params.pictures} pictures, {params.views} rendered views and {params.steps} "
            "half-built procedures of 64 x 64 pixels, all drawn by this project "
            f"(seed {params.seed}, revision {params.revision}). It knows nothing else, "
            "and is here so that the whole pipeline runs without a network. How well it does on pictures that it never "
            "saw stands in `quality.json` beside this folder.\n"
        )
        (folder / name / "README.md").write_text(card)
