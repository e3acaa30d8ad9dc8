"""The graph of stages, read from DVC, and what of it may run beside what: nothing of both is written a second time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from graphlib import TopologicalSorter
from os import cpu_count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from dvc.repo import Repo

from m2m.errors import UserError
from m2m.settings import Settings

GROUP = "@"
"""Parts a stage's name from its item's: ``train@self``."""
ON_A_CPU = 2
"""Stages at a time. A GPU has room for one."""
ROOM_ASKED_EVERY = 2.0
"""Seconds between two looks at how much room there is, while a stage waits for it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of dvc.yaml, one item of it where there are several."""

    name: str
    description: str
    parents: tuple[str, ...]
    """The stages whose outputs it takes."""
    slot: str | None
    """The global concurrency limit of which it needs a slot: `meta: {slot: gpu}` in dvc.yaml."""
    alone: bool
    """It needs all of them, since it measures time: `meta: {alone: true}`."""
    shown: bool = False
    """Its part of the report is written when it ends: `meta: {shown: true}`."""

    @property
    def group(self) -> str:
        """What stands before the @ of its name."""
        return self.name.partition(GROUP)[0]

    @property
    def item(self) -> str | None:
        """What stands behind the @ of its name."""
        return self.name.partition(GROUP)[2] or None

    def matches(self, targets: Collection[str]) -> bool:
        """Whether one of the targets names it, or all of its group."""
        return self.name in targets or self.group in targets


def read_graph(checkout: Path) -> list[Stage]:
    """All stages, each after those that it depends on.

    Raises:
        UserError: dvc.yaml cannot be read.
    """
    from networkx import lexicographical_topological_sort

    with opened(checkout) as repo:
        graph = repo.index.graph  # an edge goes from a stage to one that it depends on
        return [
            Stage(
                name=_name(node),
                description=node.desc or "",
                parents=tuple(sorted(map(_name, graph.successors(node)))),
                slot=(node.meta or {}).get("slot"),
                alone=bool((node.meta or {}).get("alone")),
                shown=bool((node.meta or {}).get("shown")),
            )
            for node in lexicographical_topological_sort(graph.reverse(copy=True), key=_name)
        ]


@contextmanager
def opened(checkout: Path) -> Iterator[Repo]:
    """A checkout as DVC sees it, in this process: starting DVC takes longer than most that one asks of it.

    Raises:
        UserError: what DVC raises.
    """
    from dvc.exceptions import DvcException

    try:
        with Repo(str(checkout)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"{checkout}: {error}") from error


def with_descendants(stages: Sequence[Stage], names: Collection[str]) -> set[str]:
    """The named ones of `stages`, and all that depend on them."""
    found: set[str] = set()
    for stage in stages:
        if stage.name in names or found & set(stage.parents):
            found.add(stage.name)
    return found


def select(stages: Sequence[Stage], targets: Collection[str], *, items: Collection[str] | None = None) -> list[Stage]:
    """The targets and all that they depend on, in the same order; no targets: everything.

    Args:
        targets: names of stages, ``train@self``, or of all items of one, ``train``.
        items: leave out the stages of other items, and what depends on them.

    Raises:
        UserError: there is no such stage, or a target depends on an item that is left out.
    """
    known = {stage.name for stage in stages} | {stage.group for stage in stages}
    if unknown := sorted(set(targets) - known):
        raise UserError(f"there is no stage {unknown[0]}; dvc.yaml has {', '.join(stage.name for stage in stages)}")
    of_items = {stage.name: set(stage.item.split("-")) for stage in stages if stage.item and items is not None}
    other_items = {name for name, own in of_items.items() if not own & set(items or ())}
    dropped = with_descendants(stages, other_items)
    wanted = {stage.name for stage in stages if not targets or stage.matches(targets)} - dropped
    if not wanted:
        raise UserError(f"nothing is left to run of {', '.join(sorted(targets)) or 'the pipeline'}")
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.parents)
    return [stage for stage in stages if stage.name in wanted]


class Begun(Protocol):
    """What becomes of a stage that was begun: a future of Python's or of Prefect's."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Calls it, in any thread, when the stage has ended."""


