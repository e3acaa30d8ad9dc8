"""What a model is compared with: who reads the given pictures, and lots of pictures that it did not draw.

**The ideal reader** knows all that can be known of a set from the pictures given of it: the bound for all who are not
told the caption. A set was made by an **explanation**: which attributes its caption names, and the values that it
names. All pictures show these; the rest is drawn for each anew, from the combinations that training shows. By Bayes'
rule, given pictures v_1 … v_n that each show a wrong value with a probability of ε leave each explanation (A, m) the
odds

    P(A, m | v) ∝ P(A) · P(m | A) · ∏_i [ 1 / completions(m) · ∏_{a in A} P(v_ia | m_a) ],

where P(m | A) is the same for all named values that training shows. What is named is not what is repeated: two pictures
may show one colour by chance, but hardly eight.

Beside it stand held-out sets, in other colours too, the training set that is most like the given pictures, what Stable
Diffusion draws of nothing, or of what they agree on, and given pictures painted anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2m import seeds
from m2m.code import code_digest
from m2m.data.dataset import ImageSets
from m2m.data.sets import ImageSet
from m2m.diffusion.stable_diffusion import StableDiffusion
from m2m.evaluation.continuations import Starts, Subject, folder_of, keep_drawn
from m2m.evaluation.networks import PICTURES_AT_ONCE, Batch, Clip, Observations
from m2m.files import folder_digest
from m2m.params import EvaluateMis
from m2m.progress import Advance, progress
from m2m.workers import Once
from m2m.world.grammar import ATTRIBUTES, PICTURE_WORDS, Caption
from m2m.world.pictures import Variation, paint

HYPOTHESES = sorted(product((True, False), repeat=3), key=sum)[1:]
"""Whether the caption names noun, colour, style; that nothing is shared is none of them: no caption names nothing."""


class IdealReader:
    """Reads given pictures by Bayes' rule, and draws what may come next; each hypothesis is as likely as the others.

    Args:
        seen: (nouns, colours, styles), the combinations that training shows. One that it never shows counts like its
            neighbours, since the reader does not know what was left out.
        epsilon: how often the class network takes a value for another, each other one alike. Without it one misread
            picture would rule out all explanations.

    Raises:
        ValueError: epsilon is not between 0 and 1.
    """

    def __init__(self, seen: NDArray[np.bool_], *, epsilon: float) -> None:
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon is {epsilon}, expected more than 0 and less than 1")
        self._epsilon = epsilon
        self._classes = seen.shape
        # Of all E explanations, row by row:
        named, values, odds, completions, shown = [], [], [], [], []
        self._triples = np.indices(seen.shape).reshape(3, -1).T  # (T, 3)
        for hypothesis in HYPOTHESES:
            free = tuple(axis for axis in range(3) if not hypothesis[axis])
            counts = seen.sum(axis=free, keepdims=True)
            told = np.indices(counts.shape).reshape(3, -1).T  # (M, 3), 0 where free
            within = ((self._triples == told[:, None]) | ~np.array(hypothesis)).all(axis=2)  # (M, T)
            known = counts.reshape(-1) if free else np.ones(len(told), np.int64)
            named.append(np.tile(hypothesis, (len(told), 1)))
            values.append(told)
            odds.append((known > 0) * (1 / len(HYPOTHESES)) / np.count_nonzero(counts))
            completions.append(np.maximum(known, 1))
            shown.append(within & seen.reshape(-1) if free else within)
        self.named = np.concatenate(named)  # (E, 3)
        self.values = np.concatenate(values)  # (E, 3)
        with np.errstate(divide="ignore"):
            self._log_prior = np.log(np.concatenate(odds))  # (E,)
        self._completions = np.concatenate(completions)  # (E,)
        self._shown = np.concatenate(shown) / self._completions[:, None]  # (E, T): what the next picture shows

    def shows(self, given: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that the next picture shows this value, shared or not: (sets, n, 3), (sets, 3) to (sets, 3)."""
        following = self.explanations(given) @ self._shown  # (sets, T)
        agrees = self._triples == values[:, None]  # (sets, T, 3)
        odds: NDArray[np.float64] = np.einsum("st,sta->sa", following, agrees)
        return odds

    def draw(
        self, given: NDArray[np.int64], positions: int, random: np.random.Generator, repeats: int = 1
    ) -> NDArray[np.int64]:
        """What follows, (repeats, sets, positions, 3): for each set an explanation by its odds, then pictures by that.

        Args:
            given: (sets, n, 3).
        """
        odds = self.explanations(given).cumsum(axis=1)  # (sets, E)
        chosen = _sample(np.broadcast_to(odds, (repeats, *odds.shape)), random)  # (repeats, sets)
        following = self._shown.cumsum(axis=1)  # (E, T)
        # A repeat at a time: the odds of all triples are held for each set.
        drawn = [
            np.stack([_sample(following[of_sets], random) for _ in range(positions)], axis=1) for of_sets in chosen
        ]
        return self._triples[np.stack(drawn)]

    def explanations(self, given: NDArray[np.int64]) -> NDArray[np.float64]:
        """The odds of what is `named`, and the `values`: (sets, n, 3) to (sets, E), each row summing to 1."""
        logs = self._log_prior - given.shape[1] * np.log(self._completions)  # (E,)
        logs = np.tile(logs, (len(given), 1))  # (sets, E)
        for axis, classes in enumerate(self._classes):
            right = (given[:, :, axis, None] == np.arange(classes)).sum(axis=1)  # (sets, classes)
            of_values = right * np.log(1 - self._epsilon)
            of_values += (given.shape[1] - right) * np.log(self._epsilon / (classes - 1))
            logs += np.where(self.named[:, axis], of_values[:, self.values[:, axis]], 0)
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        normalised: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
        return normalised


