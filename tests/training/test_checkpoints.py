"""A checkpoint lies in the store, whole or not at all, and is known again by the run that it belongs to."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from m2m.errors import UserError
from m2m.store import LocalStore, Store, open_store
from m2m.training.checkpoints import Checkpoints
from m2m.training.state import Ema, TrainState

PARAMETERS = {"learning_rate": 1e-3, "manifest": "abc"}


def state_at(images: int) -> TrainState:
    torch.manual_seed(images)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    network(torch.ones(1, 3)).sum().backward()
    state = TrainState(network=network, optimizers=(optimizer,), ema=Ema(network, decay=0.9), images_seen=images)
    state.step()
    return state


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return open_store(f"{request.getfixturevalue('s3_server').uri}/here", cache=tmp_path / "cache")


@pytest.fixture
def checkpoints(store: Store, tmp_path: Path) -> Checkpoints:
    return Checkpoints.of(store, "train-self", PARAMETERS, work=tmp_path / "work")


def kept(checkpoints: Checkpoints) -> list[int]:
    """Images seen at each checkpoint that the store holds."""
    names = [key.rpartition("/")[2] for key, _ in checkpoints.store.objects("checkpoints/")]
    return [int(name.partition(".")[0]) for name in names if name[0].isdigit()]


def test_only_the_newest_stays_and_any_machine_goes_on_from_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    assert checkpoints.latest() is None
    for images in (16, 32, 48):
        checkpoints.save(state_at(images))
        assert kept(checkpoints) == [images]
    assert not [*(tmp_path / "work").iterdir()]
    elsewhere: Checkpoints = pickle.loads(pickle.dumps(checkpoints))  # noqa: S301  # as a cluster sends it
    path, resumed = elsewhere.latest(), state_at(1)
    assert path is not None
    resumed.load(path)
    assert resumed.counters() == state_at(48).counters()
    assert all(torch.equal(tensor, resumed.tensors()[name]) for name, tensor in state_at(48).tensors().items())
    checkpoints.save(state_at(48))
    assert kept(checkpoints) == [48], "the same once more is the same"


def test_those_of_another_run_are_neither_taken_nor_removed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    other = Checkpoints.of(checkpoints.store, "train-self", {**PARAMETERS, "manifest": "abd"}, work=tmp_path / "work")
    other.save(state_at(16))
    assert checkpoints.latest() is None
    assert checkpoints.of_other_runs() == [other.run]
    checkpoints.save(state_at(32))
    checkpoints.clear()
    assert kept(checkpoints) == [16]
    again = Checkpoints.of(checkpoints.store, "train-self", dict(reversed(PARAMETERS.items())), work=tmp_path)
    assert again == Checkpoints(checkpoints.store, "train-self", checkpoints.run, tmp_path)


def test_the_key_for_the_tracker_outlives_a_save(checkpoints: Checkpoints) -> None:
    assert checkpoints.tracking_key is None
    checkpoints.keep_tracking_key("spool/run 1ä")
    checkpoints.save(state_at(16))
    assert checkpoints.tracking_key == "spool/run 1ä"
    checkpoints.clear()
    assert checkpoints.tracking_key is None


@pytest.mark.parametrize("moment", ["put", "remove"])
def test_a_kill_while_saving_leaves_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    checkpoints = Checkpoints.of(LocalStore(tmp_path / "store"), "train-self", PARAMETERS, work=tmp_path / "work")
    checkpoints.save(state_at(16))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(state_at(32))
    found = checkpoints.latest()
    assert found is not None
    assert int(found.name.partition(".")[0]) == (16 if moment == "put" else 32)
    state_at(0).load(found)
    checkpoints.save(state_at(48))
    assert kept(checkpoints) == [48]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints.of(LocalStore(tmp_path / "store"), "train-self", PARAMETERS, work=tmp_path / "work")
    checkpoints.save(state_at(16))
    (file,) = (tmp_path / "store").rglob("000000000016.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name} in the store .* is damaged; delete it to train") as caught:
        checkpoints.latest()
    assert "\n" not in str(caught.value)