Future = TypeVar("Future", bound=Begun)


def in_turn(
    stages: Sequence[Stage],
    stale: Collection[str],
    *,
    room: Callable[[str], int],
    begin: Callable[[Stage], Future],
    stops: Callable[[Future], bool] = lambda _: False,
    show_soon: bool = False,
) -> Iterator[tuple[Stage, Future]]:
    """Begins the stale ones of the stages, each when those that it depends on have ended; gives each as it ends.

    Of those that could begin, one that has something to show (`meta: {shown: true}`) comes first, then the one with the
    longest way to the end. A stage that needs the machine for itself (`meta: {alone: true}`) waits until no other one
    can begin.

    Args:
        room: how many stages that need a slot of this limit may run at a time (`meta: {slot: gpu}`); one always may.
        begin: called in this thread, one stage after the other.
        stops: whether no other stage is to begin after one that ended so.
        show_soon: what the first stage that has something to show does not need waits for it: where all share a few
            cores, it costs little to have something to look at early.
    """
    by_name = {stage.name: stage for stage in stages}
    order = TopologicalSorter({stage.name: stage.parents for stage in stages})
    order.prepare()
    steps_left = {stage.name: 0 for stage in stages}  # of each, how many come after it, one after another
    for stage in reversed(stages):
        for parent in stage.parents:
            steps_left[parent] = max(steps_left[parent], steps_left[stage.name] + 1)
    ended: SimpleQueue[tuple[Stage, Future]] = SimpleQueue()
    could_begin: list[Stage] = []
    running: list[Stage] = []
    stopped, first = False, _shown_first(stages, stale) if show_soon else None
    needed = {stage.name for stage in select(stages, [first])} if first else {*by_name}
    while order.is_active():
        for name in order.get_ready():
            if name in stale:
                could_begin.append(by_name[name])
            else:
                order.done(name)
        could_begin.sort(key=lambda stage: (stage.alone, not stage.shown, -steps_left[stage.name], stage.name))
        for stage in () if stopped else tuple(could_begin):
            if stage.name in needed and _has_room(stage, running, room):
                could_begin.remove(stage)
                running.append(stage)
                begin(stage).add_done_callback(partial(_put, ended, stage))
        if not running:
            if stopped:
                return
            continue
        try:
            stage, future = ended.get(timeout=ROOM_ASKED_EVERY if could_begin and not stopped else None)
        except Empty:
            continue
        running.remove(stage)
        order.done(stage.name)
        stopped = stopped or stops(future)
        if stage.name == first:
            needed = {*by_name}
        yield stage, future


def _shown_first(stages: Sequence[Stage], stale: Collection[str]) -> str | None:
    """Of the stages that have something to show the one before which the fewest are to be run."""
    shown = [stage.name for stage in stages if stage.shown and stage.name in stale]
    before = {name: sum(one.name in stale for one in select(stages, [name])) for name in shown}
    return min(before, key=before.__getitem__, default=None)


def _put(ended: SimpleQueue[tuple[Stage, Future]], stage: Stage, future: Future) -> None:
    ended.put((stage, future))


@cache
def stages_at_once() -> int:
    """How many stages that compute suit this machine; the first call takes torch's import, some seconds."""
    import torch

    device = Settings.from_environment().device
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return min(ON_A_CPU, cpu_count() or 1) if on_cpu else 1


def _has_room(stage: Stage, running: Sequence[Stage], room: Callable[[str], int]) -> bool:
    if stage.alone or any(other.alone for other in running):
        return not running
    computing = sum(other.slot == stage.slot for other in running)
    return stage.slot is None or not computing or computing < room(stage.slot)


def _name(node: Any) -> str:
    return str(getattr(node, "name", None) or node.addressing)
