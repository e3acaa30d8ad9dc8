"""The steps of training: each reads as the paper tells it, and the caller decides what to show and what to save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from m2m.data.dataset import ImageSets, TrainingOrder, choose_images
from m2m.data.sets import StoredSet
from m2m.errors import UserError
from m2m.params import VariantLearning
from m2m.training.loss import Examples, SetLoss
from m2m.training.ranks import Ranks
from m2m.training.state import TrainState, learning_rate
from m2m.workers import ALONE, Workers, in_order, thread_pool

STEPS_AHEAD = 4
"""Batches that are made, or wait for the network."""
MAKERS = 4
"""Threads that make them: one decodes the pictures of about 8 sets of 512 pixels a second, a GPU may ask for more."""
SHARDS_AHEAD = 16
"""Steps before which the shards of a step's sets are fetched, by as many threads as `FETCHING`."""
FETCHING = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Batches:
    """What each step learns from, a function of the step, the same for any rank.

    Raises:
        UserError: there are too few sets, or they are too small.
    """

    sets: ImageSets
    images_per_set: int
    """The most, where sets differ in length."""
    loss: SetLoss
    variant: VariantLearning
    ordered: bool = False
    """The images of a set have an order, and are shown in it."""

    def __post_init__(self) -> None:
        size = self.loss.common.set_size
        if not len(self.sets) or size > self.images_per_set:
            text = f"cannot train with {size} images of each set on {len(self.sets)} sets of {self.images_per_set}"
            raise UserError(f"{text}; make more or larger sets, or lower set_size")

    @property
    def images_per_step(self) -> int:
        return self.variant.sets_per_step * self.loss.common.set_size

    def steps(self, images_seen: int) -> range:
        """The steps that are left; the last one may go beyond the images asked for."""
        return range(images_seen // self.images_per_step, -(-self.variant.images // self.images_per_step))

    @cached_property
    def order(self) -> TrainingOrder:
        """Which sets make the global batch of a step, and in which epoch each comes up."""
        seed = self.loss.common.seed
        return TrainingOrder(self.sets.counts, seed=seed, sets_per_step=self.variant.sets_per_step)

    def examples(self, step: int, places: range) -> Examples:
        """The sets at some places of a step's global batch. The draws follow step and place, not the rank that asks.

        Raises:
            UserError: a set cannot be had.
        """
        order, draws, clock = self.order.step(step), self.loss.draws, step * self.images_per_step
        after = [*order[1:], *self.order.step(step + 1)[:1]]  # whoever comes next: of another rank's the last alone
        examples = []
        for place in places:
            image_set, images = self._choose(*order[place])
            other = None
            if self.loss.common.context_swap > 0:
                other_set, others = self._choose(*after[place])
                other = other_set, tuple(islice(cycle(others), len(images)))
            examples.append(draws.example(image_set, images, key=("example", clock, place), other=other))
        return Examples.stack(examples, given=draws.given(key=("given", clock)))

    def _choose(self, index: int, epoch: int) -> tuple[StoredSet, tuple[int, ...]]:
        common, image_set = self.loss.common, self.sets.stored(index)
        return image_set, choose_images(
            seed=common.seed,
            index=index,
            epoch=epoch,
            images=image_set.count,
            set_size=common.set_size,
            ordered=self.ordered,
        )


def train_steps(state: TrainState, batches: Batches, ranks: Ranks, workers: Workers = ALONE) -> Iterator[int]:
    """Trains on from where the state is to the last batch; after each step yields its number, from 0.

    The parts of a step (`gradient_accumulation`) are computed by the workers side by side, where a rank is alone: their
    gradients are added up in order, so that neither changes the other's bits.

    The state changes in place. Nothing here waits for the device: `Curve.settle` does, when the caller wants to know.

    Raises:
        UserError: the sets of a step cannot be divided evenly over ranks and micro-batches; a set cannot be had.
    """
    loss, common, variant = batches.loss, batches.loss.common, batches.variant
    parts = common.gradient_accumulation
    if variant.sets_per_step % (ranks.count * parts):
        raise UserError(
            f"sets_per_step is {variant.sets_per_step}; it must be a multiple of the number of processes that "
            f"train ({ranks.count}) times gradient_accumulation ({parts})"
        )
    places = ranks.share(variant.sets_per_step)
    learning = [parameter for parameter in state.network.parameters() if parameter.requires_grad]
    network = _data_parallel(state.network, batches, ranks)

    steps = batches.steps(state.images_seen)
    rate = partial(learning_rate, warmup_images=common.warmup_images, images=variant.images, schedule=common.schedule)
    with made_ahead(batches, steps, places, pinned=ranks.device.type == "cuda") as made:
        for step, examples in zip(steps, made, strict=True):
            for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                group["lr"] = rate((step + 0.5) * batches.images_per_step, peak=group["peak"])
            shares = examples.to(ranks.device).split(parts)
            if workers.count > 1 and ranks.count == 1:
                losses = _gradients(loss, network, shares, learning, workers)
            else:
                losses = _gradients_in_turn(loss, network, shares)
            grad_norm = clip_grad_norm_(learning, common.max_grad_norm)
            state.step()
            state.images_seen += batches.images_per_step
            state.curve.record(images_seen=state.images_seen, losses=torch.cat(losses), grad_norm=grad_norm)
            yield step


@contextmanager
def made_ahead(batches: Batches, steps: range, places: range, *, pinned: bool) -> Iterator[Iterator[Examples]]:
    """The examples of each step, made by some threads ahead of need; others fetch shards long before that.

    Raises:
        UserError: when its step comes, a set cannot be had.
    """
    shards, swapped = thread_pool(FETCHING, "shards"), batches.loss.common.context_swap > 0

    def fetch(step: int) -> None:
        if step in steps:
            order = [*batches.order.step(step), *batches.order.step(step + 1)[:1]]
            for index, _ in order[places.start : places.stop + swapped]:
                shards.submit(batches.sets.stored, index)  # what goes wrong is told when the step needs it

    def make(step: int) -> Examples:
        fetch(step + SHARDS_AHEAD)
        examples = batches.examples(step, places)
        return examples.changed(Tensor.pin_memory) if pinned else examples

    try:
        for step in steps[:SHARDS_AHEAD]:
            fetch(step)
        with (
            thread_pool(MAKERS, "examples") as makers,
            closing(in_order(makers, make, steps, ahead=STEPS_AHEAD)) as made,
        ):
            yield made
    finally:
        shards.shutdown(cancel_futures=True)


def _gradients_in_turn(loss: SetLoss, network: nn.Module, parts: Sequence[Examples]) -> list[Tensor]:
    """Adds the gradients of the mean loss of all parts to the network's; the losses of each part, (its sets,)."""
    losses: list[Tensor] = []
    for part in parts:
        is_last = len(losses) + 1 == len(parts)
        # Ranks exchange gradients once a step, with those of its last part.
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext():
            of_sets = loss(network, part)  # (sets of the part,)
            (of_sets.mean() / len(parts)).backward()  # type: ignore[no-untyped-call]
        losses.append(of_sets.detach())
    return losses


def _gradients(
    loss: SetLoss, network: nn.Module, parts: Sequence[Examples], learning: Sequence[nn.Parameter], workers: Workers
) -> list[Tensor]:
    """The same by as many workers as there are, to the bit: no two of them add to one gradient at a time."""

    def compute(part: Examples) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        of_sets = loss(network, part)
        return of_sets.detach(), torch.autograd.grad(of_sets.mean() / len(parts), learning, allow_unused=True)

    losses = []
    for of_sets, gradients in workers.map(compute, parts):
        for parameter, gradient in zip(learning, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        losses.append(of_sets)
    return losses


def _data_parallel(network: nn.Module, batches: Batches, ranks: Ranks) -> nn.Module:
    """The network as the ranks train it: after `backward` each has the gradients of the global batch.

    DDP packs gradients into other messages after a process's first backward pass; sums over three ranks or more then
    round differently. Here that pass is a rehearsal, its gradients dropped: a resumed run rounds as any other.
    """
    if ranks.count == 1:
        return network
    wrapped = DistributedDataParallel(network)
    with torch.compiler.set_stance("force_eager"):  # its one set would be compiled for
        batches.loss(wrapped, batches.examples(0, range(1)).to(ranks.device)).mean().backward()  # type: ignore[no-untyped-call]
    wrapped.zero_grad(set_to_none=True)
    return wrapped
