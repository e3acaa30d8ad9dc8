"""The steps of training: they learn, and what should not matter to the result does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m2m.data.dataset import ImageSets, TrainingOrder
from m2m.errors import UserError
from m2m.manifest import Manifest
from m2m.params import TrainCommon, TrainVariant
from m2m.store import LocalStore
from m2m.tracking import NullTracker
from m2m.training.checkpoints import Checkpoints
from m2m.training.loop import Batches, made_ahead, train_steps
from m2m.training.loss import SetLoss
from m2m.training.ranks import Ranks
from m2m.training.run import HeldOut, start_or_resume, train
from m2m.training.start import from_stable_diffusion as start
from m2m.training.state import TrainState
from m2m.workers import ALONE, Workers
from tests.training.in_memory import InMemory

CPU = torch.device("cpu")
Made = Callable[..., tuple[TrainState, Batches]]


def checkpoints_in(folder: Path) -> Checkpoints:
    return Checkpoints(LocalStore(folder), "train-self", "this", folder)


@pytest.fixture
def make(
    dataset: Any,
    foundation: Path,
    make_common: Callable[..., TrainCommon],
    make_variant: Callable[..., TrainVariant],
    tmp_path: Path,
) -> Made:
    """A state before the first step, and a batches, with changes of the parameters and of the sets."""

    def call(
        name: Any = "self",
        *,
        sets: Any = None,
        params: dict[str, Any] | None = None,
        device: torch.device = CPU,
        **changes: Any,
    ) -> tuple[TrainState, Batches]:
        common = make_common(**changes)
        pipeline = start(foundation, name, common).to(device)
        manifest = Manifest.read(dataset.manifest)
        batches = Batches(
            sets=ImageSets(dataset.store, manifest, "train") if sets is None else sets,
            images_per_set=manifest.images_per_set,
            loss=SetLoss(pipeline, common, device=device),
            variant=make_variant(**params or {}),
        )
        return start_or_resume(pipeline.unet, batches, checkpoints_in(tmp_path / "none")), batches

    return call


def weights_after(state: TrainState, batches: Batches, workers: Workers = ALONE) -> dict[str, torch.Tensor]:
    for _ in train_steps(state, batches, Ranks(), workers):
        pass
    return {name: tensor.clone() for name, tensor in state.network.state_dict().items()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self", "dino"])
def test_it_learns_a_set_by_heart(make: Made, name: str) -> None:
    params = {"images": 4 * 4 * 30, "sets_per_step": 4, "learning_rate": 5e-3}
    state, batches = make(name, sets=InMemory([make()[1].sets[0]]), params=params, guidance_dropout=0.0)
    weights_after(state, batches)
    state.curve.settle(Ranks())
    losses = [loss for loss, _ in state.curve.since]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert state.images_seen == 480


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(make: Made) -> None:
    params = {"images": 48}
    whole = weights_after(*make(params=params))
    assert furthest(whole, weights_after(*make(params=params, gradient_accumulation=4))) < 1e-4
    assert furthest(whole, weights_after(*make(params={**params, "learning_rate": 2e-3}))) > 1e-3


def test_a_step_keeps_as_many_given_images_on_every_rank_and_not_always_as_many(make: Made) -> None:
    _, batches = make(set_size=5, max_context=3)
    kept = [batches.examples(step, range(1)).given for step in range(12)]
    assert set(kept) == {1, 2}
    assert kept == [batches.examples(step, range(2, 4)).given for step in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self", "dino"])
def test_workers_change_no_bit(make: Made, name: str) -> None:
    changes = {"params": {"images": 48}, "gradient_accumulation": 4}
    alone, shared = make(name, **changes), make(name, **changes)
    assert furthest(weights_after(*alone), weights_after(*shared, Workers(3))) == 0
    for state, _ in (alone, shared):
        state.curve.settle(Ranks())
    assert alone[0].curve.since == shared[0].curve.since


@pytest.mark.parametrize("name", ["self", "dino"])
@pytest.mark.slow
def test_checkpointed_activations_change_nothing(make: Made, name: str) -> None:
    params = {"images": 32}
    state, batches = make(name, params=params)
    state.network.enable_gradient_checkpointing()
    assert furthest(weights_after(state, batches), weights_after(*make(name, params=params))) < 1e-6


def test_frozen_parts_stay_as_they_are(make: Made) -> None:
    state, batches = make(params={"images": 32})
    state.network.conv_in.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    after = weights_after(state, batches)
    frozen = {name for name in before if name.startswith("conv_in.")}
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert all(torch.equal(state.ema.tensors[name], before[name]) for name in frozen)
    assert not torch.equal(after["conv_out.weight"], before["conv_out.weight"])


def test_a_rank_gets_its_part_of_the_global_batch(make: Made) -> None:
    _, batches = make()
    whole = batches.examples(3, range(4))
    parts = [batches.examples(3, Ranks(rank=rank, count=2).share(4)) for rank in (0, 1)]
    assert whole.lengths == parts[0].lengths + parts[1].lengths
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, torch.cat([part.tensors()[name] for part in parts]))
    assert not torch.equal(whole.noise[0], batches.examples(4, range(4)).noise[0])


def test_the_last_step_may_go_beyond_the_images_asked_for(make: Made) -> None:
    state, batches = make(params={"images": 33})
    assert list(train_steps(state, batches, Ranks())) == [0, 1, 2]
    assert state.images_seen == 48


def test_sets_that_cannot_be_divided_are_refused(make: Made) -> None:
    state, batches = make(params={"sets_per_step": 6}, gradient_accumulation=4)
    with pytest.raises(UserError, match=r"sets_per_step is 6; .* \(1\) times gradient_accumulation \(4\)"):
        next(train_steps(state, batches, Ranks()))


@pytest.mark.parametrize("changes", [{"set_size": 6}, {"sets": []}])
def test_a_dataset_that_is_too_small_is_refused(make: Made, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot train with"):
        make(**changes)


def with_absurd(sets: ImageSets, bad: int) -> InMemory:
    """The same sets, of which one has latents that are absurd, if finite."""
    changed = InMemory(sets[index] for index in range(len(sets)))
    assert changed[bad].latents is not None
    changed[bad] = replace(changed[bad], latents=changed[bad].latents * np.float32(1e30))
    changed.counts = sets.counts
    return changed


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(make: Made, tmp_path: Path) -> None:
    state, batches = make()
    bad = batches.order.step(4)[2][0]
    first = next(step for step in range(12) if bad in [index for index, _ in batches.order.step(step)])
    # Without swaps no other set sees the bad one.
    state, batches = make(
        sets=with_absurd(batches.sets, bad), params={"images": 320}, checkpoint_every=16, context_swap=0.0
    )
    checkpoints = checkpoints_in(tmp_path)
    with NullTracker().run("train-self", stage="train", tags={}) as record, pytest.raises(UserError) as caught:
        train("train-self", state, batches, Ranks(), None, checkpoints, record)
    assert f"(step {first + 1}), in the sets train-{bad:03};" in str(caught.value)
    kept = checkpoints.latest()
    assert (int(kept.name.partition(".")[0]) if kept else 0) == 16 * first


def test_the_held_out_loss_is_that_of_the_averages_and_always_from_the_same_draws(
    make: Made, dataset: Any, foundation: Path
) -> None:
    state, batches = make(params={"images": 48})
    manifest = Manifest.read(dataset.manifest)
    pipeline = start(foundation, "self", batches.loss.common)
    pipeline.register_modules(unet=state.network)
    held_out = HeldOut(pipeline, batches.loss, ImageSets(dataset.store, manifest, "validation"))
    before = held_out.loss(state.ema)
    assert before == held_out.loss(state.ema)
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(1)
    assert held_out.loss(state.ema) == before
    state.ema.update()
    assert held_out.loss(state.ema) != before


@pytest.mark.slow  # it compiles
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own doing
def test_what_is_held_out_makes_no_graphs(make: Made, dataset: Any, foundation: Path) -> None:
    state, batches = make(params={"images": 48})
    pipeline = start(foundation, "self", batches.loss.common)
    pipeline.register_modules(unet=state.network)
    sets = ImageSets(dataset.store, Manifest.read(dataset.manifest), "validation")
    held_out = HeldOut(pipeline, batches.loss, sets)
    expected, compiled = held_out.loss(state.ema), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    pipeline.unet.compile_repeated_blocks(backend=backend)
    assert held_out.loss(state.ema) == expected
    held_out.previews(state.ema)
    assert not compiled
    with torch.no_grad():
        batches.loss(state.network, batches.examples(0, range(1)))
    assert compiled  # it would have been
    torch.compiler.reset()


def test_what_reads_the_context_learns_at_its_own_rate(make: Made) -> None:
    def moved(**rates: float) -> dict[str, float]:
        state, batches = make(params={"images": 16, **rates})
        before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
        after = weights_after(state, batches)
        return {name: (after[name] - before[name]).abs().max().item() for name in before}

    slow, fast = moved(context_learning_rate=1e-3), moved(context_learning_rate=1e-2)
    for name in slow:
        ratio = fast[name] / slow[name] if slow[name] else 1.0
        reads = any(f"attn2.{part}" in name for part in ("to_k", "to_v", "slot_embedding"))
        assert 5 < ratio < 15 if reads and slow[name] else 0.5 < ratio < 2, (name, ratio)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["self", "dino"])
def test_a_step_waits_for_nothing_of_a_gpu(make: Made, name: str) -> None:
    device = torch.device("cuda")
    state, batches = make(name, device=device, precision="bfloat16")
    steps = train_steps(state, batches, Ranks(device=device))
    try:
        for _ in range(3):
            next(steps)
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
        steps.close()  # type: ignore[attr-defined]
    state.curve.settle(Ranks(device=device))
    assert len(state.curve.since) == 3


def test_shards_are_fetched_ahead_and_what_fails_is_told_at_its_own_step() -> None:
    order, asked = TrainingOrder([2] * 40, seed=0, sets_per_step=4), list[int]()
    bad = order.step(18)[1][0]

    def stored(index: int) -> None:
        asked.append(index)
        if index == bad:
            raise UserError("a damaged shard")

    def examples(step: int, places: range) -> int:
        mine = [index for index, _ in order.step(step)[places.start : places.stop]]
        if bad in mine:
            stored(bad)
        return step

    batches: Any = SimpleNamespace(
        order=order,
        sets=SimpleNamespace(stored=stored),
        examples=examples,
        loss=SimpleNamespace(common=SimpleNamespace(context_swap=0.0)),
    )
    # The other rank's places are nobody's business here.
    own = [{index for index, _ in order.step(step)[:2]} for step in range(20)]
    taken = []

    def take() -> None:
        with made_ahead(batches, range(20), range(2), pinned=False) as made:
            for step in made:
                taken.append(step)
                while step == 0 and not set.union(*own[:16]) <= {*asked}:
                    sleep(0.01)

    with pytest.raises(UserError, match="a damaged shard"):
        take()
    assert {*asked} <= set.union(*own)
    assert taken == list(range(18))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shards")]
