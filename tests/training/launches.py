"""Trains in processes that are really killed; `test_resume.py` calls it with a plan in JSON.

It imports everything once and then forks a process for every rank of every launch, which is quick. Torch is told to use one
thread: a process with running threads could not be forked.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from m2m.params import TrainCommon, TrainVariant
from m2m.stages import train as stage
from m2m.store import LocalStore
from m2m.tracking import NullTracker
from m2m.training import checkpoints, loop, session


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(moment: str | None, counter: Path) -> None:
    """Counts the steps in a file, and has the process killed at a moment: ``step 3``, ``saving 128``, ``replacing 128``."""
    event, _, at = (moment or "").partition(" ")
    save, remove = checkpoints.TrainState.save, checkpoints.shutil.rmtree

    def counted(*arguments: Any) -> Iterator[int]:
        for step in loop.train_steps(*arguments):
            with counter.open("a") as file:
                file.write(f"{step}\n")
            if event == "step" and step == int(at):
                die()
            yield step

    def half_saved(state: checkpoints.TrainState, folder: Path) -> None:
        save(state, folder)
        if event == "saving" and state.images_seen == int(at):
            (folder / "state.safetensors").write_bytes(b"half")
            die()

    def not_removed(path: Path, *arguments: Any, **options: Any) -> None:
        if event == "replacing" and (path.parent / f"{int(at):012}").exists():
            die()
        remove(path, *arguments, **options)

    session.train_steps = counted
    checkpoints.TrainState.save = half_saved
    checkpoints.shutil.rmtree = not_removed


def work(plan: dict[str, Any], launch: dict[str, Any], rank: int, port: int) -> None:
    """One rank of one launch."""
    out = Path(launch["out"])
    if launch["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(launch["ranks"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    counter = out / f"steps-{rank}" if rank == 0 else Path(os.devnull)
    arrange_death(launch.get("killed") if rank == launch.get("victim", 0) else None, counter)
    stage.run(
        TrainCommon.model_validate(plan["common"]),
        plan["variant"],
        TrainVariant.model_validate(plan["params"]),
        manifest=Path(plan["manifest"]),
        foundation=Path(plan["foundation"]),
        out=out / "model",
        curve=out / "curve.csv",
        work=out / "work",
        store=LocalStore(Path(plan["store"])),
        tracker=NullTracker(),
        device="cpu",
    )


def carry_out(plan: dict[str, Any], launch: dict[str, Any]) -> dict[str, Any]:
    """Starts the ranks; when one is killed ends the others, as torchrun does. Tells how they ended and what was done."""
    out = Path(launch["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "steps-0").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(launch["ranks"]):
        child = os.fork()
        if child == 0:
            try:
                work(plan, launch, rank, port)
            except BaseException as error:
                print(f"rank {rank}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] == -signal.SIGKILL:
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGTERM)
    return {
        "codes": [codes[child] for child in children],
        "steps": [int(line) for line in (out / "steps-0").read_text().split()],
        "checkpoints": sorted(path.name for path in out.glob("work/*/*/[0-9]*")),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    the_plan = json.loads(sys.argv[1])
    print(json.dumps([carry_out(the_plan, launch) for launch in the_plan["launches"]]))
