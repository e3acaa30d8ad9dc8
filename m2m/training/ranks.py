"""The processes that train together: how many, which one this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from m2m.errors import UserError

CPU: Final = torch.device("cpu")
JOIN_PATIENCE = timedelta(minutes=10)
"""For all processes to come together: many import for minutes, and those of a run that has ended never come."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; the only one unless a launcher started several."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, tracks and shows."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """The places in a global batch of ``items`` that fall to this rank: equal, consecutive parts in rank order."""
        part = items // self.count
        return range(self.rank * part, (self.rank + 1) * part)

    def gather(self, values: Tensor) -> Tensor:
        """Puts the ranks' (n, k) side by side: (n, k x count), in rank order, on every rank."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values)
        return torch.cat(parts, dim=1)

    def from_first(self, value: float) -> float:
        """The first rank's value, on every rank."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return shared.item()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Joins the process group that the environment describes: ``torchrun`` sets RANK and WORLD_SIZE, as others do.

    A group that the caller has already joined, as under Ray's Torch trainer, is used and left open. On ``cuda`` each
    rank takes the card of its number on the machine. One process needs no group, whoever started it.

    Raises:
        UserError: the environment tells of several processes, but not where they meet, or they do not come; so it is
            where a launcher's variables were left over.
    """
    own, joined = torch.device(device), dist.is_initialized()
    if not joined and _launched_count() == 1:
        yield Ranks(device=own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", dist.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(own)
    if not joined:
        try:
            store, rank, count = next(rendezvous("env://", timeout=JOIN_PATIENCE))
        except (ValueError, RuntimeError) as error:
            raise _not_joined(f"the processes did not come together ({str(error).splitlines()[0]})") from error
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield Ranks(rank=dist.get_rank(), count=dist.get_world_size(), device=own)
    finally:
        if not joined:
            dist.destroy_process_group()


def _launched_count() -> int:
    """Of how many processes a launcher says that this is one; 1 without one."""
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if not rank or not count:
        return 1
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise _not_joined("expected a number below that of the processes")
    return int(count)


def _not_joined(reason: str) -> UserError:
    said = " and ".join(f"{name} is {os.environ[name]!r}" for name in ("RANK", "WORLD_SIZE"))
    return UserError(
        f"{said}, as a launcher sets them, but {reason}; unset both to train in this process alone, or start all "
        "processes with torchrun"
    )
