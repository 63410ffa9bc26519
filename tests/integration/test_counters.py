"""The counters of many processes, added up, are what has happened: with children, restarts, kills, redeliveries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from celery_cachetiers import CacheTiers
from tests.integration.apps.counters_app import SECONDS, TASK
from tests.integration.apps.worker_setup import Deployment, _path, new_name
from tests.processes import ROOT, Process, wait_until
from tests.servers import RedisServers
from tests.workers import Worker

APP = "tests.integration.apps.counters_app"
PATIENCE = 60
CLIENTS, CALLS = 3, 10_000
WARM = 90.0
"""Seconds for a warm shutdown: billiard's children may wait 30 s for their last results to be taken."""

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


class Fleet:
    """A deployment whose workers and clients run the observed app."""

    def __init__(self, deployment: Deployment, directory: Path, stack: ExitStack) -> None:
        self.deployment, self.book, self._directory, self._stack = deployment, deployment.book, directory, stack

    def worker(self, every: float = 1.0, **keywords: Any) -> Worker:
        env = {**self.deployment.environment(), SECONDS: str(every)}
        worker = self._stack.enter_context(Worker(APP, env=env, **{"concurrency": 2, **keywords}))
        self._stack.callback(lambda: print(f"---- log of {worker!r}\n{worker.log_tail(60)}"))
        return worker

    def run(self, code: str, every: float) -> Process:
        """A process that runs some code after it has imported the app."""
        env = _path({**self.deployment.environment(), SECONDS: str(every)})
        process = Process(
            [sys.executable, "-c", f"from {APP} import *\ntask, tiers = app.tasks[TASK], CacheTiers(app)\n{code}"],
            log=self._directory / f"log-{os.urandom(4).hex()}", env=env, cwd=ROOT,
        )  # fmt: skip
        process.start()
        self._stack.callback(process.kill)
        return process

    def client(self, seed: int, calls: int) -> Process:
        return self.run(f"run({seed}, {calls})", 1.0)

    def wait_for_progress(self, calls: int, *processes: Process) -> None:
        def there() -> bool:
            return int(self.book.client.get("progress") or 0) >= calls

        wait_until(there, timeout=4 * PATIENCE, message=f"{calls} calls", process=processes[0])

    def truth(self) -> dict[str, int]:
        return {name: int(count) for name, count in self.book.client.hgetall("truth").items()}

    def counted(self, name: str = "misses") -> float:
        """What was merged so far, of one counter; asked of Redis."""
        sums = CacheTiers(self.deployment.app).counting.totals(TASK).tasks
        return float(getattr(sums[TASK], name)) if sums else 0.0

    def wait_for(self, count: float, name: str = "misses") -> None:
        """Returns when the sums have come to a number."""
        wait_until(lambda: self.counted(name) >= count, timeout=PATIENCE, message=f"{count} {name}")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        servers = RedisServers()
        stack.callback(servers.close)
        deployment = stack.enter_context(
            Deployment(servers.shared(), task_reject_on_worker_lost=True, worker_prefetch_multiplier=4)
        )
        yield Fleet(deployment, tmp_path, stack)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_after_ten_thousand_calls_with_restarts_in_between_the_counters_are_what_has_happened(fleet: Fleet) -> None:
    workers = [fleet.worker(), fleet.worker()]
    clients = [fleet.client(seed, CALLS // CLIENTS + (seed < CALLS % CLIENTS)) for seed in range(CLIENTS)]
    for at, worker in ((CALLS // 10, workers[0]), (CALLS // 3, workers[1])):
        fleet.wait_for_progress(at, *clients)
        assert worker.stop(WARM) == 0, worker.log_tail()
        worker.start()
        worker.wait_ready()
    fleet.book.client.rpush("restarted", "both")
    for client in clients:
        assert client._popen is not None
        try:
            assert client._popen.wait(4 * PATIENCE) == 0, client.log_tail()
        except subprocess.TimeoutExpired:
            raise AssertionError(client.log_tail()) from None
    for worker in workers:
        assert worker.stop(WARM) == 0, worker.log_tail()

    truth, stats = fleet.truth(), CacheTiers(fleet.deployment.app).stats()
    [(name, counted)] = stats["tasks"].items()
    print(truth, counted)
    assert name == TASK
    assert truth["direct"] + truth["answered"] + truth["sent"] == CALLS
    observed = {key: truth[key] for key in truth.keys() & counted.keys()}
    assert {key: counted[key] for key in observed} == observed
    assert counted["publish_hits"] == truth["answered"]
    bodies = sum(fleet.book.computes(key.partition(":")[2]) for key in fleet.book.client.keys("computes:*"))
    assert counted["computes"] == counted["misses"] == bodies
    assert counted["hits"] + counted["coalesced"] + counted["misses"] == (
        truth["direct"] + truth["answered"] + truth["ran"]
    )
    assert stats["ratio"] == counted["hits"] / (counted["hits"] + counted["misses"])


def test_a_killed_process_loses_what_it_has_counted_since_its_last_merge_and_no_more(fleet: Fleet) -> None:
    code = """
for number in range(5):
    task(f"before{number}")
assert tiers.counting.merger.merge()
for number in range(3):
    task(f"after{number}")
app.book.client.rpush("counted", 1)
app.book.client.blpop("never")
"""
    process = fleet.run(code, 3600.0)
    assert fleet.book.client.blpop(["counted"], timeout=PATIENCE), process.log_tail()
    process.kill()

    assert fleet.counted() == 5


def test_a_process_merges_by_itself_as_often_as_it_should(fleet: Fleet) -> None:
    code = """
task("one")
app.book.client.blpop("go on")
task("two")
app.book.client.blpop("never")
"""
    process = fleet.run(code, 0.05)
    fleet.wait_for(1)
    fleet.book.client.rpush("go on", 1)
    fleet.wait_for(2)
    process.kill()

    assert fleet.counted() == 2


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise ValueError"])
def test_a_process_that_ends_by_itself_loses_nothing(fleet: Fleet, end: str) -> None:
    process = fleet.run(f"task('one')\ntask('one')\n{end}", 3600.0)
    assert process._popen is not None
    process._popen.wait(PATIENCE)

    # The second one is a hit of L1, or of L2 if the backplane did not connect in time.
    assert (fleet.counted(), fleet.counted("hits")) == (1, 1)


def test_a_forked_child_merges_its_own_and_nothing_of_its_parent(fleet: Fleet) -> None:
    code = """
for number in range(3):
    task(f"parent{number}")
if os.fork() == 0:
    task("child")
    sys.exit()
os.wait()
"""
    process = fleet.run(code, 3600.0)
    assert process._popen is not None
    assert process._popen.wait(PATIENCE) == 0, process.log_tail()

    assert fleet.counted() == 4


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_worker_of_any_pool_merges_when_it_ends(fleet: Fleet, pool: str) -> None:
    worker = fleet.worker(3600.0, pool=pool, concurrency=1 if pool == "solo" else 2)
    names = [new_name() for _ in range(6)]
    for name in names:
        assert fleet.deployment.task(TASK).delay(name).get(timeout=PATIENCE) == f"{name}#1"
    assert worker.stop() == 0, worker.log_tail()

    assert (fleet.counted(), fleet.counted("computes")) == (6, 6)


def test_the_stats_of_a_process_have_its_own_latest_and_those_of_all_others(fleet: Fleet) -> None:
    tiers, task, name = CacheTiers(fleet.deployment.app), fleet.deployment.task(TASK), new_name()
    process = fleet.run(f"task({name!r})", 3600.0)
    assert process._popen is not None
    assert process._popen.wait(PATIENCE) == 0, process.log_tail()
    task(name)
    first = tiers.stats()["tasks"][TASK]
    task(name)
    tiers.invalidate_tag(f"name:{name}")
    stats = tiers.stats()

    assert (first["misses"], first["hits"]) == (1, 1)
    assert (stats["total"]["hits"], stats["ratio"]) == (2, 2 / 3)
    assert (stats["invalidated"], stats["process"]["invalidated"]) == ({"name:*": 1}, 1)
    assert tiers.stats(TASK)["tasks"] == stats["tasks"]
    assert tiers.stats("another")["tasks"] == {}


def test_what_a_workers_main_process_answers_counts_too(fleet: Fleet) -> None:
    worker, name = fleet.worker(0.05), new_name()
    results = [fleet.deployment.app.send_task(TASK, (name,)) for _ in range(2)]
    for result in results:
        assert result.get(timeout=PATIENCE) == f"{name}#1"
    for _ in range(4):  # the first of them brings the value into the child's L1, or the main process'
        assert fleet.deployment.app.send_task(TASK, (name,)).get(timeout=PATIENCE) == f"{name}#1"
    assert worker.stop(WARM) == 0, worker.log_tail()

    assert fleet.counted("hits") + fleet.counted("coalesced") + fleet.counted("misses") == 6


def test_duplicates_that_a_worker_holds_count_as_coalesced_and_as_waits(fleet: Fleet) -> None:
    worker, name = fleet.worker(0.05), new_name()
    fleet.book.put_up_gate(name)
    results = [fleet.deployment.app.send_task(TASK, (name,)) for _ in range(4)]
    fleet.deployment.wait_for_held(3, TASK, name)
    fleet.book.open_gate(name)
    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 4
    assert worker.stop(WARM) == 0, worker.log_tail()

    names = ("misses", "coalesced", "held", "waits")
    assert [fleet.counted(each) for each in names] == [1, 3, 3, 3]
    assert fleet.counted("other_seconds_saved") == pytest.approx(3 * fleet.counted("compute_seconds"), rel=0.5)
    assert fleet.counted("wait_seconds") > 0


def test_a_message_that_is_delivered_again_counts_as_one_more_call(fleet: Fleet) -> None:
    worker, name = fleet.worker(0.05, concurrency=1), new_name()
    fleet.book.put_up_gate(name)
    result = fleet.deployment.task(TASK).delay(name)
    _, pid = fleet.book.started(name)
    fleet.wait_for(1)
    worker.kill_child(pid)
    fleet.book.started(name)
    fleet.book.open_gate(name)

    assert result.get(timeout=PATIENCE) == f"{name}#2"
    fleet.wait_for(1, "computes")
    assert (fleet.counted(), fleet.counted("computes")) == (2, 1)