def _sample(cumulated: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """An index by each row of cumulated odds (…, n): (…)."""
    drawn = random.random(cumulated.shape[:-1]) * cumulated[..., -1]
    return np.asarray((cumulated <= drawn[..., None]).sum(axis=-1), np.int64)


def agreed_captions(given: NDArray[np.int64], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Of each set, (sets, n, 3), the caption that names what all given pictures show; empty if nothing."""
    captions = []
    for values in given:
        told: list[str | None] = []
        for column, attribute in zip(values.T, ATTRIBUTES, strict=True):
            word = classes[attribute][column[0]]
            told.append(word if (column == column[0]).all() and word in PICTURE_WORDS[attribute] else None)
        noun, colour, style = told
        captions.append(Caption(noun, colour, style).text() if any(told) else "")
    return captions


class PaintedSets:
    """Sets whose first pictures are painted anew: what the class network reads in each, in another place and size.

    Args:
        seen: in the sets' pictures.
    """

    def __init__(
        self, sets: Starts, seen: Observations, given: int, classes: Mapping[str, Sequence[str]], *, seed: int
    ) -> None:
        self._sets, self._seed = sets, seed
        words = []  # of each attribute, (sets, given)
        for attribute in ATTRIBUTES:
            known = PICTURE_WORDS[attribute]
            numbers = [list(classes[attribute]).index(word) for word in known]
            likeliest = seen.logits[attribute][:, :given, numbers].argmax(dim=2).cpu().numpy()
            words.append(np.array(known)[likeliest])
        self._words = np.stack(words, axis=2)  # (sets, given, 3)

    def __getitem__(self, index: int, /) -> ImageSet:
        """One set; it is the same each time."""
        member, images = self._sets[index], []
        for place, words in enumerate(self._words[index].tolist()):
            random = np.random.default_rng(seeds.derive(self._seed, "paint anew", member.id, place))
            images.append(paint(Caption(*words), Variation.draw(random)))
        return replace(member, images=np.stack(images), latents=None, extras={})


@torch.no_grad()
def mean_embeddings(sets: ImageSets, clip: Clip, device: torch.device) -> Tensor:
    """Of each set the direction of its pictures' mean embedding, (sets, D); a set at a time is in memory."""
    means = []
    for index in range(len(sets)):
        pixels = torch.from_numpy(sets[index].images).to(device).permute(0, 3, 1, 2).contiguous()
        embedded = torch.cat([clip.embed(part) for part in pixels.split(PICTURES_AT_ONCE)])  # type: ignore[no-untyped-call]
        means.append(F.normalize(embedded.mean(dim=0), dim=0).cpu())
    return torch.stack(means)


def nearest(
    given: Tensor, training: ImageSets, means: Tensor, positions: int, *, batch: int
) -> Iterator[NDArray[np.uint8]]:
    """The first pictures of the training sets nearest to given ones, batch by batch; from the first again if few.

    Args:
        given: embedded, (sets, n, D).
        means: of the training sets, by `mean_embeddings`.

    Returns:
        (sets, positions, H, W, 3) each.
    """
    numbers = (F.normalize(given.mean(dim=1), dim=1) @ means.T).argmax(dim=1)
    for chosen in numbers.split(batch):  # type: ignore[no-untyped-call]
        # In the order of the shards, so that each is decoded once a batch.
        found = {number: training[number].images for number in sorted({*chosen.tolist()})}
        pictures = [found[number] for number in chosen.tolist()]
        yield np.stack([images[np.arange(positions) % len(images)] for images in pictures])


_SHUFFLES = np.array([order for order in permutations(range(3)) if order != (0, 1, 2)])


def held_out(sets: ImageSets, *, count: int, batch: int) -> Iterator[Batch]:
    """All pictures of the first `count` sets, none of them given."""
    for start in range(0, count, batch):
        members = [sets[index] for index in range(start, min(start + batch, count))]
        images = np.stack([member.images for member in members])
        yield Batch([member.caption for member in members], images[:, :0], images)


def colours_shuffled(batches: Iterable[Batch], *, seed: int) -> Iterator[Batch]:
    """The same pictures, red, green and blue exchanged at random in each: all stays but the colours."""
    random = np.random.default_rng(seeds.derive(seed, "shuffle colours"))
    for batch in batches:
        orders = _SHUFFLES[random.integers(len(_SHUFFLES), size=batch.images.shape[:2])]  # (sets, positions, 3)
        shuffled = np.take_along_axis(batch.images, orders[:, :, None, None, :], axis=4)
        yield Batch(batch.captions, batch.given, shuffled)


class Painter:
    """Stable Diffusion, loaded when the first picture is missing; what it drew is kept for the next model.

    Args:
        name: of the folder in which pictures are kept, which are the same for every model, and of their noise.
        options: solver, steps and guidance scale, as of `StableDiffusion`.

    Raises:
        UserError: the folder is no Stable Diffusion pipeline.
    """

    def __init__(self, subject: Subject[EvaluateMis], name: str, **options: Any) -> None:
        self._subject, self._name = subject, name
        params, runtime, folder = subject.params, subject.runtime, subject.stable_diffusion
        self._made_from = {
            **options,
            **params.model_dump(mode="json", include={"seed", "sets_per_batch", "precision"}),
            "weights": folder_digest(folder),
            "device": runtime.device_type,
            "code": code_digest(__name__),
        }
        options |= {"device": runtime.device, "precision": params.precision}
        self._load = Once(partial(_load, runtime.engine.share(folder), **options))

    def draw(self, captions: Sequence[str], positions: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures (sets, positions, H, W, 3) of a caption a set, batch by batch, each from its own noise."""
        runtime, step = self._subject.runtime, self._subject.params.sets_per_batch
        made_from = {**self._made_from, "captions": list(captions), "positions": positions}
        folder = folder_of(runtime.work / self._name, made_from)
        painting = _Painting(self._load, seeds.derive(self._subject.params.seed, self._name))
        jobs = (
            _Painted(folder / f"from-{start:06}.npy", start, captions[start : start + step], positions)
            for start in range(0, len(captions), step)
        )
        about = f"{self._subject.name}, {self._name}"
        with (
            progress(len(captions) * positions, about, unit="images") as advance,
            closing(keep_drawn(runtime.engine, painting, jobs, advance)) as batches,
        ):
            for job, _ in batches:
                pictures = np.load(job.path, allow_pickle=False)
                yield pictures.reshape(len(job.captions), positions, *pictures.shape[1:])


def _load(found: Callable[[], Path], **options: Any) -> StableDiffusion:
    return StableDiffusion(found(), **options)


@dataclass(frozen=True)
class _Painted:
    """Pictures of some captions."""

    path: Path
    start: int
    """Captions before these."""
    captions: Sequence[str]
    positions: int

    @property
    def images(self) -> int:
        return len(self.captions) * self.positions

    def work(self) -> _Painted:
        return self


@dataclass(frozen=True)
class _Painting:
    """Draws what captions say, on this machine or, pickled, on another."""

    load: Callable[[], StableDiffusion]
    seed: int

    def begin(self, job: _Painted, advance: Advance) -> tuple[NDArray[np.uint8], float]:
        base, started = self.load(), time.perf_counter()
        numbers = range(job.start * job.positions, job.start * job.positions + job.images)
        noise = seeds.normal(base.latent_shape, *(seeds.generator(self.seed, number) for number in numbers))
        latents = base.denoise(noise, base.embed(job.captions).repeat_interleave(job.positions, dim=0))
        pictures: NDArray[np.uint8] = base.decode(latents).cpu().numpy()  # (captions * positions, H, W, 3)
        advance(job.images)
        return pictures, time.perf_counter() - started

    def finish(self, job: _Painted, begun: tuple[NDArray[np.uint8], float]) -> tuple[NDArray[np.uint8], float]:
        return begun
