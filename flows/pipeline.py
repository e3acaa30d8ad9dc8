"""The pipeline as one Prefect flow: a task a DVC stage, begun in its turn when those that it depends on are done.

DVC decides what is stale, Prefect runs it, MLflow remembers it. A run that changes parameters works in a worktree of
its own and becomes a named DVC experiment; one that changes nothing works on the checkout itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from prefect import flow, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff
from pydantic import Field

from flows.artifacts import Live, gallery, read_metrics, summary
from flows.board import LOGS, note_seconds
from flows.form import Form, make_form, profiles
from flows.graph import ROOM_ASKED_EVERY, Stage, in_turn, read_graph, select, stages_at_once
from flows.record import Log, recorded
from flows.stage import Children, StageError, UnansweredError, Verdict, run_stage
from flows.workplace import Workplace, parameter_file, workplace
from m2m.errors import UserError
from m2m.params import Variant
from m2m.params_file import load_params

CHECKOUT = Path(__file__).resolve().parents[1]
RETRIES = 3
BACK_OFF = 10
"""Seconds before the first retry; each further one waits twice as long."""
MORE_THAN_THERE_ARE = 422
"""How Prefect answers who asks for more slots than a limit has."""
CONFLICT = 409
"""How it answers when it cannot count what comes back."""
AS_IT_IS = "params.yaml"
REUSED = ("Skipped", "Cached")
"""Names of states in which a stage made nothing new, and so no MLflow run."""

if TYPE_CHECKING:
    Target: TypeAlias = str
    Profile: TypeAlias = str
    Changes: TypeAlias = Form
else:
    _stages = [stage.name for stage in read_graph(CHECKOUT)]
    _groups = dict.fromkeys(name.partition("@")[0] for name in _stages)
    Target = Literal[tuple(dict.fromkeys([*_groups, *_stages]))]
    Profile = Literal[(AS_IT_IS, *profiles(CHECKOUT))]
    Changes = make_form(load_params(CHECKOUT / "params.yaml"))

children = Children()


@task(
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(BACK_OFF),
    retry_condition_fn=lambda _task, _run, state: isinstance(_exception(state), UnansweredError),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run(stage: Stage, place: Workplace, env: Mapping[str, str], force: bool) -> State[Any]:
    """Runs one stage in DVC; what is up to date shows as Skipped, what comes from DVC's cache as Cached."""
    log = get_run_logger()
    with children.held(), held_slots(stage, log):
        live, began = Live(stage.name, log), time.monotonic()
        verdict = run_stage(stage.name, place.folder, children=children, env=env, force=force, say=live.say)
        if stage.shown and (drawn := gallery(place.folder, stage.name)):
            create_markdown_artifact(drawn, key=live.key("pictures"))
    match verdict:
        case Verdict.SKIPPED:
            return Completed(name="Skipped", message="unchanged")
        case Verdict.CACHED:
            return Completed(name="Cached", message="an earlier run's outputs, from DVC's cache")
        case Verdict.RAN:
            if place.experiment is None:  # else they are times of other parameters
                note_seconds(CHECKOUT / LOGS, stage.name, time.monotonic() - began)
            return Completed(message="ran")


@contextmanager
def held_slots(stage: Stage, log: Log) -> Iterator[None]:
    """Takes the slots that a stage needs, when they are there, and gives them back."""
    done = False
    while slots := await_limit(stage, log):
        try:
            with concurrency(str(stage.slot), occupy=slots):
                yield
                done = True
            return
        except ConcurrencySlotAcquisitionError as error:
            if getattr(getattr(error.__cause__, "response", None), "status_code", None) != MORE_THAN_THERE_ARE:
                raise
            # Somebody lowered the limit while the stage waited: it is asked for anew.
        except PrefectHTTPStatusError as error:
            if not done or error.response.status_code != CONFLICT:
                raise
            # Prefect cannot take slots back whose limit is 0 by then: their lease has to end.
            log.warning("the concurrency limit %s is 0: what this stage held comes back in some minutes", stage.slot)
            return
    yield


def await_limit(stage: Stage, log: Log) -> int:
    """How many slots of its global concurrency limit a stage takes; 0: nobody made such a limit, or it is off.

    A limit of 0 holds the stage back until it is raised; Prefect would refuse the slot instead, and the stage fail.
    """
    told = False
    while stage.slot is not None and not children.cancelled:
        if limit := read_limit(stage.slot):
            return limit if stage.alone else 1
        if limit is None:
            break
        if not told:
            log.info("the concurrency limit %s is 0; this stage begins when it is raised", stage.slot)
            told = True
        time.sleep(ROOM_ASKED_EVERY)  # who waits here ends soon when the flow is cancelled
    return 0


