"""The foundation of the embedded world: five small networks, trained one after the other on its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

from m2m.foundation import classify, contrast, self_supervise, text_to_image, vae
from m2m.foundation.card import write_cards
from m2m.foundation.fit import Loss, fit
from m2m.foundation.words import learn_tokenizer
from m2m.models.classifier import WorldClassifier
from m2m.params import Fit, WorldFoundation
from m2m.seeds import derive
from m2m.world.corpus import Corpus, make_corpus, make_looks

RESTORED_PICTURES = 12000  # how many the class network also sees through the autoencoder


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
            labels={head: torch.from_numpy(getattr(corpus, head)).to(device) for head in classify.CLASSES},
            shown=torch.from_numpy(corpus.shown).to(device),
            said=torch.from_numpy(corpus.said).to(device),
            geometry=torch.from_numpy(corpus.geometry).to(device),
            placed=torch.from_numpy(corpus.has_geometry).to(device),
        )


class School:
    """Trains each network on the same lessons; finished ones stay in ``work``: a killed run goes on where it was."""

    def __init__(self, params: WorldFoundation, work: Path, *, device: str, processes: int) -> None:
        self.params, self.work, self.device, self.processes = params, work, device, processes
        print("drawing the corpus", flush=True)
        self.counts = {"pictures": params.pictures, "views": params.views, "steps": params.steps}
        corpus = make_corpus(**self.counts, seed=params.seed, split="train", processes=processes)
        self.lessons = Lessons.of(corpus, device)
        self.tokenizer: CLIPTokenizer = learn_tokenizer(self.lessons.captions)
        self.tokens = text_to_image.tokenize(self.tokenizer, self.lessons.captions).to(device)

    def teach(
        self, name: str, network: nn.Module, loss: Loss, lessons: Fit, pictures: int, matrices: Sequence[str] = ()
    ) -> None:
        fit(
            name,
            network,
            loss,
            fit=lessons,
            pictures=pictures,
            seed=self.params.seed,
            work=self.work,
            matrices=matrices,
        )

    def begin(self, name: str) -> None:
        """Make the initial weights of the next network a function of the seed."""
        torch.manual_seed(derive(self.params.seed, name, "weights"))

    def vae(self) -> Any:
        """The autoencoder, its scaling factor set so that scaled latents have unit variance over the lessons."""
        self.begin("vae")
        network: Any = vae.build(self.params.vae)
        network.to(self.device, memory_format=torch.channels_last)
        self.teach(
            "vae", network, vae.reconstruction_loss(network, self.lessons.images), self.params.vae, len(self.tokens)
        )
        sample = self.lessons.images[:: max(1, len(self.tokens) // 2048)]
        network.register_to_config(scaling_factor=float(1 / vae.encode(network, sample)[0].std()))
        return network

    def text_to_image(self, network: Any) -> text_to_image.TextToImage:
        """The U-Net and its text encoder, trained on the autoencoder's latents."""
        self.begin("text_to_image")
        networks = text_to_image.TextToImage(self.params.unet, self.tokenizer).to(self.device)
        mean, spread = (part * network.config.scaling_factor for part in vae.encode(network, self.lessons.images))
        empty = text_to_image.tokenize(self.tokenizer, [""]).to(self.device)
        loss = text_to_image.text_to_image_loss(
            networks, mean, spread, self.tokens, empty, self.params.unet.prediction_type
        )
        self.teach("text_to_image", networks, loss, self.params.unet, len(self.tokens))
        return networks

    def inception(self, network: Any) -> WorldClassifier:
        """The class network, which sees some pictures as drawn and some as the autoencoder restores them."""
        self.begin("inception")
        lessons, count = self.lessons, len(self.tokens)
        # Every kind of picture lies in a stretch of its own: a stride takes its share of each.
        chosen = torch.arange(0, count, max(1, count // RESTORED_PICTURES))
        restored = torch.cat(list(vae.decode(network, vae.encode(network, lessons.images[chosen])[0])))
        classifier = WorldClassifier(classify.CLASSES).to(self.device)
        loss = classify.naming_loss(
            classifier,
            torch.cat([lessons.images, restored]),
            {head: torch.cat([label, label[chosen]]) for head, label in lessons.labels.items()},
            torch.cat([lessons.geometry, lessons.geometry[chosen]]),
            torch.cat([lessons.placed, lessons.placed[chosen]]),
        )
        self.teach("inception", classifier, loss, self.params.inception, count + len(chosen))
        return classifier

    def clip(self) -> CLIPModel:
        """The model of pictures and captions in one space."""
        self.begin("clip")
        model: Any = contrast.build(self.params.clip, self.tokenizer)
        model.to(self.device)
        lessons = self.lessons
        loss = contrast.contrastive_loss(model, lessons.images, self.tokens, lessons.shown, lessons.said)
        self.teach("clip", model, loss, self.params.clip, len(self.tokens), matrices=contrast.matrices(model))
        taught: CLIPModel = model
        return taught

    def dino(self) -> Dinov2Model:
        """The encoder trained without labels, on two looks at each of as many scenes."""
        print("looking twice at each scene", flush=True)
        looked = make_looks(**self.counts, seed=self.params.seed, processes=self.processes)
        looks = torch.from_numpy(looked).to(self.device).permute(0, 1, 4, 2, 3)
        self.begin("dino")
        network = self_supervise.Contrast(self.params.dino).to(self.device)
        self.teach(
            "dino",
            network,
            self_supervise.contrastive_loss(network, looks),
            self.params.dino,
            looks.shape[1],
            matrices=network.matrices(),
        )
        return network.encoder


def train(params: WorldFoundation, *, out: Path, work: Path, device: str, processes: int) -> None:
    """Train all networks and write their folders: ``stable-diffusion``, ``dino``, ``clip``, ``inception``.

    Args:
        processes: how many draw pictures at the same time.
    """
    school = School(params, work, device=device, processes=processes)
    autoencoder = school.vae()
    text_to_image.save_pipeline(
        out / "stable-diffusion",
        autoencoder,
        school.text_to_image(autoencoder),
        school.tokenizer,
        params.unet.prediction_type,
    )
    school.inception(autoencoder).save_pretrained(out / "inception")
    contrast.save(out / "clip", school.clip(), school.tokenizer)
    self_supervise.save(out / "dino", school.dino())
    write_cards(out, params)
