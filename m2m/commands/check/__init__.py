"""``m2m check``: is this machine ready for a profile? A table of what is there, and of what to do about the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m2m.commands.check import machine, profile
from m2m.commands.check.profile import Hint, Need
from m2m.errors import UserError
from m2m.params import Cc12mCaptions, FolderProcedures, FolderViews, HubFoundation
from m2m.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing of the table."""

    name: str
    state: Literal["ok", "TO DO", "optional"]
    what: str
    to_do: str = ""

    def __str__(self) -> str:
        return f"{self.name:<10}  {self.state:<8}  {self.what:<64}  {self.to_do}".rstrip()


def run(settings: Settings, *, checkout: Path, foundation: Path, need: Need | None = None) -> Iterator[Row]:
    """Looks at one thing after the other; nothing is changed but for a trial object in the store, which is removed.

    It takes less than ten seconds: what waits for a disk or a server does so beside the rest, and not for longer.

    Args:
        checkout: folder with ``constraints.txt``, datasets and models.
        foundation: folder with the foundation's models.
        need: of a profile, for what only some ask for.
    """
    with ThreadPoolExecutor() as pool:
        store = pool.submit(machine.store, settings, need)
        looks: dict[str, Callable[[], str | Hint]] = {
            "python": machine.python,
            "packages": lambda: machine.packages(checkout / "constraints.txt", settings),
            "disk": lambda: machine.disk(checkout, settings, foundation, need),
            "device": lambda: machine.device(settings),
        }
        if need and isinstance(published := need.params.foundation, HubFoundation):
            weights = pool.submit(
                profile.weights, published, settings, foundation, need.fetch, lambda: store.exception() is None
            )
            looks |= {"gpus": lambda: profile.gpus(settings, need), "weights": weights.result}
        else:
            looks["foundation"] = lambda: machine.foundation(foundation)
        if need and isinstance(captions := need.params.captions, Cc12mCaptions):
            looks["captions"] = lambda: profile.captions(captions)
        if need and isinstance(views := need.params.views, FolderViews):
            looks["views"] = lambda: profile.views(views)
        if need and isinstance(procedures := need.params.procedures, FolderProcedures):
            looks["procedures"] = lambda: profile.procedures(procedures)
        import torch  # noqa: F401  # here, before MLflow imports in another thread what both stand on

        looks |= {"store": store.result, "tracking": pool.submit(machine.tracking, settings).result}
        for name, look in looks.items():
            row = _row(name, look)
            yield row
        if row.state == "TO DO":  # tracking
            text = "not looked at: only tracking tells which libraries made them"
            yield Row(name="outputs", state="optional", what=text)
        else:
            yield _row("outputs", lambda: machine.outputs(settings, checkout))


def _row(name: str, look: Callable[[], str | Hint]) -> Row:
    try:
        found = look()
    except UserError as error:
        what, _, to_do = str(error).partition("; ")
        return Row(name=name, state="TO DO", what=what, to_do=to_do)
    if isinstance(found, Hint):
        return Row(name=name, state="optional", what=found.what, to_do=found.to_do)
    return Row(name=name, state="ok", what=found)
