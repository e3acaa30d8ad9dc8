"""The training loop: a step reads as the paper tells it, and the caller decides what to show and what to save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from m2m.data.sets import ImageSets, batch_order, choose_images
from m2m.data.shards import ImageSet
from m2m.errors import UserError
from m2m.params import TrainVariant
from m2m.training.examples import Examples, made_ahead
from m2m.training.objective import Objective
from m2m.training.ranks import Ranks
from m2m.training.schedule import learning_rate
from m2m.training.state import TrainState
from m2m.workers import ALONE, Workers


@dataclass(frozen=True, eq=False, kw_only=True)
class Course:
    """What a run learns from, in which order and how fast: all of it a function of the step, the same for any rank.

    Raises:
        UserError: there are too few sets, or they are too small.
    """

    sets: ImageSets
    images_per_set: int
    """The most, where sets differ in length."""
    objective: Objective
    variant: TrainVariant
    ordered: bool = False
    """The images of a set have an order, and are shown in it."""

    def __post_init__(self) -> None:
        size = self.objective.common.set_size
        if not len(self.sets) or size > self.images_per_set:
            raise UserError(
                f"cannot train with {size} images of each set on {len(self.sets)} sets of {self.images_per_set}; "
                "make more or larger sets, or lower set_size"
            )

    @property
    def images_per_step(self) -> int:
        return self.variant.sets_per_step * self.objective.common.set_size

    def steps(self, images_seen: int) -> range:
        """The steps that are left; the last one may go beyond the images asked for."""
        return range(images_seen // self.images_per_step, -(-self.variant.images // self.images_per_step))

    def order(self, step: int) -> list[tuple[int, int]]:
        """Which sets make the global batch of a step, and in which epoch each comes up."""
        return batch_order(
            seed=self.objective.common.seed,
            sets=len(self.sets),
            sets_per_step=self.variant.sets_per_step,
            step=step,
        )

    def examples(self, step: int, places: range) -> Examples:
        """The sets at some places of a step's global batch. The draws follow step and place, not the rank that asks.

        Raises:
            UserError: a set cannot be had.
        """
        order = self.order(step)
        strangers = [*order[1:], *self.order(step + 1)[:1]]  # whoever comes next: nothing more is fetched for them
        return Examples.stack(
            [
                self._example(order[place], strangers[place], key=("example", step * self.images_per_step, place))
                for place in places
            ],
            given=self.objective.draws.given(key=("given", step * self.images_per_step)),
        )

    def _example(self, own: tuple[int, int], stranger: tuple[int, int], *, key: Sequence[str | int]) -> Examples:
        image_set, images = self._choose(*own)
        other = None
        if self.objective.common.context_swap > 0:
            other_set, others = self._choose(*stranger)
            other = other_set, tuple(islice(cycle(others), len(images)))
        return self.objective.draws.example(image_set, images, key=key, stranger=other)

    def _choose(self, index: int, epoch: int) -> tuple[ImageSet, tuple[int, ...]]:
        common, image_set = self.objective.common, self.sets[index]
        return image_set, choose_images(
            seed=common.seed,
            index=index,
            epoch=epoch,
            images=len(image_set.images),
            set_size=common.set_size,
            ordered=self.ordered,
        )

    def learning_rate(self, step: int, *, peak: float | None = None) -> float:
        """The rate at the middle of a step, for the weights of the parent or for those with another peak."""
        return learning_rate(
            (step + 0.5) * self.images_per_step,
            peak=self.variant.learning_rate if peak is None else peak,
            warmup_images=self.objective.common.warmup_images,
            images=self.variant.images,
            schedule=self.objective.common.schedule,
        )


def train_steps(state: TrainState, course: Course, ranks: Ranks, workers: Workers = ALONE) -> Iterator[int]:
    """Trains on from where the state is to the end of the course; after each step yields its number, from 0.

    The parts of a step (`gradient_accumulation`) are computed by the workers side by side, where a rank is alone: their
    gradients are added up in order, so that neither changes the other's bits.

    The state changes in place. Nothing here waits for the device: `Curve.settle` does, when the caller wants to know.

    Raises:
        UserError: the sets of a step cannot be divided evenly over ranks and micro-batches; a set cannot be had.
    """
    objective, common = course.objective, course.objective.common
    parts = common.gradient_accumulation
    if course.variant.sets_per_step % (ranks.count * parts):
        raise UserError(
            f"sets_per_step is {course.variant.sets_per_step}; it must be a multiple of the number of processes that "
            f"train ({ranks.count}) times gradient_accumulation ({parts})"
        )
    places = ranks.share(course.variant.sets_per_step)
    learning = [parameter for parameter in state.network.parameters() if parameter.requires_grad]
    network = _data_parallel(state.network, course, ranks)
    side_by_side = workers.count > 1 and ranks.count == 1

    def fetch(step: int) -> Examples:
        examples = course.examples(step, places)
        return examples.pinned() if ranks.device.type == "cuda" else examples

    steps = course.steps(state.images_seen)
    with closing(made_ahead(fetch, steps)) as batches:
        for step, examples in zip(steps, batches, strict=True):
            for group in state.optimizer.param_groups:
                group["lr"] = course.learning_rate(step, peak=group["peak"])
            shares = examples.to(ranks.device).split(parts)
            if side_by_side:
                losses = _gradients(objective, network, shares, learning, workers)
            else:
                losses = _gradients_in_turn(objective, network, shares)
            grad_norm = clip_grad_norm_(learning, common.max_grad_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.ema.update()
            state.images_seen += course.images_per_step
            state.curve.record(images_seen=state.images_seen, losses=torch.cat(losses), grad_norm=grad_norm)
            yield step


def _gradients_in_turn(objective: Objective, network: nn.Module, parts: Sequence[Examples]) -> list[Tensor]:
    """Adds the gradients of the mean loss of all parts to the network's; the losses of each part, (its sets,)."""
    losses: list[Tensor] = []
    for part in parts:
        is_last = len(losses) + 1 == len(parts)
        # Ranks exchange gradients once a step, with those of its last part.
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext():
            loss = objective(network, part)  # (sets of the part,)
            (loss.mean() / len(parts)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses


def _gradients(
    objective: Objective,
    network: nn.Module,
    parts: Sequence[Examples],
    learning: Sequence[nn.Parameter],
    workers: Workers,
) -> list[Tensor]:
    """The same by as many workers as there are, to the bit: no two of them add to one gradient at a time."""

    def compute(part: Examples) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = objective(network, part)
        return loss.detach(), torch.autograd.grad(loss.mean() / len(parts), learning, allow_unused=True)

    losses = []
    for loss, gradients in workers.map(compute, parts):
        for parameter, gradient in zip(learning, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        losses.append(loss)
    return losses


def _data_parallel(network: nn.Module, course: Course, ranks: Ranks) -> nn.Module:
    """The network as the ranks train it: after `backward` each has the gradients of the global batch.

    DDP packs gradients into other messages after a process's first backward pass; sums over three ranks or more then
    round differently. Here that pass is a rehearsal, its gradients dropped: a resumed run rounds as any other.
    """
    if ranks.count == 1:
        return network
    wrapped = DistributedDataParallel(network)
    with torch.compiler.set_stance("force_eager"):  # its one set would be compiled for
        course.objective(wrapped, course.examples(0, range(1)).to(ranks.device)).mean().backward()  # type: ignore[no-untyped-call]
    wrapped.zero_grad(set_to_none=True)
    return wrapped
