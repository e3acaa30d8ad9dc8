"""``m2m lineage``: from a model version, a run, an experiment or a released model back to what it came of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml
from huggingface_hub import metadata_load

from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.settings import saved_experiments, without_password
from m2m.tracking import Chain, PastRun, Trace, open_history
from m2m.tracking.history import Origin

PARAMS = "params.yaml"
HASH = 12
"""Digits of a hash that a person reads."""
COLUMN = 12
WIDTH = 100


def run(ref: str, *, tracking_uri: str, as_json: bool) -> str:
    """Asks MLflow what led to a model version, a run or an experiment, and git whether the experiment is saved here.

    Returns:
        the chain from top to bottom, hashes shortened; or JSON of all of it, of the metrics the main ones.

    Raises:
        UserError: nothing of this name is recorded, or the server does not answer.
    """
    trace, tracking = open_history(tracking_uri).trace(ref), without_password(tracking_uri)
    again, notes = _again(trace.run.origin)
    if not as_json:
        return "\n".join(_lines(trace, tracking, again, notes))
    found = {"ref": ref, "tracking": tracking, "trace": asdict(trace), "again": again, "notes": notes}
    return json.dumps(_with_main_metrics(found), indent=1)


def of_release(model: Path, *, as_json: bool) -> str:
    """Reads DVC's lock beside a released model: the stages that led to it, the last first, with their data's hashes.

    Returns:
        a line a stage, hashes shortened; or JSON, with whole ones.

    Raises:
        UserError: nothing beside the folder tells where it comes from, or what is there is damaged.
    """
    name = model.resolve().name
    lock, card = (model.resolve().with_name(one) for one in ("dvc.lock", "README.md"))
    try:
        stages: dict[str, Any] = yaml.safe_load(lock.read_text())["stages"]
        commit = (metadata_load(card) or {})["commit"]
        outs = {Path(out["path"]): name for name, stage in stages.items() for out in stage["outs"]}

        def maker(path: str) -> str | None:
            """Of a file or a folder, or of the folder that it lies in."""
            return next((outs[one] for one in (Path(path), *Path(path).parents) if one in outs), None)

        found: dict[str, dict[str, dict[str, str]]] = {}
        to_follow = [outs[Path(f"models/{name}")]]
        for stage in to_follow:
            made, read = (
                {one["path"]: one["md5"] for one in stages[stage].get(kind, []) if maker(one["path"])}
                for kind in ("outs", "deps")
            )
            found[stage] = {"made": made, "of": read}
            makers = (maker(path) for path in read)
            to_follow += dict.fromkeys(one for one in makers if one and one not in to_follow)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        text = f"{lock.name} and {card.name} beside it do not tell where it comes from"
        ask = f"of a model that was trained here ask by its version, models:/{name}/1"
        raise UserError(f"{model}: {text}; restore a released one from git, {ask}") from error
    # The commit is older than the release: what lies beside the model is not in it.
    params = f"git show @{{-1}}:models/released/{PARAMS} > {PARAMS}"
    again = f"git checkout {commit} && {params} && dvc repro {to_follow[0]}"
    if as_json:
        return json.dumps({"ref": str(model), "model": folder_digest(model), "stages": found, "again": again}, indent=1)
    rows = [_row("model", f"{model} {folder_digest(model)[:HASH]}")]
    for stage, files_of in found.items():
        rows += [_row("stage" if stage == to_follow[0] else "", stage)]
        for what, files in (("makes", files_of["made"]), ("of", files_of["of"])):
            rows += [_row("", f"  {what:<6}{path} {digest[:HASH]}") for path, digest in files.items()]
    return "\n".join([*rows, _row("again", again)])


def _again(origin: Origin) -> tuple[str, list[str]]:
    """The command that makes a run again, and what that cannot bring back."""
    notes: list[str] = []
    if origin.experiment in saved_experiments():
        # Not &&: that the run left a stage out, and nothing of it is here, is an error to dvc exp apply.
        return f"dvc exp apply {origin.experiment}; dvc repro", notes
    if origin.experiment:
        notes.append(f"the experiment {origin.experiment} is not saved in this checkout: it failed, or was removed")
    if origin.dirty:
        notes.append("files differed from the commit when it ran: the command makes what was committed, not that")
    if len(origin.commit) != 40:
        return "dvc repro", [*notes, "it ran outside of git: which code made it is not known"]
    return f"git checkout {origin.commit} && dvc repro {origin.stage}".rstrip(), notes


def _with_main_metrics(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _main(inner) if key == "metrics" else _with_main_metrics(inner) for key, inner in value.items()}
    return [_with_main_metrics(inner) for inner in value] if isinstance(value, list | tuple) else value


def _main(metrics: Mapping[str, float]) -> dict[str, float]:
    """Means over the positions, and pattern scores, of the model itself."""
    main = re.compile(r"[^/]+/mean|pattern_score/given.\d+")  # MLflow knows no "="
    return {name: value for name, value in metrics.items() if main.fullmatch(name)}


def _lines(trace: Trace, tracking: str, again: str, notes: Sequence[str]) -> Iterator[str]:
    for chain in trace.chains:
        yield from _chain(chain, tracking)
        yield ""
    yield _row("again", again)
    for note in notes:
        yield _row("", f"but {note}")


def _chain(chain: Chain, tracking: str) -> Iterator[str]:
    if chain.dataset:
        sets = ", ".join(f"{count} {split}" for split, count in chain.dataset.sets.items())
        yield _row("dataset", f"{chain.dataset.name} {chain.dataset.manifest[:HASH]}: {sets} sets")
    if chain.foundation:
        yield _row("foundation", ", ".join(f"{name} {digest[:HASH]}" for name, digest in chain.foundation.items()))
    if chain.training:
        yield from _run("training", chain.training, tracking)
    elif chain.model:
        yield _row("training", "not recorded: DVC restored the model, tracking was off, or MLflow's record was removed")
    if chain.finetuning:
        yield from _run("fine-tuning", chain.finetuning, tracking)
    if chain.model:
        yield _row("model", chain.model[:HASH])
    for evaluation in chain.evaluations:
        yield from _run("evaluation", evaluation, tracking)
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(_main(evaluation.metrics).items()))
        yield from (_row("", line) for line in wrap(metrics, WIDTH))
        for version in chain.versions:
            if version.run == evaluation.id:
                aliases = f": {', '.join(version.aliases)}" if version.aliases else ""
                yield _row("version", f"models:/{version.name}/{version.version}{aliases}")


def _run(what: str, run: PastRun, tracking: str) -> Iterator[str]:
    origin = run.origin
    page = f"{tracking.rstrip('/')}/{run.page}" if tracking.startswith("http") else ""
    deleted = ", deleted in MLflow" if run.deleted else ""
    yield _row(what, f"{run.name} {run.id}, {run.status}, {run.started}{deleted}")
    if page:
        yield _row("", page)
    commit = f"commit {origin.commit[:HASH] or 'unknown'}{' with changes' if origin.dirty else ''}"
    yield _row("", f"experiment {origin.experiment}, {commit}" if origin.experiment else commit)
    if origin.flow_run:
        yield _row("", f"flow run {origin.flow_run} {origin.flow_run_url}".rstrip())


def _row(name: str, text: str) -> str:
    return f"{name:<{COLUMN}}{text}"
