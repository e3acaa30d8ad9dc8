"""The graph of stages, read from DVC: nothing of it is written a second time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from m2m.errors import UserError

GROUP = "@"
"""Parts a stage's name from its item's: ``train@self``."""


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
    with opened(checkout) as repo:
        graph = repo.index.graph  # an edge goes from a stage to one that it depends on
        return [
            Stage(
                name=_name(node),
                description=node.desc or "",
                parents=tuple(sorted(map(_name, graph.successors(node)))),
                slot=(node.meta or {}).get("slot"),
                alone=bool((node.meta or {}).get("alone")),
            )
            for node in _upstream_first(graph)
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
    other_items = {
        stage.name
        for stage in stages
        if items is not None and stage.item is not None and not set(stage.item.split("-")) & set(items)
    }
    dropped = with_descendants(stages, other_items)
    wanted = {stage.name for stage in stages if not targets or stage.matches(targets)} - dropped
    if not wanted:
        raise UserError(f"nothing is left to run of {', '.join(sorted(targets)) or 'the pipeline'}")
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.parents)
    return [stage for stage in stages if stage.name in wanted]


def _upstream_first(graph: Any) -> Iterator[Any]:
    from networkx import lexicographical_topological_sort

    yield from lexicographical_topological_sort(graph.reverse(copy=True), key=_name)


def _name(node: Any) -> str:
    return str(getattr(node, "name", None) or node.addressing)
