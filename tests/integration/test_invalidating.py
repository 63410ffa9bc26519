"""`invalidates=` on real workers: what is read once a writer's result can be seen, and what Redis or a kill changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import chain

from celery_cachetiers import MISSING, CachedResult, CacheTiers
from celery_cachetiers.client import Script
from tests.integration.apps.local import run_python
from tests.integration.apps.worker_setup import Deployment, Start, new_name, published, starter
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServers
from tests.workers import Worker

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
READERS = 25
LATENCY = 0.02


@pytest.fixture(scope="module")
def proxy(servers: RedisServers) -> Iterator[RedisProxy]:
    """Between the workers and their L2; this process asks L2 itself, and so is faster than any worker."""
    with RedisProxy(servers.shared().port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def start(servers: RedisServers) -> Iterator[Start]:
    with starter(servers) as start:
        yield start


@pytest.fixture(scope="module", params=["prefork", "threads"])
def deployment(request: pytest.FixtureRequest, start: Start, proxy: RedisProxy) -> tuple[Deployment, Worker]:
    # The worker's L2 is behind the proxy; a deployment hands its own settings to its workers, so it is told apart here.
    deployment, worker = start(
        conf={"cachetiers_url": proxy.url(3), "cachetiers_breaker_window": 0.0}, pool=request.param, concurrency=2
    )
    return deployment, worker


@pytest.fixture(autouse=True)
def healed(proxy: RedisProxy) -> Iterator[None]:
    yield
    proxy.on_command = None
    proxy.heal()


def show(deployment: Deployment, row: str) -> Any:
    """What is shown now: from L2 if it is there."""
    return deployment.task("show")(row)


def cached(deployment: Deployment, row: str) -> Any:
    return deployment.task("show").cache.get(row)


INVALIDATE = Script("invalidate")


def slow_down_invalidations(proxy: RedisProxy) -> None:
    def hold(command: tuple[bytes, ...]) -> None:
        if INVALIDATE.sha.encode() in command:
            time.sleep(LATENCY)

    proxy.on_command = hold


# ---- before the result -----------------------------------------------------------------------------------------------


def test_whoever_has_waited_for_the_writer_reads_what_it_wrote(
    deployment: tuple[Deployment, Worker], proxy: RedisProxy
) -> None:
    here, _ = deployment
    slow_down_invalidations(proxy)
    rows = [new_name() for _ in range(READERS)]
    assert [show(here, row) for row in rows] == [None] * READERS

    def read(row: str) -> Any:
        here.task("write").delay(row, "new").get(timeout=PATIENCE)
        return show(here, row)

    assert [read(row) for row in rows] == ["new"] * READERS


def test_the_next_step_of_a_chain_reads_what_the_writer_wrote(
    deployment: tuple[Deployment, Worker], proxy: RedisProxy
) -> None:
    here, _ = deployment
    slow_down_invalidations(proxy)
    rows = [new_name() for _ in range(READERS)]
    assert [show(here, row) for row in rows] == [None] * READERS

    chains = [chain(here.task("write").s(row, "new"), here.task("look").si(row)) for row in rows]

    # One after the other, so that a slot is free for the next step as soon as it is sent.
    assert [each.delay().get(timeout=PATIENCE) for each in chains] == ["new"] * READERS


def test_a_failed_writer_has_invalidated_when_its_failure_can_be_seen(
    deployment: tuple[Deployment, Worker], proxy: RedisProxy
) -> None:
    here, _ = deployment
    slow_down_invalidations(proxy)
    row = new_name()
    show(here, row)
    here.book.put_up_gate(f"write {row}")
    here.book.open_gate(f"write {row}", outcome="fail")
    result = here.task("write").delay(row, "half")

    with pytest.raises(ValueError, match=f"write {row}#1"):
        result.get(timeout=PATIENCE)
    assert show(here, row) == "half"


def test_every_attempt_of_a_retried_writer_invalidates_and_once_more_before_the_next_is_sent(
    deployment: tuple[Deployment, Worker], proxy: RedisProxy
) -> None:
    here, _ = deployment
    row = new_name()
    show(here, row)
    CacheTiers(here.app).invalidate_tag("any")  # so that the server knows the script: one that it is told is sent twice
    proxy.reset()
    here.task("write.retried").delay(row, "new").get(timeout=PATIENCE)

    assert sum(trip[-2:] == ("EVALSHA", "PUBLISH") for trip in proxy.trips) == 3


# ---- cached writers --------------------------------------------------------------------------------------------------


def test_a_hit_of_a_cached_writer_is_answered_by_the_worker_and_writes_nothing(
    deployment: tuple[Deployment, Worker],
) -> None:
    here, _ = deployment
    row, task = new_name(), here.task("write.cached")
    assert task.delay(row, "new").get(timeout=PATIENCE) == "new"
    show(here, row)
    with published() as messages:
        again = task.delay(row, "new")

        assert again.get(timeout=PATIENCE) == "new"
        assert (messages, isinstance(again, CachedResult)) == (["write.cached"], False)
    assert here.book.computes(f"write {row}") == 1
    assert cached(here, row) == "new"


# ---- Redis away ------------------------------------------------------------------------------------------------------


def test_what_redis_did_not_take_arrives_later_through_the_broker(
    deployment: tuple[Deployment, Worker], proxy: RedisProxy
) -> None:
    here, worker = deployment
    row = new_name()
    show(here, row)
    proxy.refuse()

    assert here.task("write").delay(row, "new").get(timeout=PATIENCE) == "new"
    worker.wait_for_log("a worker was asked to invalidate")
    assert cached(here, row) is None  # nobody could be told yet
    proxy.heal()

    wait_until(lambda: cached(here, row) is MISSING, timeout=40, message="the invalidation")
    assert show(here, row) == "new"


def test_what_a_soft_time_limit_cuts_short_arrives_through_the_broker_too(start: Start, proxy: RedisProxy) -> None:
    here, worker = start(
        conf={"cachetiers_url": proxy.url(3), "cachetiers_timeout": 10.0}, pool="prefork", concurrency=2
    )
    row = new_name()
    show(here, row)
    proxy.hang()

    with pytest.raises(SoftTimeLimitExceeded):
        here.task("write").apply_async((row, "new"), soft_time_limit=1).get(timeout=PATIENCE)
    worker.wait_for_log("a worker was asked to invalidate")
    assert cached(here, row) is None
    proxy.cut()
    proxy.heal()

    wait_until(lambda: cached(here, row) is MISSING, timeout=40, message="the invalidation")
    assert show(here, row) == "new"


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefork(start: Start) -> tuple[Deployment, Worker]:
    return start(pool="prefork", concurrency=2)


def begin(here: Deployment, task: str, row: str) -> tuple[Any, int]:
    """A writer that has written, and waits: its result, and the process that runs it."""
    show(here, row)
    here.book.put_up_gate(f"write {row}")
    result = here.task(task).delay(row, "half")
    _, pid = here.book.started(f"write {row}")
    return result, pid


def assert_invalidated(here: Deployment, row: str) -> None:
    wait_until(lambda: cached(here, row) is MISSING, timeout=PATIENCE, message="the invalidation")
    assert show(here, row) == "half"


def test_the_workers_main_process_invalidates_for_a_child_that_was_killed(prefork: tuple[Deployment, Worker]) -> None:
    here, worker = prefork
    row = new_name()
    result, pid = begin(here, "write", row)
    assert cached(here, row) is None
    worker.kill_child(pid)

    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    assert_invalidated(here, row)


def test_and_for_one_that_was_terminated(prefork: tuple[Deployment, Worker]) -> None:
    here, _ = prefork
    row = new_name()
    result, _ = begin(here, "write", row)
    result.revoke(terminate=True, signal="SIGKILL")

    assert_invalidated(here, row)


def test_and_for_one_that_has_outrun_its_time_limit(prefork: tuple[Deployment, Worker]) -> None:
    here, _ = prefork
    row = new_name()
    result, _ = begin(here, "write.hurried", row)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert_invalidated(here, row)


# ---- without an extension --------------------------------------------------------------------------------------------


def test_a_task_that_was_bound_before_the_library_was_imported_is_found_at_finalize() -> None:
    program = """
        from celery import Celery

        app = Celery("early", broker="memory://")

        @app.task(invalidates=["user:{user_id}"])
        def rename(user_id):
            pass

        rename(1)
        from celery_cachetiers import CacheTiers

        app.finalize()
        assert list(app._cachetiers.invalidations) == [rename.name]
        print(len(app.tasks) > 4)
    """
    assert run_python(program) == "True"


# ---- a worker's start ------------------------------------------------------------------------------------------------

DECLARED = "tests.integration.apps.declared_app"


def declared(servers: RedisServers, template: str) -> Worker:
    return Worker(DECLARED, env={"DECLARED_BROKER": servers.shared().url(5), "DECLARED_TEMPLATE": template})


def test_a_worker_warns_of_what_is_invalidated_and_nothing_depends_on(servers: RedisServers) -> None:
    with declared(servers, "usr:{user_id}") as worker:
        warnings = [line for line in worker.log_text().splitlines() if "no task here depends on it" in line]

    assert len(warnings) == 1
    assert f"{DECLARED}.rename invalidates 'usr:{{}}'" in warnings[0]


def test_a_worker_does_not_start_with_a_declaration_that_cannot_be_used(servers: RedisServers) -> None:
    worker = declared(servers, "user:{id}")
    try:
        worker.start()
        wait_until(lambda: not worker.running, timeout=PATIENCE, message="the end of the worker")

        assert "ready." not in worker.log_text()
        assert f"invalidates='user:{{id}}' of task {DECLARED}.rename is not usable" in worker.log_text()
    finally:
        worker.close()
