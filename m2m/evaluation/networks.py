"""The networks that judge pictures, what they make of a lot of them, and which of these do not count.

They judge by features, classes and attributes, by text and image embeddings, by likeness. A lot is some sets' pictures
at the same positions, whoever drew them. Misses are those that the class network cannot read, and copies of earlier
ones: what is rarer among held-out pictures than one in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
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
PICTURES_AT_ONCE = 128
RARE = 0.01


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
        clip.model.to(where)
        check_digests(published)
        with reading_foundation(published):
            likeness = Lpips.from_pretrained(published).to(where) if published.is_dir() else None

        judges = {"inception": architecture, "clip": "clip"} | ({"perceptual": LPIPS} if likeness else {})
        names = {part: f"{name}@{folder_digest(foundation / part)[:12]}" for part, name in judges.items()}
        names.setdefault("perceptual", names["inception"])
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


@dataclass(frozen=True)
class Clip:
    """A CLIP folder: unit embeddings of pictures and of captions."""

    model: CLIPModel
    processor: CLIPProcessor

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

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """Unit embeddings (n, D) of captions, cut before the end token is set, not after."""
        limit = self.model.text_model.embeddings.position_embedding.num_embeddings
        tokens = self.processor(
            text=list(captions), return_tensors="pt", padding=True, truncation=True, max_length=limit
        )
        return F.normalize(self.model.get_text_features(**tokens.to(self.model.device)).pooler_output, dim=-1)


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


@dataclass(frozen=True)
class Batch:
    """Some sets."""

    captions: Sequence[str]
    given: NDArray[np.uint8]
    """(sets, n, H, W, 3); n is 0 if the pictures follow none"""
    images: NDArray[np.uint8]
    """(sets, positions, H, W, 3)"""


@dataclass(frozen=True)
class Observations:
    """What the class network and CLIP see in a lot."""

    features: Tensor
    """(sets, positions, F), of the class network"""
    logits: Mapping[str, Tensor]
    """its heads to (sets, positions, classes)"""
    geometry: Tensor
    """(sets, positions, 5), or 0 where the network measures none"""
    nearest: NDArray[np.float64]
    """(sets, positions), the distance to the nearest given or earlier picture; infinite if there is none"""
    embeddings: Tensor
    """(sets, positions, D), CLIP's, of unit length; D is 0 where it was not asked"""
    text_image: Tensor
    """(positions,), CLIPScore against the captions (Hessel et al., 2021), 100 · cosine; NaN where it was not asked"""

    def at(self, positions: Sequence[int]) -> Observations:
        """Those of some positions, in this order, repeated if named twice."""
        chosen = list(positions)
        those = {name: getattr(self, name)[:, chosen] for name in ("features", "geometry", "nearest", "embeddings")}
        logits = {head: values[:, chosen] for head, values in self.logits.items()}
        return Observations(**those, logits=logits, text_image=self.text_image[chosen])


@torch.no_grad()
def observe(batches: Iterable[Batch], networks: Networks, *, by_clip: bool = True) -> Observations:
    """Shows a lot to the networks, a batch at a time: only numbers stay in memory.

    Args:
        by_clip: else the class network alone looks.
    """
    parts: list[dict[str, Tensor]] = []
    nearest: list[NDArray[np.float64]] = []
    text_image: list[Tensor] = []
    for batch in batches:
        shape = batch.images.shape[:2]
        images = torch.from_numpy(np.ascontiguousarray(batch.images)).to(networks.device)
        pixels = images.permute(0, 1, 4, 2, 3).contiguous().flatten(0, 1)  # (sets · positions, 3, H, W)
        some = pixels.split(PICTURES_AT_ONCE)  # type: ignore[no-untyped-call]
        read = [networks.inception(part) for part in some]
        seen = {head: torch.cat([one.logits[head] for one in read]) for head in read[0].logits}
        seen["geometry"] = torch.cat([one.geometry for one in read])
        seen["features"] = torch.cat([one.features for one in read])
        seen["embeddings"] = seen["features"][:, :0]
        if by_clip:
            seen["embeddings"] = torch.cat([networks.clip.embed(one) for one in some])
            texts = networks.clip.embed_texts(batch.captions)  # (sets, D)
            places = seen["embeddings"].reshape(*shape, -1).unbind(1)
            scores = [(100 * (F.normalize(place, dim=-1) * texts).sum(dim=-1)).sum() for place in places]
            text_image.append(torch.stack(scores))
        parts.append({name: values.reshape(*shape, *values.shape[1:]).cpu() for name, values in seen.items()})
        # Only who reads patterns asks which pictures are copies.
        nearest.append(nearest_earlier(batch.given, batch.images) if networks.attributes else np.full(shape, np.inf))
    logits = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = np.concatenate(nearest)
    none = torch.full((found.shape[1],), torch.nan)
    return Observations(
        features=logits.pop("features"),
        geometry=logits.pop("geometry"),
        embeddings=logits.pop("embeddings"),
        logits=logits,
        nearest=found,
        text_image=(sum(text_image, torch.zeros(())) / len(found)).clamp_min(0).cpu() if text_image else none,
    )


