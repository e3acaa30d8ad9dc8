"""Brings the pipeline up to date on this machine, independent stages side by side: what `make repro` runs.

`dvc repro` does the same one stage after another. Here, too, each stage is DVC's: what is stale, what is restored from
its cache and what is recorded is the same. One stage of a small model leaves much of two cores idle, in its imports,
while it reads and writes, and where its threads wait for each other.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from os import environ
from pathlib import Path

from flows.board import LOGS, Board
from flows.graph import Stage, in_turn, read_graph, stages_at_once
from flows.stage import Children, StageError, Verdict, run_stage
from flows.workplace import Workplace
from m2m.errors import UserError

SO_FAR = Path("reports/so-far.html")


def bring_up_to_date(checkout: Path, at_once: int | None) -> None:
    """Runs what is stale, each stage when those that it depends on are done, and shows it (`flows.board`).

    Args:
        at_once: how many stages that compute (`meta: {slot: gpu}`) may run at a time; None: what suits the machine.

    Raises:
        UserError: a stage failed. Those that ran beside it were finished, no other one was begun.
    """
    stages = read_graph(checkout)
    stale = Workplace(folder=checkout, main=checkout).find_stale(stages)
    print(f"{len(stages) - len(stale)} of {len(stages)} stages are up to date", flush=True)
    if not stale:
        return
    children, room = Children(), at_once or stages_at_once()
    board = Board(checkout / LOGS, [one.name for one in stages if one.name in stale], room, bars=_can_move())

    def run(stage: Stage) -> Verdict:
        board.begins(stage.name)
        verdict = None
        try:
            verdict = run_stage(
                stage.name, checkout, children=children, env=environ, force=False, say=partial(board.line, stage.name)
            )
        finally:
            board.ends(stage.name, verdict)
        if verdict is not Verdict.SKIPPED:
            _show_so_far(stage, checkout, board, children)
        return verdict

    with _ended_on_signals(children), board.shown():
        for _ in side_by_side(stages, stale, room, run):
            pass


def _show_so_far(ended: Stage, checkout: Path, board: Board, children: Children) -> None:
    """Writes the report of what is evaluated already, until the whole one takes its place."""
    if ended.name == "report":
        (checkout / SO_FAR).unlink(missing_ok=True)
    elif ended.shown:
        to_come = [word for stage in board.left() for word in ("--to-come", stage)]
        command = [sys.executable, "-m", "m2m.cli", "report", "--out", str(SO_FAR), *to_come]
        said = [""]
        code = children.run(command, cwd=checkout, env=environ, say=said.append)
        # The whole report has its own say: a failure here stops nothing.
        board.tell(f"no report so far: {said[-1] or code}" if code else f"the report so far: {SO_FAR}")


def side_by_side(
    stages: Sequence[Stage], stale: Collection[str], at_once: int, run: Callable[[Stage], Verdict]
) -> Iterator[tuple[Stage, Verdict]]:
    """Runs the stale ones of the stages in threads, as `in_turn` lets them begin; gives each as it ends.

    Raises:
        UserError: a stage failed; raised when those that run have ended.
    """

    def failed(future: Future[Verdict]) -> bool:
        return isinstance(future.exception(), StageError)

    failures: list[BaseException | None] = []
    with ThreadPoolExecutor(len(stages)) as pool:
        ended = in_turn(
            stages,
            stale,
            room=lambda _: at_once,
            begin=lambda stage: pool.submit(run, stage),
            stops=failed,
            show_soon=at_once > 1,  # on a CPU
        )
        for stage, future in ended:
            if failed(future):
                failures.append(future.exception())
            else:
                yield stage, future.result()
    if failures:
        raise UserError("; ".join(map(str, failures)))


def _can_move() -> bool:
    return sys.stdout.isatty() and environ.get("TERM", "dumb") not in ("dumb", "unknown")


@contextmanager
def _ended_on_signals(children: Children) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal (unless `nohup` has it ignored) end all stages, with what they started."""

    def end(_number: int, _frame: object) -> None:
        children.end_all()
        raise KeyboardInterrupt

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """``python -m flows.side_by_side [--at-once N]``."""
    parser = argparse.ArgumentParser(prog="python -m flows.side_by_side", description=__doc__.partition("\n")[0])
    parser.add_argument("--at-once", type=int, metavar="N", help="stages that compute at a time (a CPU: 2, a GPU: 1)")
    at_once = parser.parse_args().at_once
    if at_once is not None and at_once < 1:
        parser.error(f"--at-once is {at_once}; it must be 1 or more")
    try:
        bring_up_to_date(Path.cwd(), at_once)
    except UserError as error:
        print(f"m2m: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("m2m: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