def read_limit(name: str) -> int | None:
    """How many slots a global concurrency limit has; None: nobody made it, or it is off."""
    with get_client(sync_client=True) as client:
        # To ask for a limit that nobody made would be a warning in every log.
        limits = {limit.name: limit for limit in client.read_global_concurrency_limits(limit=200)}
    return limits[name].limit if name in limits and limits[name].active else None


def room(slot: str) -> int:
    """How many stages of this run may hold a slot at a time: of its limit, which counts other runs too, if any."""
    limit = read_limit(slot)
    return stages_at_once() if limit is None else limit


@task(cache_policy=NO_CACHE, persist_result=False)
def skip() -> State[Any]:
    """Stands for a stage that is up to date, and so are those that it depends on."""
    return Completed(name="Skipped", message="unchanged")


@flow(task_runner=ThreadPoolTaskRunner(), persist_result=False)  # type: ignore[arg-type]
def pipeline(
    changes: Changes = Changes(),  # noqa: B008  (the form's default)
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]*$")] = "",
    profile: Profile = AS_IT_IS,
    targets: list[Target] = [],  # noqa: B006
    variants: Annotated[list[Variant], Field(min_length=1)] = list(get_args(Variant)),  # noqa: B006, B008
    force: bool = False,
) -> State[Any]:
    """Brings stages up to date, each when those that it depends on are done, independent ones side by side.

    Without changes it works on the checkout itself. With a profile, changes or a name it works in a worktree of the
    last commit, and what it makes becomes a DVC experiment.

    Args:
        changes: Values in place of those that the parameter file has now; what is left empty stays as it is there.
        experiment: Name of the DVC experiment; empty: the flow run's own name, if anything is changed.
        profile: The parameter file to start from.
        targets: Stages to bring up to date, with all that they depend on; none: everything.
        variants: Leave one out, and what needs it is left out too.
        force: Run the targets even if nothing has changed, but not what they depend on.
    """
    children.end_on_sigterm()
    start_from = None if profile == AS_IT_IS else profile
    try:
        changed = changes.changed(load_params(parameter_file(CHECKOUT, start_from)))
        name = experiment or (str(runtime.flow_run.name) if changed or start_from else None)
        with workplace(CHECKOUT, experiment=name, profile=start_from, changes=changed) as place:
            called = {"targets": targets, "variants": variants, "profile": profile, "changes": changed, "force": force}
            return _run_all(place, targets, variants, force, called)
    except UserError as error:
        return Failed(message=str(error))


def _run_all(
    place: Workplace, targets: Sequence[str], variants: Sequence[str], force: bool, called: Mapping[str, object]
) -> State[Any]:
    stages = select(read_graph(place.folder), targets, items=variants)
    env = {
        **os.environ,
        "M2M_FLOW_RUN_ID": str(runtime.flow_run.id),
        "M2M_FLOW_RUN_URL": str(runtime.flow_run.ui_url or ""),
        "DVC_EXP_NAME": place.experiment or "",
    }
    forced = {stage.name for stage in stages if force and (not targets or stage.matches(targets))}
    stale = place.find_stale(stages, forced)
    before = read_metrics(place.main)
    futures: dict[str, PrefectFuture[Any]] = {}
    with recorded(str(runtime.flow_run.name), called, checkout=place.folder, env=env, log=get_run_logger()) as record:

        def begin(stage: Stage) -> PrefectFuture[Any]:
            name, parents = stage.name, [futures[parent] for parent in stage.parents]
            work: Any = run if name in stale else skip
            given = (stage, place, {**env, "M2M_PARENT_RUN": record.id}, name in forced) if name in stale else ()
            named = work.with_options(name=name, task_run_name=name, description=stage.description)
            futures[name] = named.submit(*given, return_state=False, wait_for=parents)
            return futures[name]

        for stage in stages:
            if stage.name not in stale:
                begin(stage)
        on_cpu = stages_at_once() > 1  # asked here, since a stage that could begin would wait for it below
        # After a failure, too: what depends on it, Prefect refuses at once.
        list(in_turn(stages, stale, room=room, begin=begin, show_soon=on_cpu))
        for future in futures.values():
            future.wait()
        states = {name: future.state for name, future in futures.items()}
        unfinished = {name: state for name, state in states.items() if not state.is_completed()}
        links = record.links([name for name, state in states.items() if state.name in REUSED])
        page = summary(place.folder, before=before, unfinished=unfinished, links=links, experiment=place.experiment)
        create_markdown_artifact("\n\n".join(page), key="summary")
        if unfinished:
            failed = [name for name, state in unfinished.items() if isinstance(_exception(state), StageError)]
            raise UserError(f"{', '.join(failed or unfinished)} failed; nothing of an experiment is saved")
        place.save(f"flow run {runtime.flow_run.name}", list(futures))
    return Completed(message=f"{len(stages)} stages are up to date")


def _exception(state: State[Any]) -> BaseException | None:
    if not state.is_failed():
        return None
    result = state.result(raise_on_failure=False)
    return result if isinstance(result, BaseException) else None
