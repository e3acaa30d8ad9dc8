"""A cluster makes the same shards as this machine, byte for byte, whatever becomes of its nodes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from m2m.data.sets import ImageSet
from m2m.data.shards import MadeSets, PlannedSet, Records, ShardMaker, shard_jobs
from m2m.engines import LocalEngine, open_engine
from m2m.errors import UserError
from m2m.progress import Advance
from m2m.runtime import Runtime
from m2m.store import LocalStore
from m2m.workers import ALONE
from tests.cluster import two_nodes

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
SETS = [PlannedSet(id=f"set-{number:02}", caption=f"a {number}", count=2) for number in range(12)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as nodes:
        yield nodes


class Draw:
    """Noise that its id decides on; slowly, so that two nodes share it."""

    def __init__(self, folder: Path, seconds: float = 0.2) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
        time.sleep(self.seconds)
        with (self.folder / f"{os.getpid()}").open("a") as file:
            file.write(f"{planned[0].id}\n")
        sets = []
        for one in planned:
            draws = np.random.default_rng([*one.id.encode()])
            images = draws.integers(256, size=(one.count, 8, 8, 3), dtype=np.uint8)
            sets.append(ImageSet(id=one.id, caption=one.caption, images=images))
        advance(sum(one.count for one in planned))
        return MadeSets(sets=sets)


def run(folder: Path, engine: Any, draw: Any, seen: list[int] | None = None) -> list[str]:
    """Makes what is missing; what the entries say."""
    runtime = Runtime(store=LocalStore(folder / "store"), work=folder / "work")
    jobs = shard_jobs(
        {"train": SETS, "validation": [], "test": []}, depends=["these"], sets_per_shard=1, runtime=runtime
    )
    maker = ShardMaker(make_sets=draw, store=runtime.store, stage="views", work=folder / "work")
    records = Records(runtime.store, "views")
    told = seen if seen is not None else []
    made = engine.make(maker, ((job, records.of(job)) for job in jobs), lambda count=1, **_: told.append(count))
    return [done.model_dump_json() for done in made]


def drawn(folder: Path) -> dict[str, list[str]]:
    """What each process drew."""
    return {path.name: path.read_text().split() for path in folder.iterdir()}


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    (tmp_path / "here").mkdir()
    return run(tmp_path / "here", LocalEngine(ALONE, "cpu"), Draw(tmp_path / "here", 0))


@pytest.fixture
def engine(cluster: Any, tmp_path: Path) -> Any:
    (tmp_path / "there").mkdir()
    return open_engine(
        cluster.address, store=LocalStore(tmp_path / "store"), work=tmp_path / "work", device="auto", ranks=None
    )


def test_two_nodes_make_what_one_machine_makes(
    engine: Any, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []
    assert run(tmp_path, engine, Draw(tmp_path / "there"), told) == expected
    of_each = drawn(tmp_path / "there")
    assert len(of_each) == 2
    assert sorted(chain.from_iterable(of_each.values())) == [one.id for one in SETS], "nothing is drawn twice"
    assert sum(told) == 24
    assert "24 images, " in capsys.readouterr().err
    assert run(tmp_path, engine, None) == expected, "and what is there is not made again"


def test_what_a_lost_worker_had_begun_is_made_again(engine: Any, expected: list[str], tmp_path: Path) -> None:
    class DrawAndDie(Draw):
        def __call__(self, planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
            if planned[0].id == "set-05" and not (self.folder / "died").exists():
                (self.folder / "died").write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(planned, advance)

    assert run(tmp_path, engine, DrawAndDie(tmp_path / "there")) == expected


def test_what_ends_every_worker_ends_the_run_in_a_line(engine: Any, tmp_path: Path) -> None:
    class Die(Draw):
        def __call__(self, planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    with pytest.raises(UserError, match="a job ended 5 workers, the last by: ") as caught:
        run(tmp_path, engine, Die(tmp_path / "there"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [1, 2])
def test_jobs_of_lost_workers_come_before_all_others(left: int) -> None:
    """The first job is lost when as many others are done as may be ahead of it, and perhaps most of the workers."""
    from m2m.engines import cluster

    class Pool(cluster._Pool):
        def __init__(self) -> None:
            super().__init__(None, "CPU", least=1)
            self._hired = {cluster._Hired(None, node=f"{number}") for number in range(2)}
            self.given: list[int] = []

        def _hire(self) -> None:
            pass

        def _give(self, worker: Any, index: int, job: Any) -> None:
            worker.at += 1
            self.given.append(index)
            self._given[cast(Any, object())] = index, job, worker

        def _settle(self, advance: Any) -> tuple[dict[int, Any], list[tuple[int, Any]]]:
            assert self._given, "nothing is being made, and nothing is given"
            rest = {key: one for key, one in self._given.items() if one[0] or self.given.count(0) > 1}
            chosen = rest or dict(self._given)  # the first job hangs for as long as any other is being made
            lost = not rest
            for key in [*chosen]:
                *_, worker = self._given.pop(key)
                worker.at -= 1
                if lost and len(self._hired) > left:
                    self._hired.discard(worker)
            jobs = [(index, job) for index, job, _ in chosen.values()]
            return ({}, jobs) if lost else (dict(jobs), [])

    pool = Pool()
    assert [*pool.map(((number, None) for number in range(100)), lambda *_, **__: None)] == [*range(100)]
    assert pool.given.count(0) == 2
    most = pool.given[: pool.given.index(0, 1)]
    assert max(most) < cluster.LEAD * cluster.JOBS_EACH * 2


def test_a_persons_mistake_comes_back_as_itself(engine: Any, tmp_path: Path) -> None:
    class Refuse(Draw):
        def __call__(self, planned: Sequence[PlannedSet], advance: Advance) -> MadeSets:
            raise UserError("the pictures are not there")

    with pytest.raises(UserError, match=r"^the pictures are not there$"):
        run(tmp_path, engine, Refuse(tmp_path / "there"))


def test_a_shared_folder_is_found_elsewhere(engine: Any, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "vae").mkdir(parents=True)
    (weights / "vae" / "a.txt").write_text("a")
    (weights / "b.txt").write_text("b")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "c.txt").write_text("c")
    (weights / "linked").symlink_to(tmp_path / "else")
    find = pickle.loads(pickle.dumps(engine.share(weights)))  # noqa: S301  # as a job takes it along
    (weights / "b.txt").write_text("of later")
    assert {path.name: path.read_text() for path in find().rglob("*.txt")} == {"a.txt": "a", "b.txt": "b", "c.txt": "c"}
    assert find() == find() != weights


def test_a_node_that_is_killed_and_one_that_comes_change_no_byte(
    cluster: Any, engine: Any, expected: list[str], tmp_path: Path
) -> None:
    spare = cluster.add_node(wait=False, num_cpus=1)
    cluster.wait_for_nodes(timeout=300)
    killer = threading.Timer(2.0, lambda: cluster.remove_node(spare, allow_graceful=False))
    killer.start()
    assert run(tmp_path, engine, Draw(tmp_path / "there", 1.0)) == expected
    killer.join()
