"""What a launcher sets in the environment, and what was left over of it."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from m2m.errors import UserError
from m2m.training import ranks
from m2m.training.ranks import Ranks, joined_ranks

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
ALONE = Ranks(rank=0, count=1, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "left",
    [{}, {"RANK": "3"}, {"WORLD_SIZE": "8"}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"}],
)
def test_one_process_needs_no_other(monkeypatch: pytest.MonkeyPatch, left: dict[str, str]) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with joined_ranks("cpu") as joined:
        assert joined == ALONE
        assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR expected"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT expected"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "a number below"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "a number below"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "a number below"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "a number below"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch, left: dict[str, str], words: str) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as refused, joined_ranks("cpu"):
        pass
    assert len(str(refused.value).splitlines()) == 1
    assert f"RANK is {left['RANK']!r} and WORLD_SIZE is {left['WORLD_SIZE']!r}" in str(refused.value)
    assert "unset both to train in this process alone" in str(refused.value)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setattr(ranks, "JOIN_PATIENCE", timedelta(seconds=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    left = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="did not come together") as refused, joined_ranks("cpu"):
        pass
    assert len(str(refused.value).splitlines()) == 1
    assert not dist.is_initialized()
