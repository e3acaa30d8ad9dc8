"""What decides on the champion: figures of validation sets, so that the test stays a test."""

from __future__ import annotations

import numpy as np

from m2m.data.sets import ImageSets
from m2m.evaluation import lots
from m2m.evaluation.ground import Ground
from m2m.evaluation.measure import Benchmark, Measurements, measure
from m2m.evaluation.misses import nearest_other
from m2m.evaluation.networks import Networks
from m2m.evaluation.pattern_numbers import ASPECTS
from m2m.params import EvaluateMis

PREFIX = "validation/"


def look_at(
    sets: ImageSets, count: int, networks: Networks, params: EvaluateMis
) -> tuple[list[str], Measurements, Ground | None]:
    """Captions of the first sets, what both networks see in all their pictures, and the ground, if there is one."""
    batches = lots.held_out(sets, count=count, batch=params.sets_per_batch)
    seen = measure(batches, networks)
    captions = [sets[index].caption for index in range(count)]
    if not networks.attributes:
        return captions, seen, None
    again = lots.held_out(sets, count=count, batch=params.sets_per_batch)
    others = np.concatenate([nearest_other(batch.images) for batch in again])
    return captions, seen, Ground.of(captions, seen.readings, others, networks.inception.classes)


def gate_numbers(drawn: Measurements, sets: ImageSets, networks: Networks, params: EvaluateMis) -> dict[str, float]:
    """Figures ``validation/…`` of what was drawn after `params.main` given pictures of validation sets.

    They may be NaN: in a handful of sets it may be that no caption names, or leaves open, an attribute.
    """
    captions, held_out, ground = look_at(sets, params.validation_sets, networks, params)
    benchmark = Benchmark(captions, held_out, params.main)
    ours = benchmark.scores(drawn, networks)
    ceiling = benchmark.scores(held_out.at(range(params.main, params.main + params.generated)), networks)
    numbers = {f"{PREFIX}{name}": float(np.mean(values)) for name, values in ours.by_position.items()}
    if (most := float(np.mean(ceiling.by_position["diversity"]))) > 0:
        numbers[f"{PREFIX}diversity_of_ceiling"] = numbers[f"{PREFIX}diversity"] / most
    if ground:
        sums = ground.pattern(params.main, params.generated).count(ground.lot(drawn.readings))
        alike = np.ones((1, sums.captions))
        numbers[f"{PREFIX}pattern_score"] = float(sums.strict_score(alike)[0])
        scores = sums.scores(alike)
        numbers |= {f"{PREFIX}{name}": float(values(scores).mean()) for name, values in ASPECTS.items()}
    return numbers
