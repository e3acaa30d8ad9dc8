"""All that is drawn and measured of one model on image sets, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2m.data.sets import ImageSets
from m2m.evaluation import claim, lots, naming, nearest_set, places, table, validation
from m2m.evaluation.comparison import Lots, compare
from m2m.evaluation.ground import Ground, read_of
from m2m.evaluation.measure import Batch, Measurements, Readings, Scores, measure, read
from m2m.evaluation.model import Model
from m2m.evaluation.networks import Networks
from m2m.evaluation.pattern_numbers import told
from m2m.evaluation.sampling import Continuations
from m2m.manifest import Manifest
from m2m.params import EvaluateMis
from m2m.progress import progress
from m2m.workers import Workers

UNCONDITIONAL_POSITIONS = 2
"""Without given pictures all positions are alike: two are enough for a spread, and for the distance within a set."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The sets of a dataset."""

    train: ImageSets
    validation: ImageSets
    test: ImageSets


@dataclass(frozen=True, kw_only=True)
class Painters:
    """Stable Diffusion, told nothing and told what the given pictures agree on."""

    floor: lots.Painter
    named: lots.Painter


def painters(params: EvaluateMis, data: Manifest, folder: Path, work: Path, device: str, workers: Workers) -> Painters:
    """Who is told a caption draws as the sets of the dataset were drawn, as far as its manifest says."""
    here = {"solver", "num_inference_steps", "guidance_scale"}
    as_sets = params.model_dump(include=here)
    made_by = data.made_by.get("parameters")
    if isinstance(made_by, Mapping):
        as_sets |= {key: value for key, value in made_by.items() if key in here}
    options: dict[str, Any] = {"params": params, "device": device, "workers": workers}
    as_model: dict[str, Any] = {"solver": params.solver, "num_inference_steps": params.num_inference_steps}
    return Painters(
        floor=lots.Painter(folder, **as_model, guidance_scale=1, work=work / "unconditional", **options),
        named=lots.Painter(folder, **as_sets, work=work / "named", **options),
    )