def some_at_once(sets: Iterable[NDArray[np.uint8]], lengths: list[int] | None = None) -> Iterator[NDArray[np.uint8]]:
    """The pictures (n, H, W, 3) of sets, as many at once as the networks look at; the last ones are fewer.

    Args:
        lengths: takes how many pictures each set has.
    """

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for of_set in sets:
            if lengths is not None:
                lengths.append(len(of_set))
            yield from of_set

    every = pictures()
    while some := list(islice(every, PICTURES_AT_ONCE)):
        yield np.stack(some)


def read_values(logits: Mapping[str, Tensor]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest class of each attribute and its probability, (sets, positions, attributes) each.

    Args:
        logits: of these heads, (sets, positions, classes) each.
    """
    best = [logits[attribute].double().softmax(dim=2).max(dim=2) for attribute in ATTRIBUTES]
    values = torch.stack([one.indices for one in best], dim=2)  # (sets, positions, attributes)
    confidences = torch.stack([one.values for one in best], dim=2)
    return values.cpu().numpy(), confidences.cpu().numpy()


def nearest_earlier(given: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of each drawn picture to the nearest given or earlier drawn one of its set.

    Args:
        given: (sets, n, H, W, 3); n may be 0.
        drawn: (sets, positions, H, W, 3).

    Returns:
        (sets, positions), in steps of the 8-bit scale; infinite where there is no earlier one.
    """
    pictures = np.concatenate([given, drawn], axis=1)
    return _nearest(pictures, np.tri(pictures.shape[1], k=-1, dtype=bool))[:, given.shape[1] :]


def nearest_other(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The same to the nearest of all others of the set, earlier or later: (sets, N, H, W, 3) to (sets, N)."""
    return _nearest(pictures, ~np.eye(pictures.shape[1], dtype=bool))


def _nearest(pictures: NDArray[np.uint8], others: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each set, (sets, N, H, W, 3), the distances (N) to the nearest of the others, (N, N)."""
    return np.stack([np.where(others, _distances(of_set), np.inf).min(axis=1) for of_set in pictures])


@dataclass(frozen=True)
class Thresholds:
    """What all but the rarest held-out pictures reach."""

    confidence: NDArray[np.float64]
    """(attributes,), of the likeliest class"""
    distance: float
    """to the nearest other picture of the set"""

    @classmethod
    def of_held_out(cls, confidences: NDArray[np.float64], nearest: NDArray[np.float64]) -> Self:
        """Of confidences (sets, N, attributes) and distances by `nearest_other` (sets, N).

        The more others there are, the nearer is the nearest: sets should have at least as many pictures as those that
        are judged, the given ones included. Then no more than the rarest held-out pictures pass for copies.
        """
        return cls(np.quantile(confidences, RARE, axis=(0, 1)), float(np.quantile(nearest, RARE)))

    def misses(self, confidences: NDArray[np.float64], nearest: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where a picture misses: in an attribute that cannot be read, in all if it is a copy.

        Args:
            confidences: (sets, positions, attributes).
            nearest: (sets, positions), by `nearest_earlier`.

        Returns:
            (sets, positions, attributes).
        """
        # An exact copy is one even where held-out sets have some themselves and the threshold is 0.
        copies = (nearest < self.distance) | (nearest == 0)
        missed: NDArray[np.bool_] = (confidences < self.confidence) | copies[:, :, None]
        return missed


def _distances(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square differences (N, N) of pictures (N, H, W, 3).

    By scalar products: they are whole numbers far below 2^53, so that float64 holds them exactly and equal pictures are
    at distance 0.
    """
    rows = pictures.reshape(len(pictures), -1).astype(np.float64)  # (N, H·W·3)
    products = rows @ rows.T  # (N, N)
    squares = np.diag(products)
    distances: NDArray[np.float64] = np.sqrt((squares[:, None] + squares - 2 * products) / rows.shape[1])
    return distances
