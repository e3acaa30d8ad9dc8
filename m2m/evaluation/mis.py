"""Image sets: the paper's metrics by position, whether all given pictures are read, and what bounds both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2m.data.dataset import ImageSets
from m2m.errors import UserError
from m2m.evaluation import baselines, places
from m2m.evaluation.continuations import Continuations, Measured, Subject
from m2m.evaluation.figures import require_gate, told
from m2m.evaluation.metrics import Benchmark, compare
from m2m.evaluation.networks import Batch, Networks, Observations, nearest_other, observe, read_values
from m2m.evaluation.pattern import ASPECTS, PAINTED, Ground, drift, pattern_numbers, rival_numbers, scores
from m2m.params import EvaluateMis

UNCONDITIONAL_POSITIONS = 2
"""Without given pictures all positions are alike: two are enough for a spread, and for the distance within a set."""
EXAMPLES = {"content": "content consistency", "a": "style consistency"}
"""After the paper: probes of four given pictures of one content in four styles, and of four of one style."""

Rows = list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]


def require(subject: Subject[EvaluateMis]) -> None:
    """Says what cannot be measured before anything is drawn for it.

    Raises:
        UserError: the parameters ask for more than the dataset has.
    """
    params, there = subject.params, subject.data.images_per_set
    most = max(*params.given, params.long.given if params.long.sets else 0)
    if most + params.generated > there:
        raise UserError(
            f"evaluate.mis.given + evaluate.mis.generated is up to {most + params.generated}, more than the "
            f"{there} images of a set; lower one of them, or add some by generate.more_images"
        )
    if min(params.generated, params.long.generated) < 2:
        raise UserError("evaluate.mis.generated or long.generated is 1; distances within a set take at least 2")
    for key, some in (("long", params.long.sets), ("compared", params.compared.sets)):
        if some > params.sets:
            raise UserError(f"evaluate.mis.{key}.sets is {some}, more than evaluate.mis.sets, {params.sets}; lower it")


def measure(subject: Subject[EvaluateMis]) -> Measured:
    """Draws what is missing, shows all of it to the networks, and compares."""
    params, networks, test = subject.params, subject.networks, subject.sets["test"]
    floor, named = _painters(subject)
    held_out, ground = look_at(test, params.sets, networks, params)
    drawn = {"count": params.sets, "generated": params.generated}
    draws = {given: subject.after(f"given-{given}", test, given=given, **drawn) for given in params.given}
    long = subject.after("long", test, count=params.long.sets, given=params.long.given, generated=params.long.generated)
    for_gate = {**drawn, "count": params.validation_sets, "given": params.main}
    validation = subject.after("validation", subject.sets["validation"], **for_gate)
    rivals = _rivals(subject, held_out) if ground and params.compared.sets else {}
    probes = places.probes(ground, test, params) if ground and params.probes.sets else {}
    options = {"generated": params.probes.generated}
    probing = {
        name: subject.after(f"places-{name}", one.starts, count=len(one.starts), given=one.given.shape[2], **options)
        for name, one in probes.items()
    }
    in_other_ways = [draw for of_given in rivals.values() for draw in of_given.values()]
    to_draw = [*draws.values(), long, validation, *in_other_ways, *probing.values()]
    subject.draw(to_draw)

    def read(draw: Continuations) -> Observations:
        return observe(draw.batches(), networks, by_clip=False)

    ours = {given: observe(draw.batches(), networks) for given, draw in draws.items()}
    of_validation = observe(validation.batches(), networks)
    of_long = read(long) if params.long.sets else None
    compared = {name: {given: read(draw) for given, draw in of_given.items()} for name, of_given in rivals.items()}
    probed = {name: read(draw) for name, draw in probing.items()}
    decisive = gate_numbers(of_validation, subject.sets["validation"], networks, params)
    require_gate(params.gate, decisive, task="mis")

    unconditional = _unconditional(subject, floor)
    nearest = _nearest(subject, held_out) if ground else {}
    beside = {"stable_diffusion": unconditional} | ({"nearest": nearest[params.main]} if nearest else {})
    lots, numbers = compare(ours, held_out, beside, _shuffled(subject), networks.attributes, params)
    numbers = told(decisive) | numbers
    if ground:
        everywhere = {"stable_diffusion": dict.fromkeys(params.given, unconditional), "nearest": nearest}
        numbers |= pattern_numbers(ground, ours, everywhere, params)
        if of_long:
            numbers |= drift(ground, of_long, params)
        numbers |= rival_numbers(ground, ours, compared | _named(subject, ground, named), params)
        shown = {name: read_values(seen.logits)[0] for name, seen in probed.items()}
        numbers |= places.place_numbers(probes, shown, ground.reader, params)
    images = sum(draw.pictures for draw in draws.values())
    examples = _examples(probes, probing, max(params.gallery_sets // 2, 1))
    return Measured(
        numbers=numbers,
        # At most a dozen, where four numbers of given images are compared.
        headlines=[
            *(f"pattern_score/given={given}" for given in params.given),
            f"baseline/ideal/pattern_score/given={params.main}",
            *("fid/mean", "kid/mean", "inception_score/mean", "clip_text_image/mean", "clip_image_image/mean"),
            "relative/diversity",
        ],
        about={"images": images, "given": params.main, **networks.recorded("inception", "clip")},
        galleries={f"given-{given}": draw.rows(params.gallery_sets) for given, draw in draws.items()}
        | ({"consistency": examples} if examples else {}),
        files={f"positions{f'-{name}' if name else ''}.csv": lot.to_csv() for name, lot in lots.items()},
    )


def look_at(sets: ImageSets, count: int, networks: Networks, params: EvaluateMis) -> tuple[Observations, Ground | None]:
    """What the networks see in all pictures of the first sets, and the ground, if there is one."""

    def batches() -> Iterator[Batch]:
        return baselines.held_out(sets, count=count, batch=params.sets_per_batch)

    seen = observe(batches(), networks)
    if not networks.attributes:
        return seen, None
    others = np.concatenate([nearest_other(batch.images) for batch in batches()])
    captions = [sets[index].caption for index in range(count)]
    return seen, Ground.of(captions, seen, others, networks.inception.classes)


def gate_numbers(drawn: Observations, sets: ImageSets, networks: Networks, params: EvaluateMis) -> dict[str, float]:
    """Figures ``validation/…`` of what was drawn after `params.main` given pictures of validation sets.

    They decide on the champion, so that the test stays a test. They may be NaN: in a handful of sets it may be that no
    caption names, or leaves open, an attribute.
    """
    held_out, ground = look_at(sets, params.validation_sets, networks, params)
    benchmark, after = Benchmark(held_out, params.main), range(params.main, params.main + params.generated)
    ours, ceiling = (benchmark.metrics(lot, networks.attributes) for lot in (drawn, held_out.at(after)))
    numbers = {name: float(np.mean(values)) for name, values in ours.by_position.items()}
    if (most := float(np.mean(ceiling.by_position["diversity"]))) > 0:
        numbers["diversity_of_ceiling"] = numbers["diversity"] / most
    if ground:
        sums = ground.pattern(params.main, params.generated).count(ground.lot(drawn))
        found = scores(sums, np.ones((1, sums.shape[1])))
        numbers |= {name: float(found[name].mean()) for name in ("pattern_score", *ASPECTS)}
    return {f"validation/{name}": value for name, value in numbers.items()}


def _painters(subject: Subject[EvaluateMis]) -> tuple[baselines.Painter, baselines.Painter]:
    """Stable Diffusion, told nothing, and told a caption: then as the manifest says that the sets were drawn."""
    here = {"solver", "num_inference_steps", "guidance_scale"}
    as_model = subject.params.model_dump(include=here)
    made_by = subject.data.made_by.get("parameters")
    drawn_by = made_by if isinstance(made_by, Mapping) else {}
    as_sets: dict[str, Any] = as_model | {key: value for key, value in drawn_by.items() if key in here}
    floor = baselines.Painter(subject, "unconditional", **{**as_model, "guidance_scale": 1})
    return floor, baselines.Painter(subject, "named", **as_sets)


def _rivals(subject: Subject[EvaluateMis], held_out: Observations) -> dict[str, dict[int, Continuations]]:
    """What the model draws of the first sets in other ways, by number of given pictures.

    Independent pictures each read the given ones only, none that was drawn before.
    """
    params, sets, classes = subject.params, subject.sets["test"], subject.networks.inception.classes
    painted = baselines.PaintedSets(sets, held_out, params.main, classes, seed=params.seed)
    options: dict[str, Any] = {"count": params.compared.sets, "generated": params.generated}
    alone = {**options, "params": params.model_copy(update={"drawn_context": 0})}
    return {
        "independent": {
            given: subject.after(f"independent-{given}", sets, given=given, **alone)
            for given in dict.fromkeys((params.given[0], params.main))
        },
        PAINTED: {params.main: subject.after("painted", painted, given=params.main, **options)},
    }


def _observed(
    subject: Subject[EvaluateMis],
    drawn: Iterator[NDArray[np.uint8]],
    given: int,
    count: int = 0,
    *,
    by_clip: bool = True,
) -> Observations:
    """What was drawn for the first sets (all, unless told), as if it followed their `given` first pictures."""
    batches = zip(_held_out(subject, count), drawn, strict=True)
    following = (Batch(batch.captions, batch.images[:, :given], images) for batch, images in batches)
    return observe(following, subject.networks, by_clip=by_clip)


def _held_out(subject: Subject[EvaluateMis], count: int = 0) -> Iterator[Batch]:
    params = subject.params
    return baselines.held_out(subject.sets["test"], count=count or params.sets, batch=params.sets_per_batch)


def _unconditional(subject: Subject[EvaluateMis], floor: baselines.Painter) -> Observations:
    params = subject.params
    positions = params.generated if subject.networks.attributes else UNCONDITIONAL_POSITIONS
    return _observed(subject, floor.draw([""] * params.sets, positions), params.main)


def _shuffled(subject: Subject[EvaluateMis]) -> Observations:
    params, after = subject.params, slice(subject.params.main, subject.params.main + subject.params.generated)
    after_given = (Batch(batch.captions, batch.given, batch.images[:, after]) for batch in _held_out(subject))
    shuffled = baselines.colours_shuffled(after_given, seed=params.seed)
    return observe(shuffled, subject.networks, by_clip=False)


def _named(
    subject: Subject[EvaluateMis], ground: Ground, painter: baselines.Painter
) -> dict[str, dict[int, Observations]]:
    """What Stable Diffusion draws of what the given pictures of the first sets agree on."""
    params, classes, found = subject.params, subject.networks.inception.classes, {}
    if not (count := params.compared.sets):
        return {}
    for given in params.given:
        captions = baselines.agreed_captions(ground.values[:count, :given], classes)
        drawn = painter.draw(captions, params.generated)
        found[given] = _observed(subject, drawn, given, count, by_clip=False)
    return {"name_then_draw": found}


def _nearest(subject: Subject[EvaluateMis], held_out: Observations) -> dict[int, Observations]:
    """The training set that is nearest to the given pictures, as if drawn, by number of given ones."""
    params, training, networks, found = subject.params, subject.sets["train"], subject.networks, {}
    means = baselines.mean_embeddings(training, networks.clip, networks.device)
    for given in params.given:
        of_given = held_out.embeddings[:, :given]
        pictures = baselines.nearest(of_given, training, means, params.generated, batch=params.sets_per_batch)
        found[given] = _observed(subject, pictures, given)
    return found


def _examples(probes: Mapping[str, places.Probe], drawn: Mapping[str, Continuations], count: int) -> Rows:
    """The first sets of each of `EXAMPLES`, in their first order."""
    rows: Rows = []
    for name, probe in ((name, probes[name]) for name in EXAMPLES if name in probes):
        pictures = list(drawn[name].by_set())
        chosen = np.flatnonzero(probe.shared == places.STYLE)[:count] * probe.given.shape[1]
        rows += [(EXAMPLES[name], probe.starts[start].images, pictures[start]) for start in chosen.tolist()]
    return rows
