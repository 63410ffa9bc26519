"""`celery inspect cache_stats` and `celery control cache_clear_l1` reach every process of a worker and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.control import _totals
from celery_cachetiers.metrics.totals import added_up
from celery_cachetiers.roll_call import CLEAR
from tests.integration.apps.local import cached_app, closing, wait_listening, worker_of
from tests.integration.apps.worker_setup import Deployment, new_name
from tests.processes import ROOT, wait_until
from tests.servers import RedisServer
from tests.workers import Worker

TASK = "work.message"
PATIENCE = 60.0

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

Start = Callable[..., Worker]


@pytest.fixture
def deployment(redis_server: RedisServer) -> Iterator[Deployment]:
    with Deployment(redis_server) as deployment:
        yield deployment


@pytest.fixture
def start(deployment: Deployment) -> Iterator[Start]:
    workers: list[Worker] = []

    def start(**keywords: Any) -> Worker:
        workers.append(deployment.worker(**keywords))
        workers[-1].start()
        return workers[-1].wait_ready()

    yield start
    for worker in workers:
        print(f"---- log of {worker!r}\n{worker.log_tail(40)}")
        worker.close()


def run(deployment: Deployment, name: str, queue: str | None = None) -> str:
    result = deployment.task(TASK).apply_async((name,), queue=queue)
    return str(result.get(timeout=PATIENCE))


def inspected(deployment: Deployment, worker: Worker, *arguments: str) -> dict[str, Any]:
    given = {"task": arguments[0]} if arguments else {}
    inspect = deployment.app.control.inspect(destination=[worker.hostname], timeout=PATIENCE)
    return dict(inspect._request("cache_stats", **given)[worker.hostname])


def cleared(deployment: Deployment, *workers: Worker) -> dict[str, Any]:
    names = [worker.hostname for worker in workers]
    replies = deployment.app.control.broadcast("cache_clear_l1", reply=True, destination=names, timeout=PATIENCE)
    return {name: reply for each in replies for name, reply in each.items()}


def fill(deployment: Deployment, worker: Worker, processes: int, queue: str | None = None) -> dict[str, Any]:
    """Returns what the worker tells when so many of its processes have something in their L1."""

    def filled() -> bool:
        run(deployment, new_name(), queue)
        found.append(inspected(deployment, worker))
        return sum(each["l1_entries"] > 0 for each in found[-1]["processes"] if each) >= processes

    found: list[dict[str, Any]] = []
    wait_until(filled, timeout=PATIENCE, message=f"entries in L1 of {processes} processes")
    return found[-1]


def test_the_celery_command_lists_and_sends_them(deployment: Deployment, start: Start) -> None:
    if "cachetiers" not in entry_points(group="celery.commands").names:
        pytest.skip("the package was installed before it had the command")
    worker = start()
    name = new_name()
    run(deployment, name)

    def celery(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", deployment.module, *arguments],
            env={**os.environ, **deployment.environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "cache_stats [TASK]" in celery("inspect", "--list")
    assert "cache_clear_l1" in celery("control", "--list")
    to = ("-d", worker.hostname, "--timeout", "20")
    stats = json.loads(celery("inspect", "cache_stats", TASK, "--json", *to))[worker.hostname]
    assert list(stats["tasks"]) == [TASK]
    assert stats["tasks"][TASK]["misses"] == 1
    assert json.loads(celery("control", "cache_clear_l1", "--json", *to))[0][worker.hostname]["ok"]


def test_the_children_of_a_prefork_pool_tell_what_each_has_counted(deployment: Deployment, start: Start) -> None:
    worker = start(concurrency=2)
    names = [new_name() for _ in range(8)]
    for name in names:
        run(deployment, name)
    stats = fill(deployment, worker, 1)

    children, told = set(worker.children()), {each["pid"]: each for each in stats["processes"]}
    assert told.keys() | set(stats["silent"]) == children | {worker.pid}
    assert [pid for pid, each in told.items() if each["main"]] == [worker.pid]
    assert sum(each["computes"] for pid, each in told.items() if pid in children) == stats["tasks"][TASK]["computes"]
    assert stats["tasks"][TASK]["computes"] >= 9
    assert stats["ratio"] == 0.0
    assert {each["breaker"] for each in told.values() if "breaker" in each} == {"closed"}


def test_a_child_that_has_not_used_the_cache_is_named_as_silent(deployment: Deployment, start: Start) -> None:
    worker = start(concurrency=1)
    stats = inspected(deployment, worker)

    assert (stats["silent"], stats["tasks"]) == (worker.children(), {})
    assert [each["pid"] for each in stats["processes"]] == [worker.pid]


def test_clearing_empties_l1_in_children_too_and_leaves_what_is_in_redis(deployment: Deployment, start: Start) -> None:
    worker = start(concurrency=1)
    fill(deployment, worker, 1)
    name = new_name()
    assert run(deployment, name) == f"{name}#1"
    [reply] = cleared(deployment, worker).values()
    after = inspected(deployment, worker)

    assert reply["entries"] > 0
    assert {each["pid"] for each in reply["processes"]} == {worker.pid, *worker.children()}
    assert [each["l1_entries"] for each in after["processes"]] == [0, 0]
    assert run(deployment, name) == f"{name}#1"
    assert deployment.book.computes(name) == 1


def test_another_workers_l1_is_left_alone(deployment: Deployment, start: Start) -> None:
    one = start(concurrency=1, queues=["one"])
    other = start(concurrency=1, queues=["other"])
    fill(deployment, one, 1, "one")
    fill(deployment, other, 1, "other")
    cleared(deployment, one)

    assert sum(each["l1_entries"] for each in inspected(deployment, one)["processes"]) == 0
    assert sum(each["l1_entries"] for each in inspected(deployment, other)["processes"]) > 0


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_a_pool_without_processes_tells_and_clears_at_once(deployment: Deployment, start: Start, pool: str) -> None:
    worker = start(pool=pool, concurrency=1)
    stats = fill(deployment, worker, 1)

    assert [each["pid"] for each in stats["processes"]] == [worker.pid]
    assert stats["silent"] == []
    assert cleared(deployment, worker)[worker.hostname]["entries"] > 0
    assert [each["l1_entries"] for each in inspected(deployment, worker)["processes"]] == [0]


def test_one_task_can_be_asked_for(deployment: Deployment, start: Start) -> None:
    worker = start(pool="solo")
    run(deployment, new_name())
    deployment.task("profile").apply_async((new_name(),)).get(timeout=PATIENCE)

    assert set(inspected(deployment, worker)["tasks"]) == {TASK, "profile"}
    [process] = inspected(deployment, worker)["processes"]
    [of_one] = inspected(deployment, worker, TASK)["processes"]
    assert (process["computes"], of_one["computes"], of_one["misses"]) == (2, 1, 1)


def test_a_task_that_there_is_not_is_an_error_with_those_that_look_alike(deployment: Deployment, start: Start) -> None:
    worker = start(pool="solo")

    assert inspected(deployment, worker, "proj.nope") == {"error": "there is no task proj.nope"}
    assert f"there is no task {TASK}s; is it {TASK}" in inspected(deployment, worker, f"{TASK}s")["error"]
    assert "celery.chain is not memoized" in inspected(deployment, worker, "celery.chain")["error"]
    assert inspected(deployment, worker, TASK)["total"]["misses"] == 0


def test_what_a_process_cannot_tell_of_itself_is_left_out(deployment: Deployment, start: Start) -> None:
    worker = start(pool="solo")
    run(deployment, new_name())
    found = inspected(deployment, worker)

    for row in (found["total"], found["tasks"][TASK]):
        assert row["misses"] == 1
        assert not {"first_misses", "repeated_misses"} & row.keys()
    assert set(inspected(deployment, worker, TASK)["tasks"]) == {TASK}
    assert inspected(deployment, worker, TASK)["total"]["misses"] == 1


def test_without_redis_the_main_process_tells_of_itself(namespace: str) -> None:
    with closing(cached_app(namespace, result_backend=None)) as app:

        @app.task(base=CachedTask, name="alone")
        def alone(number: int) -> int:
            return number

        with worker_of(app) as worker:
            alone(1)
            alone(1)
            reply = app.control.inspect(destination=[worker.hostname], timeout=PATIENCE)._request("cache_stats")
            [stats] = reply.values()

        assert (stats["tasks"]["alone"]["l1_hits"], stats["silent"]) == (1, [])
        assert "breaker" not in stats["processes"][0]


# -- over the backplane ------------------------------------------------------------------------------------------------


def test_a_process_does_what_its_family_is_asked_and_not_what_another_one_is(
    namespace: str, redis_server: RedisServer
) -> None:
    with closing(cached_app(namespace, redis_server.url())) as app, redis_server.client() as client:
        wait_listening(app)
        for of in ("another", CacheTiers(app).roll_call.family):
            question = {"ask": CLEAR, "of": of, "to": f"{namespace}:answers:{of}"}
            client.publish(f"{namespace}:inv", json.dumps(question))
        found: Any = client.blpop([f"{namespace}:answers:{CacheTiers(app).roll_call.family}"], timeout=10)

        assert json.loads(found[1]) == {"pid": os.getpid(), "entries": 0}
        assert not client.exists(f"{namespace}:answers:another")  # it came before


@pytest.mark.parametrize("question", [{}, {"ask": "something newer"}, {"ask": None, "of": 1}])
def test_a_question_that_is_not_understood_does_no_harm(
    namespace: str, redis_server: RedisServer, question: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(cached_app(namespace, redis_server.url())) as app, redis_server.client() as client:
        wait_listening(app)
        gaps = CacheTiers(app).counters.process.gaps
        family = CacheTiers(app).roll_call.family
        client.publish(f"{namespace}:inv", json.dumps(question))
        client.publish(f"{namespace}:inv", json.dumps({"ask": CLEAR, "of": family, "to": f"{namespace}:to"}))

        assert client.blpop([f"{namespace}:to"], timeout=10)
        assert CacheTiers(app).counters.process.gaps == gaps
        assert caplog.text == ""


def test_all_processes_merge_what_they_have_counted_when_they_are_asked_to(
    namespace: str, redis_server: RedisServer
) -> None:
    with (
        closing(cached_app(namespace, redis_server.url())) as ours,
        closing(cached_app(namespace, redis_server.url())) as theirs,
    ):

        @theirs.task(base=CachedTask, name="counted")
        def counted(number: int) -> int:
            return number

        counted(1)
        wait_listening(theirs)
        server = CacheTiers(ours).server()
        assert server is not None
        late = CacheTiers(ours).roll_call.merged(server, patience=5.0)
        lists = server.ask("KEYS", f"{namespace}:stats:@answers:*")
        server.close()

        assert late == 0
        assert CacheTiers(ours).counting.totals().tasks["counted"].misses == 1
        assert lists == []


def test_a_process_that_does_not_answer_is_told_as_late(namespace: str, redis_server: RedisServer) -> None:
    with closing(cached_app(namespace, redis_server.url())) as app:
        server = CacheTiers(app).server()
        assert server is not None
        with redis_server.client() as client, client.pubsub() as deaf:
            deaf.subscribe(f"{namespace}:inv")
            deaf.get_message(timeout=5)

            assert CacheTiers(app).roll_call.merged(server, patience=0.2) == 1
        server.close()


def test_sums_of_processes_have_the_misses_that_invalidations_made() -> None:
    one, other = ({"tasks": {}, "process": {}, "invalidated": {}, "outdated": {"user:*": each}} for each in (1, 2))

    assert added_up(map(_totals, (one, other))).outdated == {"user:*": 3}
