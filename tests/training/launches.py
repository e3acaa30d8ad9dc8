"""Trains in processes that are really killed; `test_resume.py` calls it with launches of the train stage in JSON.

It imports everything once and then forks a process for every rank of every launch, which is quick. Torch is told to use
one thread: a process with running threads could not be forked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from m2m.params import TrainCommon, TrainVariant
from m2m.runtime import Runtime
from m2m.stages import train as stage
from m2m.store import LocalStore
from m2m.training import loop, run, state


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(moment: str, counter: Path) -> None:
    """Notes the steps in a file, and kills the process at a moment: ``step 3``, ``saving 72`` or ``replacing 72``."""
    event, _, at = moment.partition(" ")
    save, remove = state.TrainState.save, LocalStore.remove

    def counted(*arguments: Any) -> Iterator[int]:
        for step in loop.train_steps(*arguments):
            with counter.open("a") as file:
                file.write(f"{step}\n")
            if event == "step" and step == int(at):
                die()
            yield step

    def half_saved(moment: state.TrainState, path: Path) -> None:
        save(moment, path)
        if event == "saving" and moment.images_seen == int(at):
            path.write_bytes(b"half")
            die()

    def not_removed(store: LocalStore, key: str) -> None:
        if event == "replacing" and any(f"/{int(at):012}." in other for other, _ in store.objects("checkpoints/")):
            die()
        remove(store, key)

    run.train_steps = counted
    state.TrainState.save = half_saved
    LocalStore.remove = not_removed


def work(launch: dict[str, Any], rank: int, port: int) -> None:
    """One rank of one launch."""
    out = Path(launch["out"])
    if launch["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(launch["ranks"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dies = rank == launch.get("victim", 0)
    arrange(launch.get("killed", "") if dies else "", out / "steps" if rank == 0 else Path(os.devnull))
    stage.run(
        TrainCommon.model_validate(launch["common"]),
        launch["variant"],
        TrainVariant.model_validate(launch["params"]),
        manifest=Path(launch["manifest"]),
        foundation=Path(launch["foundation"]),
        out=out / "model",
        curve=out / "curve.csv",
        runtime=Runtime(store=LocalStore(out / "store"), work=out / "work"),
    )


def carry_out(launch: dict[str, Any]) -> dict[str, Any]:
    """Starts the ranks; if one is killed, ends the others, as torchrun does. Tells how they ended and what was done."""
    out = Path(launch["out"])
    shutil.copytree(launch["store"], out / "store", dirs_exist_ok=True)
    (out / "steps").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(launch["ranks"]):
        child = os.fork()
        if child == 0:
            try:
                work(launch, rank, port)
            except BaseException as error:
                print(f"{out} rank {rank}: {error!r}", file=sys.stderr, flush=True)
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
        "steps": [int(line) for line in (out / "steps").read_text().split()],
        "checkpoints": [path.name for path in out.glob("store/checkpoints/*/*/*")],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    run.PREVIEW_STEPS = 2  # nobody looks at them here
    print(json.dumps([carry_out(launch) for launch in json.load(sys.stdin)]))
