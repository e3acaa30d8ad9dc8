"""What can be known of a set from the pictures given of it: the bound for all who are not told the caption.

A set was made by an **explanation**: which attributes its caption names, and the values that it names. All pictures
show these; the rest is drawn for each anew, from the combinations that training shows. By Bayes' rule, given pictures
v_1 … v_n that each show a wrong value with a probability of ε leave each explanation (A, m) the odds

    P(A, m | v) ∝ P(A) · P(m | A) · ∏_i [ 1 / completions(m) · ∏_{a in A} P(v_ia | m_a) ],

where P(m | A) is the same for all named values that training shows. What is named is not what is repeated: two pictures
may show one colour by chance, but hardly eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Hypothesis = tuple[bool, bool, bool]
"""Whether the caption names noun, colour, style."""

HYPOTHESES: tuple[Hypothesis, ...] = (
    (True, False, False),
    (False, True, False),
    (False, False, True),
    (True, True, False),
    (True, False, True),
    (False, True, True),
    (True, True, True),
)
"""That nothing is shared is none of them: no caption names nothing."""

EQUAL: Mapping[Hypothesis, float] = MappingProxyType({one: 1 / len(HYPOTHESES) for one in HYPOTHESES})


class IdealReader:
    """Reads given pictures by Bayes' rule, and draws what may come next.

    Args:
        seen: (nouns, colours, styles), the combinations that training shows. One that it never shows counts like its
            neighbours, since the reader does not know what was left out.
        epsilon: how often the class network takes a value for another, each other one alike. Without it one misread
            picture would rule out all explanations.
        prior: odds of each hypothesis before a picture is seen; they need not sum to 1.

    Raises:
        ValueError: epsilon is not between 0 and 1, or the prior has no odds for any hypothesis.
    """

    def __init__(self, seen: NDArray[np.bool_], *, epsilon: float, prior: Mapping[Hypothesis, float] = EQUAL) -> None:
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon is {epsilon}, expected more than 0 and less than 1")
        if sum(prior.get(one, 0) for one in HYPOTHESES) <= 0:
            raise ValueError("prior: expected odds above 0 for some set of named attributes")
        self._epsilon = epsilon
        self._classes = seen.shape
        # Of all E explanations, row by row:
        named, values, log_prior, completions, shown = [], [], [], [], []
        triples = np.indices(seen.shape).reshape(3, -1).T  # (T, 3)
        with np.errstate(divide="ignore"):
            for hypothesis in HYPOTHESES:
                free = tuple(axis for axis in range(3) if not hypothesis[axis])
                counts = seen.sum(axis=free, keepdims=True)
                told = np.indices(counts.shape).reshape(3, -1).T  # (M, 3), 0 where free
                within = ((triples == told[:, None]) | ~np.array(hypothesis)).all(axis=2)  # (M, T)
                known = counts.reshape(-1) if free else np.ones(len(told), np.int64)
                odds = (known > 0) * prior.get(hypothesis, 0.0) / np.count_nonzero(counts)
                named.append(np.tile(hypothesis, (len(told), 1)))
                values.append(told)
                log_prior.append(np.log(odds))
                completions.append(np.maximum(known, 1))
                shown.append(within & seen.reshape(-1) if free else within)
        self._named = np.concatenate(named)  # (E, 3)
        self._values = np.concatenate(values)  # (E, 3)
        self._log_prior = np.concatenate(log_prior)  # (E,)
        self._completions = np.concatenate(completions)  # (E,)
        self._triples = triples
        self._shown = np.concatenate(shown) / self._completions[:, None]  # (E, T): what the next picture shows

    def posterior(self, given: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability of each hypothesis, in the order of `HYPOTHESES`: (sets, n, 3) to (sets, 7)."""
        of_hypothesis = (self._named[:, None] == np.array(HYPOTHESES)).all(axis=2)  # (E, 7)
        odds: NDArray[np.float64] = self._explanations(given) @ of_hypothesis
        return odds

    def shared(self, given: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that each attribute is shared: (sets, n, 3) to (sets, 3)."""
        odds: NDArray[np.float64] = self._explanations(given) @ self._named
        return odds

    def keeps(self, given: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that each attribute is shared, and with this value: (sets, n, 3) and (sets, 3) to (sets, 3)."""
        agrees = self._named & (self._values == values[:, None])  # (sets, E, 3)
        odds: NDArray[np.float64] = np.einsum("se,sea->sa", self._explanations(given), agrees)
        return odds

    def shows(self, given: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that the next picture shows this value, shared or not: (sets, n, 3), (sets, 3) to (sets, 3)."""
        following = self._explanations(given) @ self._shown  # (sets, T)
        agrees = self._triples == values[:, None]  # (sets, T, 3)
        odds: NDArray[np.float64] = np.einsum("st,sta->sa", following, agrees)
        return odds

    def draw(
        self, given: NDArray[np.int64], positions: int, random: np.random.Generator, repeats: int = 1
    ) -> NDArray[np.int64]:
        """What follows, (repeats, sets, positions, 3): for each set an explanation by its odds, then pictures by that.

        Args:
            given: (sets, n, 3).
        """
        odds = self._explanations(given).cumsum(axis=1)  # (sets, E)
        chosen = _sample(np.broadcast_to(odds, (repeats, *odds.shape)), random)  # (repeats, sets)
        following = self._shown.cumsum(axis=1)  # (E, T)
        # A repeat at a time: the odds of all triples are held for each set.
        drawn = [
            np.stack([_sample(following[of_sets], random) for _ in range(positions)], axis=1) for of_sets in chosen
        ]
        return self._triples[np.stack(drawn)]

    def _explanations(self, given: NDArray[np.int64]) -> NDArray[np.float64]:
        """(sets, E), each row summing to 1."""
        logs = self._log_prior - given.shape[1] * np.log(self._completions)  # (E,)
        logs = np.tile(logs, (len(given), 1))  # (sets, E)
        for axis, classes in enumerate(self._classes):
            right = (given[:, :, axis, None] == np.arange(classes)).sum(axis=1)  # (sets, classes)
            of_values = right * np.log(1 - self._epsilon)
            of_values += (given.shape[1] - right) * np.log(self._epsilon / (classes - 1))
            logs += np.where(self._named[:, axis], of_values[:, self._values[:, axis]], 0)
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        normalised: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
        return normalised


def _sample(cumulated: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """An index by each row of cumulated odds (…, n): (…)."""
    drawn = random.random(cumulated.shape[:-1]) * cumulated[..., -1]
    return np.asarray((cumulated <= drawn[..., None]).sum(axis=-1), np.int64)
