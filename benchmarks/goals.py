"""What the rows should come to."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A bound of a row's ratio, or (`absolute`) of what is ours."""

    bound: float
    least: bool = False
    """Not to be fallen short of; else not to be exceeded."""
    absolute: bool = False

    def gap(self, number: float) -> float:
        """How far a number is on the wrong side, as a share of the bound; 0: it is met."""
        beyond = self.bound - number if self.least else number - self.bound
        return max(0.0, beyond / self.bound)

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:.4g}{' (ours)' if self.absolute else ''}"


GOALS = {
    r"step/\d+px/dino/given=4": Goal(1.03),
    r"step/256px/self/given=4": Goal(1.12),
    r"step/512px/self/given=4": Goal(1.35),
    r"step/512px/self-pooled/given=4": Goal(1.15),
    r"growth/\d+px/dino": Goal(1.25),
    r"cache-(step|count)/\d+px/self(-pooled)?/plain": Goal(1 / 4),
    r"cache-(step|count)/\d+px/self(-pooled)?/guided": Goal(1 / 2.5),
    r"teacher-forcing-count/\d+px/self": Goal(1 / 3),
    r"sampling/\d+px/dino/given=4": Goal(1.1),
    r"cache/\d+px/self/plain": Goal(1 / (0.8 * 4)),
    r"cache/\d+px/self/guided": Goal(1 / (0.8 * 2.5)),
    r"training/64px/(self|dino)": Goal(1.0, least=True),
    r"training/(256|512)px/(self|dino)": Goal(1.3, least=True),
    r"training/\d+px/(self|dino)/wait": Goal(0.02),
    r"training/512px/(self|dino)/rate": Goal(0.4, least=True),
    r"teacher-forcing/\d+px/(self|dino)": Goal(1 / 3),
    r"generation/\d+px": Goal(1.3, least=True),
    r"generation/\d+px/beside-the-network": Goal(0.05),
    r"reading/\d+px": Goal(1.0, least=True),
    r"start/import": Goal(0.3, absolute=True),
    r"start/help": Goal(1.0, absolute=True),
    r"start/repro": Goal(5.0, absolute=True),
}


def goal_of(name: str) -> Goal | None:
    return next((goal for pattern, goal in GOALS.items() if re.fullmatch(pattern, name)), None)
