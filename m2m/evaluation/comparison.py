"""What the numbers say beside each other: against the bounds, along the positions, and with more pictures given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from m2m import seeds
from m2m.evaluation.agreement import paired_interval
from m2m.evaluation.measure import Benchmark, Measurements, Readings, Scores, agreements
from m2m.evaluation.networks import Networks
from m2m.evaluation.table import by_position, flat
from m2m.params import EvaluateMis

OF_CEILING = ("content_agreement", "style_agreement", "diversity")


@dataclass(frozen=True)
class Lots:
    """All that was measured for one model."""

    ours: Measurements
    """what it drew after the given pictures"""
    more_given: Mapping[int, Readings]
    """what it drew after other numbers of given pictures, for the first sets"""
    unconditional: Measurements
    """what Stable Diffusion draws without a caption"""
    shuffled: Readings
    """held-out pictures after the given ones, their colours exchanged"""


def compare(
    lots: Lots, benchmark: Benchmark, networks: Networks, params: EvaluateMis
) -> tuple[Scores, dict[str, float]]:
    """The model's scores, and the flat numbers of it, of all baselines by the same code, and of their comparison."""
    ours = benchmark.scores(lots.ours, networks)
    after = range(params.given, params.given + params.generated)
    copied = [position % params.given for position in range(params.generated)]
    ceiling = benchmark.scores(benchmark.held_out.at(after), networks)
    shuffled = benchmark.fid(lots.shuffled)
    numbers = {
        **flat(ours),
        **flat(ceiling, "baseline/mis/"),
        **flat(benchmark.scores(benchmark.held_out.at(copied), networks), "baseline/copy/"),
        **flat(benchmark.scores(lots.unconditional, networks), "baseline/stable_diffusion/"),
        **by_position("baseline/shuffled/fid", shuffled),
        **relative(ours, ceiling, shuffled),
    }
    if networks.attributes:
        captions = benchmark.captions[: params.subset.sets]
        hits = {given: agreements(readings, networks, captions) for given, readings in lots.more_given.items()}
        main = agreements(lots.ours.readings, networks, benchmark.captions)
        hits = {params.given: {name: values[: params.subset.sets] for name, values in main.items()}, **hits}
        numbers |= by_given(hits, baseline=params.given, resamples=params.bootstrap, seed=params.seed)
    return ours, numbers


def relative(ours: Scores, ceiling: Scores, shuffled_fid: Sequence[float]) -> dict[str, float]:
    """Shares of what held-out sets reach, and the drift of FID from the first to the last position.

    The unit of ``relative/fid_drift`` is what exchanging the colours of held-out pictures costs in FID. Left out is
    what has no ceiling or no unit: in a handful of pictures the class network may see nothing.
    """
    numbers = {}
    for name in OF_CEILING:
        if name in ours.by_position and (most := _mean(ceiling.by_position[name])) > 0:
            numbers[f"relative/{name}"] = _mean(ours.by_position[name]) / most
    fid = ours.by_position["fid"]
    if (unit := _mean(shuffled_fid) - _mean(ceiling.by_position["fid"])) > 0:
        numbers["relative/fid_drift"] = (fid[-1] - fid[0]) / unit
    return numbers


def by_given(hits: Mapping[int, Mapping[str, Tensor]], *, baseline: int, resamples: int, seed: int) -> dict[str, float]:
    """Agreement by number of given pictures; its paired differences from `baseline` given ones with 95 % intervals.

    All over the same sets and the same places in a set: those that are generated even with the most given ones.

    Args:
        hits: given -> attribute -> (sets, total - given), the same sets and the same total everywhere.
    """
    common = min(values.shape[1] for of_given in hits.values() for values in of_given.values())
    numbers = {}
    for given, of_given in hits.items():
        for attribute, values in of_given.items():
            numbers[f"{attribute}_agreement/given={given}/mean"] = float(values[:, -common:].mean())
            if given == baseline:
                continue
            interval = paired_interval(
                hits[baseline][attribute][:, -common:],
                values[:, -common:],
                resamples=resamples,
                seed=seeds.derive(seed, "bootstrap", attribute, given),
            )
            prefix = f"paired/{attribute}_agreement/given={given}-minus-{baseline}"
            numbers |= {f"{prefix}/mean": interval.mean, f"{prefix}/low": interval.low, f"{prefix}/high": interval.high}
    return numbers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
