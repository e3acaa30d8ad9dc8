"""A state comes back to the bit, and at no moment of a save is there less than one good checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from m2m.errors import UserError
from m2m.training import checkpoints as module
from m2m.training.checkpoints import Checkpoints
from m2m.training.state import Curve, Ema, Point, TrainState


def new_state(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    return TrainState(network=network, optimizers=(optimizer,), ema=Ema(network, decay=0.9))


def advance(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(state.images_seen))
        (state.network(inputs) - inputs.roll(1, 1)).square().mean().backward()
        state.step()
        state.images_seen += 16


def same(one: TrainState, other: TrainState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        and one.counters() == other.counters()
    )


def test_a_state_that_was_saved_and_loaded_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = new_state()
    advance(whole, 5)
    whole.curve = Curve(points=[Point(16, 1 / 3, 0.1, 1e-5, 0.7)], since=[(0.1, 0.2), (1 / 7, 1e-9)])
    checkpoints = Checkpoints(tmp_path / "work")
    checkpoints.save(whole)

    resumed = new_state(seed=1)
    folder = checkpoints.latest()
    assert folder is not None
    resumed.load(folder)
    assert same(whole, resumed)
    assert len(whole.tensors()) == 4 + 4 + 3 * 4  # weights, averages, and step and two moments a parameter
    advance(whole, 3)
    advance(resumed, 3)
    assert same(whole, resumed)


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path), new_state()
    for _ in range(3):
        advance(state, 1)
        checkpoints.save(state)
    assert [folder.name for folder in tmp_path.iterdir()] == ["000000000048"]


def test_the_checkpoints_of_another_run_are_neither_taken_nor_removed(tmp_path: Path) -> None:
    parameters = {"learning_rate": 1e-3, "manifest": "abc"}
    other, mine = Checkpoints.of(tmp_path, parameters), Checkpoints.of(tmp_path, {**parameters, "manifest": "abd"})
    state = new_state()
    advance(state, 1)
    other.save(state)
    assert mine.latest() is None
    assert mine.of_other_runs() == [other.folder]
    mine.save(state)
    mine.clear()
    assert Checkpoints.of(tmp_path, dict(reversed(parameters.items()))).latest() == other.folder / "000000000016"


def test_the_key_for_the_tracker_outlives_a_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "work")
    assert checkpoints.tracking_key is None
    checkpoints.keep_tracking_key("run-1")
    checkpoints.save(new_state())
    assert checkpoints.tracking_key == "run-1"


@pytest.mark.parametrize("moment", ["file_digest", "write_atomically", "shutil.rmtree"])
def test_a_kill_while_saving_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoints, state = Checkpoints(tmp_path), new_state()
    advance(state, 1)
    checkpoints.save(state)
    advance(state, 1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{module.__name__}.{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(state)
    found = checkpoints.latest()
    assert found is not None
    new_state().load(found)
    checkpoints.save(state)
    assert [folder.name for folder in tmp_path.iterdir()] == ["000000000032"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path), new_state()
    advance(state, 1)
    checkpoints.save(state)
    tensors = tmp_path / "000000000016" / "state.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(UserError, match=r"state\.safetensors: damaged"):
        checkpoints.latest()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"state.json": 1}', b"[" * 100000])
def test_a_damaged_seal_is_named(tmp_path: Path, content: bytes) -> None:
    checkpoints, state = Checkpoints(tmp_path), new_state()
    advance(state, 1)
    checkpoints.save(state)
    (tmp_path / "000000000016" / "seal.json").write_bytes(content)
    with pytest.raises(UserError, match="damaged, its SHA-256"):
        checkpoints.latest()
