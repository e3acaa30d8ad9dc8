"""The paper's metrics beside each other: against the bounds, along the positions, and with more pictures given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m2m.evaluation.measure import Benchmark, Measurements, Readings, Scores
from m2m.evaluation.networks import Networks
from m2m.evaluation.table import by_position, flat
from m2m.params import EvaluateMis


@dataclass(frozen=True, kw_only=True)
class Lots:
    """All that both networks saw for one model."""

    ours: Mapping[int, Measurements]
    """what it drew, by number of given pictures"""
    held_out: Measurements
    """of all pictures of the sets"""
    baselines: Mapping[str, Measurements]
    """by name, after as many given pictures as the main table has"""
    shuffled: Readings
    """held-out pictures after the given ones, their colours exchanged"""


def compare(
    lots: Lots, captions: Sequence[str], networks: Networks, params: EvaluateMis
) -> tuple[Scores, dict[str, float]]:
    """The model's scores, and the flat numbers of it, of all baselines by the same code, and of their comparison."""
    benchmark = Benchmark(captions, lots.held_out, params.main)
    ours = benchmark.scores(lots.ours[params.main], networks)
    after = range(params.main, params.main + params.generated)
    copied = [position % params.main for position in range(params.generated)]
    ceiling = benchmark.scores(lots.held_out.at(after), networks)
    shuffled = benchmark.fid(lots.shuffled)
    numbers = {
        **flat(ours),
        **flat(ceiling, "baseline/mis/"),
        **flat(benchmark.scores(lots.held_out.at(copied), networks), "baseline/copy/"),
        **by_position("baseline/shuffled/fid", shuffled),
        **relative(ours, ceiling, shuffled),
    }
    for name, measured in lots.baselines.items():
        numbers |= flat(benchmark.scores(measured, networks), f"baseline/{name}/")
    for given, measured in lots.ours.items():
        scores = Benchmark(captions, lots.held_out, given).scores(measured, networks) if given != params.main else ours
        for name, values in scores.by_position.items():
            numbers[f"{name}/given={given}/mean"] = _mean(values)
    return ours, numbers


def relative(ours: Scores, ceiling: Scores, shuffled_fid: Sequence[float]) -> dict[str, float]:
    """Shares of the variety that held-out sets have, and the drift of FID from the first to the last position.

    The unit of ``relative/fid_drift`` is what exchanging the colours of held-out pictures costs in FID. Left out is
    what has no ceiling or no unit.
    """
    numbers = {}
    if (most := _mean(ceiling.by_position["diversity"])) > 0:
        numbers["relative/diversity"] = _mean(ours.by_position["diversity"]) / most
    for name, value in ours.overall.items():
        if (most := ceiling.overall[name]) > 0:
            numbers[f"relative/{name}"] = value / most
    fid = ours.by_position["fid"]
    if (unit := _mean(shuffled_fid) - _mean(ceiling.by_position["fid"])) > 0:
        numbers["relative/fid_drift"] = (fid[-1] - fid[0]) / unit
    return numbers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
