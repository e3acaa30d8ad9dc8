"""A call of the pipeline: what it is given, in all the ways that people write it down, and what it keeps to itself."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from threading import RLock
from typing import Any, Self, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from m2m import seeds
from m2m.diffusion.sampler import check_scheduler, guides, restarted
from m2m.models.pose import relative_poses
from m2m.photos import Photo, as_tensor, square

Seed: TypeAlias = SupportsIndex | torch.Generator
Cameras: TypeAlias = npt.NDArray[np.floating] | Tensor  # (n, 3, 4)
OFFLOADING = ("_hf_hook", "_diffusers_hook")
"""What a part of a network has whose weights come and go: a graph would read where they were."""
_COME_AND_GO = RLock()
"""Held by who draws with such networks: their weights would leave while another call computes with them."""
_OF_A_CALL = ("_guidance_scale", "_interrupt")
"""What users of diffusers set on a pipeline to change a call that is under way."""


class ConcurrentPipeline(DiffusionPipeline):
    """Gives each call a copy of the pipeline, with a scheduler of its own: an answer is what it would be alone.

    Schedulers remember predictions, and where they stand; the pipeline's own one is only copied from. Networks are
    shared, which calls do not change. A callback is given the call's copy. Set on that, `_interrupt` (end now) and
    `_guidance_scale` (until the image is drawn) are for this call alone; set on the pipeline, for all under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: set[Self] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OF_A_CALL:
            for call in tuple(self._calls):
                setattr(call, name, value)

    @property
    def guidance_scale(self) -> float:
        """Of the call, or of the last one that began."""
        return float(self._guidance_scale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call is guided at present."""
        return guides(self._guidance_scale)

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of an image: with some schedulers more than were asked for."""
        return int(self._num_timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether the call is to end."""
        return bool(self._interrupt)

    @contextmanager
    def _alone(self, num_inference_steps: int, guidance_scale: float) -> Iterator[tuple[Self, bool]]:
        """The copy that one call works with, and whether the networks' weights stay in place while it does.

        Raises:
            UserError: the scheduler is not for such networks.
        """
        with ExitStack() as turn:
            turn.enter_context(_COME_AND_GO)  # also to look: another call's end takes the hooks off and puts them on
            networks = [part for part in self.components.values() if isinstance(part, nn.Module)]
            parts = [part for network in networks for part in network.modules()]
            in_place = not any(hook in vars(part) for part in parts for hook in OFFLOADING)
            if in_place:
                turn.close()
            call = copy.copy(self)
            call.scheduler = copy.deepcopy(self.scheduler)
            check_scheduler(call.scheduler)
            timesteps = restarted(call.scheduler, num_inference_steps)
            state = {"_guidance_scale": guidance_scale, "_interrupt": False, "_num_timesteps": len(timesteps)}
            call.__dict__.update(state, _calls=set())
            self._calls.add(call)
            self.__dict__.update(state)
            try:
                yield call, in_place
            finally:
                self._calls.remove(call)


def sets_of(images: Iterable[Photo] | Iterable[Iterable[Photo]]) -> tuple[list[list[Photo]], bool]:
    """The sets of given images, and whether they came as a list of sets; else it is one.

    Raises:
        ValueError: it is no list of pictures, nor one of such lists.
    """
    if isinstance(images, str | bytes | PathLike):
        raise ValueError(f"images is a list of pictures, not {_named(images)}; give [PIL.Image.open(path)]")
    if isinstance(images, Image.Image) or getattr(images, "ndim", 0) in (2, 3):
        raise ValueError("images is a list of pictures, not a single one; give [picture]")
    items = _listed(images, "images")
    nested = any(_is_set(item) for item in items)
    if nested and not all(_is_set(item) for item in items):
        raise ValueError("images is a list of pictures or a list of sets of pictures, not of both")
    sets = [_listed(item, f"images[{s}]") for s, item in enumerate(items)] if nested else [items]
    for s, pictures in enumerate(sets):
        for k, picture in enumerate(pictures):
            if not isinstance(picture, Image.Image | np.ndarray | Tensor):
                place = f"images[{s}][{k}]" if nested else f"images[{k}]"
                raise ValueError(f"{place} is {_named(picture)}; give a Pillow image, an array or a tensor")
    return sets, nested


def _listed(items: Any, name: str) -> list[Any]:
    if not isinstance(items, Iterable) or isinstance(items, Mapping):
        raise ValueError(f"{name} is a list of pictures, not {_named(items)}")
    return list(items)


def _named(thing: object) -> str:
    return f"the path {thing!r}" if isinstance(thing, str | bytes | PathLike) else f"of type {type(thing).__name__}"


def _is_set(item: object) -> bool:
    return isinstance(item, list | tuple) or getattr(item, "ndim", 0) >= 4


def pixels_of(sets: Sequence[Sequence[Photo]], size: int) -> list[list[Tensor]]:
    """Each given image as uint8 (3, size, size).

    Raises:
        ValueError: an array is no picture; which one is said.
    """

    def read(photo: Photo, s: int, k: int) -> Tensor:
        try:
            return as_tensor(square(photo, size))
        except ValueError as error:
            raise ValueError(f"given image {k} of set {s}: {error}") from error

    return [[read(photo, s, k) for k, photo in enumerate(pictures)] for s, pictures in enumerate(sets)]


def seeds_of_sets(generator: Seed | Sequence[Seed] | None, sets: int, nested: bool) -> list[int]:
    """The seed of each set: its own, or derived from the one for all.

    Raises:
        ValueError: it is no seed, or there are more or fewer than sets.
    """
    if generator is None:  # from the global generator, as elsewhere: torch.manual_seed decides
        generator = int(torch.randint(2**62, (), device="cpu"))
    if (isinstance(generator, Sequence) and not isinstance(generator, str)) or getattr(generator, "ndim", 0) > 0:
        of_sets = list(cast(Sequence[Seed], generator))
        if len(of_sets) != sets:
            raise ValueError(f"{len(of_sets)} generators for {sets} sets; give one for all, or one a set")
        return [_seed(one) for one in of_sets]
    seed = _seed(generator)
    return [seeds.derive(seed, "set", s) for s in range(sets)] if nested else [seed]


def poses_of_sets(
    cameras: Cameras | Sequence[Cameras] | None,
    given: Sequence[int],
    num_images: int,
    nested: bool,
    *,
    window: int,
    wanted: bool,
) -> list[Tensor] | None:
    """Of each set the poses of its images, relative to the first one that is read: (n, 12).

    Args:
        cameras: of the given images and of those to draw, in this order.
        given: how many images each set has; the last `window` of them are read.
        wanted: the model draws views.

    Raises:
        ValueError: there are none, though wanted, or some, though not, or they are no cameras of these images.
    """
    if cameras is None or not wanted:
        if wanted or cameras is not None:
            raise ValueError(f"this model {'draws views: it needs poses' if wanted else 'knows no poses'}")
        return None
    of_sets = [
        one.detach().cpu() if isinstance(one, Tensor) else torch.from_numpy(np.array(one, np.float64))
        for one in cast(Sequence[Cameras], cameras if nested else [cameras])
    ]
    shapes = [(count + num_images, 3, 4) for count in given]
    if (found := [tuple(one.shape) for one in of_sets]) != shapes:
        raise ValueError(f"poses of the given and the wanted images are {shapes}, not {found}")
    return [relative_poses(one[max(count - window, 0) :]) for one, count in zip(of_sets, given, strict=True)]


def _seed(generator: Seed) -> int:
    if isinstance(generator, torch.Generator):
        return generator.initial_seed()
    try:
        return operator.index(generator)
    except TypeError:
        raise ValueError(f"a seed is an integer or a torch.Generator, not {type(generator).__name__}") from None
