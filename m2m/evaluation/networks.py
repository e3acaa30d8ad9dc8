"""The networks that judge pictures: by features, classes and attributes, by text and image embeddings, by likeness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPModel, CLIPProcessor

from m2m.devices import align
from m2m.errors import UserError
from m2m.evaluation.published import INCEPTION_V3, LPIPS, InceptionV3, Lpips, distance
from m2m.files import check_digests, folder_digest, reading_foundation
from m2m.models import classifier
from m2m.models.classifier import WorldClassifier, load_class_network
from m2m.world.grammar import ATTRIBUTES

LOADERS: Mapping[str, Callable[[Path], WorldClassifier | InceptionV3]] = {
    classifier.ARCHITECTURE: WorldClassifier.from_pretrained,
    INCEPTION_V3: InceptionV3.from_pretrained,
}


@dataclass(frozen=True)
class Networks:
    """The judges, and the names under which the numbers record them: ``inception``, ``clip`` and ``perceptual``."""

    inception: WorldClassifier | InceptionV3
    clip: Clip
    names: Mapping[str, str]
    device: torch.device
    lpips: Lpips | None = None
    """only where the foundation has it"""

    @classmethod
    def load(cls, foundation: Path, *, device: str) -> Self:
        """Load ``inception/``, ``clip/`` and, if it is there, ``perceptual/`` of a foundation folder.

        Raises:
            UserError: one of them is missing, incomplete, or of an unknown architecture.
        """
        where = torch.device(device)
        published = foundation / "perceptual"
        inception, architecture = load_class_network(foundation / "inception", LOADERS)
        if inception is None:
            known = " or ".join(LOADERS)
            raise UserError(f"{foundation}/inception/config.json: architecture is {architecture!r}, expected {known}")
        check_digests(foundation / "clip")
        clip = Clip.from_pretrained(foundation / "clip")
        clip.model.to(where)  # type: ignore[arg-type]
        check_digests(published)
        with reading_foundation(published):
            likeness = Lpips.from_pretrained(published).to(where) if published.is_dir() else None

        def named(architecture: str, part: str) -> str:
            return f"{architecture}@{folder_digest(foundation / part)[:12]}"

        names = {"inception": named(architecture, "inception"), "clip": named("clip", "clip")}
        names["perceptual"] = named(LPIPS, "perceptual") if likeness else names["inception"]
        return cls(inception=inception.to(where), clip=clip, names=names, device=where, lpips=likeness)

    def perceptual(self, first: Tensor, second: Tensor) -> Tensor:
        """How far apart n pairs of pictures are, uint8 (n, 3, H, W) each: (n,). LPIPS, or else our own distance."""
        return self.lpips(first, second) if self.lpips else perceptual_distance(self.inception, first, second)

    def recorded(self, *judges: str) -> dict[str, str]:
        """What numbers say that they rest on: ``network/<judge>``."""
        return {f"network/{judge}": self.names[judge] for judge in judges}

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of a caption that the class network names; none if it is not of the embedded world."""
        return tuple(attribute for attribute in ATTRIBUTES if attribute in self.inception.classes)


class Clip:
    """A CLIP folder: unit embeddings of pictures, and torchmetrics' score of them against captions."""

    def __init__(self, model: CLIPModel, processor: CLIPProcessor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Load model and processor.

        Raises:
            UserError: a file is missing or not readable.
        """
        with reading_foundation(folder):
            model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        align(model)
        return cls(model.eval().requires_grad_(False), processor)

    def embed(self, images: Tensor) -> Tensor:
        """Unit embeddings (n, D) of uint8 pictures (n, 3, H, W), computed on the pictures' device."""
        pixels = self.processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"].to(images.device)
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def score(self) -> CLIPScore:
        """A fresh CLIPScore: give it embedded pictures, shaped (n, 1, 1, D) since it wants pictures, and n captions."""
        return CLIPScore(model_name_or_path=lambda: (Embedded(self.model), self.prepare))  # type: ignore[arg-type, return-value]

    def prepare(self, *, text: Sequence[str] | None = None, images: Sequence[Tensor] = (), **options: Any) -> Any:
        """Tokens of captions, cut before the end token is set, not after; or a batch of embedded pictures."""
        if text is None:
            return {"pixel_values": torch.stack(list(images))}
        limit = self.model.text_model.embeddings.position_embedding.num_embeddings
        return self.processor(text=list(text), truncation=True, max_length=limit, **options)


class Embedded(nn.Module):
    """CLIP as torchmetrics 1.9 calls it, for pictures that are embedded already: no picture goes through it twice.

    It gives tensors, which torchmetrics expects, where transformers 5 gives output objects.
    """

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, embeddings: Tensor) -> Tensor:
        """(n, 1, 1, D) to (n, D)."""
        return embeddings.flatten(1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, L) tokens to (n, D)."""
        output = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        features: Tensor = output.pooler_output
        return features


def perceptual_distance(network: WorldClassifier | InceptionV3, first: Tensor, second: Tensor) -> Tensor:
    """Of n pairs of pictures, uint8 (n, 3, H, W) each: (n,), 0 for equal ones (Zhang et al., 2018, eq. 1).

    It is not called LPIPS: LPIPS weights the layers of an AlexNet or VGG by human judgement. Here all weights are 1,
    and the network's name is recorded beside the numbers.
    """
    unweighted: Callable[[Tensor], Tensor] = lambda squares: squares.sum(dim=1, keepdim=True)  # noqa: E731
    return distance(_features(network, torch.cat([first, second])), repeat(unweighted))


def _features(network: WorldClassifier | InceptionV3, images: Tensor) -> list[Tensor]:
    """What each of the network's layers gives, (n, C, h, w) each."""
    found: list[Tensor] = []
    keep: Callable[[nn.Module, object, Tensor], None] = lambda _module, _inputs, output: found.append(output)  # noqa: E731
    hooks = [layer.register_forward_hook(keep) for layer in network.layers]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