class Measuring:
    """Draws what is missing, shows all of it to the networks, and compares."""

    def __init__(
        self, params: EvaluateMis, splits: Splits, model: Model, networks: Networks, painters: Painters
    ) -> None:
        self._params, self._splits, self._model, self._networks = params, splits, model, networks
        self._painters = painters
        self.probes: dict[str, tuple[places.Probe, Continuations]] = {}
        self.draws: dict[int, Continuations] = {
            given: model.after(
                f"given-{given}", splits.test, count=params.sets, given=given, generated=params.generated
            )
            for given in params.given
        }
        self._long = model.after(
            "long", splits.test, count=params.long.sets, given=params.long.given, generated=params.long.generated
        )
        self._validation = model.after(
            "validation",
            splits.validation,
            count=params.validation_sets,
            given=params.main,
            generated=params.generated,
        )

    def all(self) -> tuple[Scores, dict[str, float]]:
        """The scores at the main number of given pictures, and all numbers."""
        params, networks = self._params, self._networks
        captions, held_out, ground = validation.look_at(self._splits.test, params.sets, networks, params)
        in_other_ways = self._compared(held_out) if ground and params.compared.sets else {}
        if ground and params.probes.sets:
            self.probes = {
                name: (probe, self._probing(probe))
                for name, probe in places.probes(ground, self._splits.test, params).items()
            }
        to_draw = [*self.draws.values(), self._long, self._validation]
        to_draw += [draw for of_given in in_other_ways.values() for draw in of_given.values()]
        to_draw += [draw for _, draw in self.probes.values()]
        with progress(sum(draw.pictures for draw in to_draw), "evaluate", unit="images") as advance:
            ours = {given: measure(draw.batches(advance), networks) for given, draw in self.draws.items()}
            of_validation = measure(self._validation.batches(advance), networks)
            long = read(self._long.batches(advance), networks) if params.long.sets else None
            rivals = {
                name: {given: read(draw.batches(advance), networks) for given, draw in of_given.items()}
                for name, of_given in in_other_ways.items()
            }
            probed = {name: read(draw.batches(advance), networks) for name, (_, draw) in self.probes.items()}
        of_gate = validation.gate_numbers(of_validation, self._splits.validation, networks, params)
        table.require_gate(params.gate, of_gate, key="evaluate.mis.gate")
        numbers = told(of_gate)
        baselines = {"stable_diffusion": self._unconditional(captions)}
        nearest = self._nearest(held_out) if ground else {}
        if nearest:
            baselines["nearest"] = nearest[params.main]
        after_given = (
            Batch(batch.captions, batch.given, batch.images[:, params.main : params.main + params.generated])
            for batch in self._held_out()
        )
        shuffled = read(lots.colours_shuffled(after_given, seed=params.seed), networks)
        of_lots = Lots(ours=ours, held_out=held_out, baselines=baselines, shuffled=shuffled)
        scores, compared = compare(of_lots, captions, networks, params)
        numbers |= compared
        if ground:
            floor = dict.fromkeys(params.given, baselines["stable_diffusion"].readings)
            seen = claim.Read(
                ours=_readings(ours),
                baselines={"stable_diffusion": floor, "nearest": _readings(nearest)},
                long=long,
                compared=rivals | self._named(ground),
            )
            numbers |= claim.pattern_numbers(ground, seen, params)
            made = {name: probe for name, (probe, _) in self.probes.items()}
            shown = {name: read_of(readings)[0] for name, readings in probed.items()}
            numbers |= places.place_numbers(made, shown, ground.reader, params)
        return scores, numbers

    def _compared(self, held_out: Measurements) -> dict[str, dict[int, Continuations]]:
        """What the model draws of the first sets in other ways, by number of given pictures."""
        params, sets = self._params, self._splits.test
        painted = naming.PaintedSets(
            sets, held_out.readings, params.main, self._networks.inception.classes, seed=params.seed
        )
        options: dict[str, Any] = {"count": params.compared.sets, "generated": params.generated}
        return {
            "independent": {
                given: self._model.after(f"independent-{given}", sets, given=given, independent=True, **options)
                for given in dict.fromkeys((params.given[0], params.main))
            },
            claim.PAINTED: {params.main: self._model.after("painted", painted, given=params.main, **options)},
        }

    def _probing(self, probe: places.Probe) -> Continuations:
        given, generated = probe.given.shape[2], self._params.probes.generated
        return self._model.after(
            f"places-{probe.name}", probe.starts, count=probe.count, given=given, generated=generated
        )

    def _named(self, ground: Ground) -> dict[str, dict[int, Readings]]:
        """What Stable Diffusion draws of what the given pictures of the first sets agree on."""
        params, classes = self._params, self._networks.inception.classes
        if not params.compared.sets:
            return {}

        def batches(given: int) -> Iterator[Batch]:
            captions = naming.agreed_captions(ground.values[: params.compared.sets, :given], classes)
            drawn = self._painters.named.draw(captions, params.generated, noise="named")
            return lots.following(self._held_out(params.compared.sets), drawn, given=given)

        return {"name_then_draw": {given: read(batches(given), self._networks) for given in params.given}}

    def _held_out(self, count: int | None = None) -> Iterator[Batch]:
        return lots.held_out(self._splits.test, count=count or self._params.sets, batch=self._params.sets_per_batch)

    def _unconditional(self, captions: list[str]) -> Measurements:
        params = self._params
        positions = params.generated if self._networks.attributes else UNCONDITIONAL_POSITIONS
        drawn = self._painters.floor.draw([""] * len(captions), positions, noise="unconditional")
        return measure(lots.following(self._held_out(), drawn, given=params.main), self._networks)

    def _nearest(self, held_out: Measurements) -> dict[int, Measurements]:
        """The training set that is nearest to the given pictures, as if drawn, by number of given ones."""
        params, training = self._params, self._splits.train
        embedded = nearest_set.mean_embeddings(training, self._networks.clip, self._networks.device)

        def pictures(given: int) -> Iterator[NDArray[np.uint8]]:
            numbers = nearest_set.nearest(held_out.embeddings[:, :given], embedded)
            return nearest_set.pictures_of(training, numbers, params.generated, batch=params.sets_per_batch)

        return {
            given: measure(lots.following(self._held_out(), pictures(given), given=given), self._networks)
            for given in params.given
        }


def _readings(measured: Mapping[int, Measurements]) -> dict[int, Readings]:
    return {given: one.readings for given, one in measured.items()}
