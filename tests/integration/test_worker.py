"""Memoized tasks on real workers: every pool, both brokers, every way a message comes about, and every way to die."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import celery
import pytest
from billiard.exceptions import WorkerLostError
from celery.result import AsyncResult
from kombu import Connection

from celery_cachetiers import MISSING, CachedResult
from tests.integration.apps.worker_setup import Deployment, new_name, published
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.rabbit import RabbitServer
from tests.servers import RedisServers
from tests.workers import Worker

# Celery's Redis backend calls redis-py's setex, which redis-py 8.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
"""Seconds after which a result counts as one that never comes."""


@pytest.fixture(
    scope="module",
    params=[
        "prefork", "threads", "solo", "gevent", pytest.param("prefork-rabbitmq", marks=pytest.mark.rabbitmq),
    ],
)  # fmt: skip
def deployment(request: pytest.FixtureRequest, servers: RedisServers) -> Iterator[Deployment]:
    """A worker of each pool over Redis, and one of prefork over RabbitMQ."""
    pool, _, broker = request.param.partition("-")
    url = request.getfixturevalue("rabbit_server").url() if broker else None
    with Deployment(servers(), broker=url) as deployment:
        worker = deployment.worker("-E", pool=pool, concurrency=1 if pool == "solo" else 4)
        with worker:
            deployment.pool = pool
            yield deployment
            print(f"---- log of {worker!r}\n{worker.log_tail(60)}")


@pytest.fixture
def name() -> str:
    return new_name()


# -- every pool ---------------------------------------------------------------------------------------------------


def test_a_miss_is_computed_by_the_worker_and_the_next_call_needs_no_message(deployment: Deployment, name: str) -> None:
    profile = deployment.task("profile")
    with published() as messages:
        first = profile.delay(name)
        assert not isinstance(first, CachedResult)
        value = first.get(timeout=PATIENCE)
        second = profile.delay(name)

        assert messages == ["profile"]
    assert isinstance(second, CachedResult)
    assert second.get() == value == {"user": name, "compute": 1, "roles": ["a", "b"]}
    assert second.id != first.id
    assert AsyncResult(second.id, app=deployment.app).get(timeout=PATIENCE) == value
    assert deployment.book.computes(name) == 1


def test_duplicates_in_flight_all_end_with_the_value_under_their_own_ids_and_the_body_runs_once(
    deployment: Deployment, name: str
) -> None:
    book, task = deployment.book, deployment.task("work.message")
    book.put_up_gate(name)
    results = [task.delay(name)]
    book.started(name)
    results += [task.delay(name) for _ in range(5)]
    results += [deployment.app.send_task("work.message", (name,)) for _ in range(2)]
    if deployment.pool != "solo":  # whose loop stands still while a body runs
        deployment.wait_for_held(7, "work.message", name)
    book.open_gate(name)

    assert [result.get(timeout=PATIENCE) for result in results] == [f"{name}#1"] * 8
    assert [result.state for result in results] == ["SUCCESS"] * 8
    assert len({result.id for result in results}) == 8
    assert book.computes(name) == 1


def test_a_failing_body_fails_its_own_message_and_the_next_duplicate_computes(
    deployment: Deployment, name: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    first = deployment.app.send_task("work.unshared", (name,))
    book.started(name)
    second = deployment.app.send_task("work.unshared", (name,))
    book.open_gate(name, 2)
    book.open_gate(name, 1, "fail")

    assert second.get(timeout=PATIENCE) == f"{name}#2"
    with pytest.raises(ValueError, match=f"{name}#1"):
        first.get(timeout=PATIENCE)
    assert (first.state, second.state) == ("FAILURE", "SUCCESS")
    assert book.overlaps(name) == 0


def test_a_failing_leader_fails_every_duplicate_that_waited_for_it_and_the_body_runs_once(
    deployment: Deployment, name: str
) -> None:
    if deployment.pool == "solo":
        pytest.skip("the worker's loop stands still while a body runs: nobody waits")
    book = deployment.book
    book.put_up_gate(name)
    results = [deployment.app.send_task("work.message", (name,))]
    book.started(name)
    results += [deployment.app.send_task("work.message", (name,)) for _ in range(3)]
    deployment.wait_for_held(3, "work.message", name)
    book.open_gate(name, 1, "fail")

    for result in results:
        with pytest.raises(ValueError, match=f"^{name}#1$"):
            result.get(timeout=PATIENCE)
    assert [result.state for result in results] == ["FAILURE"] * 4
    assert book.computes(name) == 1


def test_a_task_sent_by_name_is_cached_and_serves_from_the_cache(deployment: Deployment, name: str) -> None:
    results = []
    for _ in range(3):
        results.append(deployment.app.send_task("profile", kwargs={"user_id": name}))
        results[-1].get(timeout=PATIENCE)

    assert [result.get()["compute"] for result in results] == [1, 1, 1]
    assert isinstance(deployment.task("profile").delay(name), CachedResult)
    assert deployment.book.computes(name) == 1


def test_an_invalidation_that_the_worker_executes_makes_the_next_read_compute(
    deployment: Deployment, name: str
) -> None:
    profile = deployment.task("profile")
    assert profile.delay(name).get(timeout=PATIENCE)["compute"] == 1
    assert profile.delay(name).get(timeout=PATIENCE)["compute"] == 1

    deployment.app.tasks["celery_cachetiers.invalidate_tag"].delay(f"user:{name}").get(timeout=PATIENCE)

    # The worker's own L1 as well: by name, so that the caller's look does not answer.
    assert deployment.app.send_task("profile", (name,)).get(timeout=PATIENCE)["compute"] == 2
    with _no_l1(deployment):
        assert profile.delay(name).get(timeout=PATIENCE)["compute"] == 2
    assert deployment.book.computes(name) == 2


def test_an_invalidation_from_another_language_makes_the_next_read_compute(deployment: Deployment, name: str) -> None:
    app = deployment.app
    assert app.send_task("profile", (name,)).get(timeout=PATIENCE)["compute"] == 1
    task_id = str(uuid.uuid4())
    headers = {"lang": "go", "task": "celery_cachetiers.invalidate_tag", "id": task_id, "root_id": task_id}

    with Connection(app.conf.broker_url) as connection, connection.channel() as channel:
        connection.Producer(channel).publish(
            [[f"user:{name}"], {}, {}],
            routing_key=app.conf.task_default_queue,
            exchange="",
            headers=headers,
            correlation_id=task_id,
            serializer="json",
        )
    AsyncResult(task_id, app=app).get(timeout=PATIENCE)

    assert app.send_task("profile", (name,)).get(timeout=PATIENCE)["compute"] == 2


def test_every_duplicate_has_its_own_task_events(deployment: Deployment, name: str) -> None:
    if deployment.pool == "threads" and celery.VERSION < (5, 7):
        pytest.skip("before 5.7 Celery drops an event that a thread adds while others are being sent")
    with _succeeded(deployment) as succeeded:
        results = [deployment.app.send_task("work.message", (name,)) for _ in range(4)]
        for result in results:
            result.get(timeout=PATIENCE)
        ids = {result.id for result in results}

        wait_until(lambda: ids <= set(succeeded), timeout=PATIENCE, message="four task-succeeded events")
    assert [succeeded.count(each) for each in ids] == [1, 1, 1, 1]
    assert deployment.book.computes(name) == 1


@contextmanager
def _no_l1(deployment: Deployment) -> Iterator[None]:
    """This process' copies are gone: what it reads comes from L2."""
    deployment.tiers.cache.parts.l1.distrust()
    yield


@contextmanager
def _succeeded(deployment: Deployment) -> Iterator[list[str]]:
    """Ids of the tasks whose task-succeeded event has come."""
    found: list[str] = []
    ready, over, heard = threading.Event(), threading.Event(), threading.Event()

    def hear() -> None:
        handlers = {"task-succeeded": lambda event: found.append(event["uuid"]), "cache-probe": lambda _: heard.set()}
        with deployment.app.connection_for_read() as connection:
            receiver = deployment.app.events.Receiver(connection, handlers=handlers)
            with receiver.consumer_context() as (drained, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        drained.drain_events(timeout=0.2)

    thread = threading.Thread(target=hear)
    thread.start()
    assert ready.wait(10)
    try:
        with deployment.app.events.default_dispatcher() as dispatcher:  # it listens some time after it says so
            wait_until(lambda: dispatcher.send("cache-probe") or heard.wait(0.1), timeout=20, message="the receiver")
        yield found
    finally:
        over.set()
        thread.join()


# -- one worker of the test's own ---------------------------------------------------------------------------------

Start = Callable[..., tuple[Deployment, Worker]]


@pytest.fixture
def start(servers: RedisServers) -> Iterator[Start]:
    """`start(*options, settings={}, broker=None, cache=None, **keywords)`: a deployment and its ready worker."""
    with ExitStack() as stack:

        def go(*options: str, settings: dict[str, Any] | None = None, broker: str | None = None,
               cache: str | None = None, **keywords: Any) -> tuple[Deployment, Worker]:  # fmt: skip
            deployment = stack.enter_context(
                Deployment(servers.shared(), broker=broker, cache=cache, **(settings or {}))
            )
            worker = deployment.worker(*options, **keywords)
            stack.callback(lambda: print(f"---- log of {worker!r}\n{worker.log_tail(60)}"))
            stack.enter_context(worker)
            return deployment, worker

        yield go


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_hit_equals_what_the_result_backend_gives(start: Start, name: str, serializer: str) -> None:
    settings = {
        "task_serializer": serializer,
        "result_serializer": serializer,
        "accept_content": [serializer, "json"],
    }
    deployment, _ = start(settings=settings)
    computed = deployment.task("profile").delay(name)
    fresh = computed.get(timeout=PATIENCE)

    at_publish = deployment.task("profile").delay(name)
    in_worker = deployment.app.send_task("profile", (name,))

    expected = ["a", "b"] if serializer == "json" else ("a", "b")
    assert fresh == {"user": name, "compute": 1, "roles": expected}
    assert isinstance(at_publish, CachedResult)
    assert at_publish.get() == in_worker.get(timeout=PATIENCE) == fresh
    assert AsyncResult(at_publish.id, app=deployment.app).get(timeout=PATIENCE) == fresh
    assert deployment.book.computes(name) == 1


def test_what_beat_publishes_is_cached(start: Start, name: str) -> None:
    deployment, _ = start()
    schedule = {"tick": {"task": "work.plain", "schedule": 0.3, "args": [name]}}
    with deployment.beat(beat_schedule=schedule) as beat:
        sent = "Sending due task tick"
        wait_until(lambda: beat.log_text().count(sent) >= 4, timeout=PATIENCE, message=sent, process=beat)
        assert "Traceback" not in beat.log_text()

    assert deployment.book.started(name)[0] == 1
    wait_until(
        lambda: deployment.task("work.plain").cache.get(name) is not MISSING, timeout=PATIENCE, message="the entry"
    )
    assert deployment.task("work.plain").delay(name).get(timeout=PATIENCE) == f"{name}#1"
    assert deployment.book.computes(name) == 1


def test_a_warm_shutdown_lets_the_leader_finish_and_gives_the_follower_back_to_the_broker(
    start: Start, name: str
) -> None:
    deployment, worker = start(concurrency=2)
    book = deployment.book
    book.put_up_gate(name)
    leader = deployment.app.send_task("work.message", (name,))
    book.started(name)
    follower = deployment.app.send_task("work.message", (name,))
    deployment.wait_for_held(1, "work.message", name)

    worker.terminate()
    worker.wait_for_log("Warm shutdown")
    book.open_gate(name)

    assert leader.get(timeout=PATIENCE) == f"{name}#1"
    wait_until(lambda: not worker.running, timeout=PATIENCE, message="end of the worker")
    assert worker.returncode == 0
    worker.start()
    assert follower.get(timeout=PATIENCE) == f"{name}#1"
    assert book.computes(name) == 1


def test_after_a_leading_child_is_killed_one_follower_computes_within_one_lease(start: Start, name: str) -> None:
    deployment, worker = start(concurrency=3)
    book = deployment.book
    book.put_up_gate(name)
    leader = deployment.app.send_task("work.message", (name,))
    _, pid = book.started(name)
    followers = [deployment.app.send_task("work.message", (name,)) for _ in range(2)]
    deployment.wait_for_held(2, "work.message", name)

    worker.kill_child(pid)
    assert book.started(name, timeout=2.0 + 1.0)[0] == 2  # the task's lease_ttl, and a busy machine
    book.open_gate(name)

    assert [follower.get(timeout=PATIENCE) for follower in followers] == [f"{name}#2"] * 2
    with pytest.raises(WorkerLostError):
        leader.get(timeout=PATIENCE)
    assert book.computes(name) == 2


def test_a_leader_that_is_stopped_past_its_lease_is_replaced_and_its_commit_refused(start: Start, name: str) -> None:
    deployment, worker = start(concurrency=2)
    book = deployment.book
    book.put_up_gate(name)
    leader = deployment.app.send_task("work.short", (name,))
    _, pid = book.started(name)
    worker.pause_child(pid)
    follower = deployment.app.send_task("work.short", (name,))
    assert book.started(name)[0] == 2
    book.open_gate(name, 2)
    assert follower.get(timeout=PATIENCE) == f"{name}#2"

    book.open_gate(name, 1)
    worker.resume_child(pid)

    assert leader.get(timeout=PATIENCE) == f"{name}#1"  # its own value, for its own caller
    later = [deployment.app.send_task("work.short", (name,)) for _ in range(10)]
    assert [result.get(timeout=PATIENCE) for result in later] == [f"{name}#2"] * 10
    assert deployment.task("work.short").cache.get(name) == f"{name}#2"
    assert book.computes(name) == 2


def test_a_leader_that_is_stopped_past_its_lease_does_not_disturb_who_leads_now(start: Start, name: str) -> None:
    deployment, worker = start(concurrency=2)
    book = deployment.book
    book.put_up_gate(name)
    leader = deployment.app.send_task("work.short", (name,))
    _, pid = book.started(name)
    worker.pause_child(pid)
    follower = deployment.app.send_task("work.short", (name,))
    assert book.started(name)[0] == 2

    book.open_gate(name, 1)
    worker.resume_child(pid)
    assert leader.get(timeout=PATIENCE) == f"{name}#1"
    third = deployment.app.send_task("work.short", (name,))
    deployment.wait_for_held(1, "work.short", name)
    book.open_gate(name, 2)

    assert [follower.get(timeout=PATIENCE), third.get(timeout=PATIENCE)] == [f"{name}#2"] * 2
    assert book.computes(name) == 2


def test_after_a_worker_is_killed_its_message_is_redelivered_and_finishes(
    start: Start, rabbit_server: RabbitServer, name: str
) -> None:
    deployment, worker = start(broker=rabbit_server.url())
    book = deployment.book
    book.put_up_gate(name)
    result = deployment.app.send_task("work.message", (name,))
    book.started(name)

    worker.kill()
    worker.start()
    assert book.started(name)[0] == 2
    book.open_gate(name)

    assert result.get(timeout=PATIENCE) == f"{name}#2"
    assert deployment.task("work.message").cache.get(name) == f"{name}#2"


def test_the_builtin_invalidation_retries_while_redis_is_away_and_completes_when_it_is_back(
    start: Start, servers: RedisServers, name: str
) -> None:
    with RedisProxy(servers.shared().port) as proxy:
        deployment, _ = start(
            cache=proxy.url(3), settings={"cachetiers_timeout": 0.25, "cachetiers_breaker_window": 0.1}
        )
        assert deployment.app.send_task("profile", (name,)).get(timeout=PATIENCE)["compute"] == 1
        proxy.refuse()
        result = deployment.app.tasks["celery_cachetiers.invalidate_tag"].delay(f"user:{name}")
        wait_until(lambda: result.state == "RETRY", timeout=PATIENCE, message="a retry")
        proxy.heal()

        result.get(timeout=PATIENCE)

        assert deployment.app.send_task("profile", (name,)).get(timeout=PATIENCE)["compute"] == 2


def test_tasks_run_while_redis_is_away_and_are_cached_when_it_is_back(
    start: Start, servers: RedisServers, name: str
) -> None:
    with RedisProxy(servers.shared().port) as proxy:
        deployment, _ = start(
            cache=proxy.url(3), settings={"cachetiers_timeout": 0.25, "cachetiers_breaker_window": 0.1}
        )
        proxy.refuse()
        results = [deployment.task("work.plain").delay(name) for _ in range(3)]
        values = [result.get(timeout=PATIENCE) for result in results]
        proxy.heal()

        assert sorted(values) == [f"{name}#1", f"{name}#2", f"{name}#3"]
        send = deployment.app.send_task
        wait_until(
            lambda: send("work.plain", (name,)).get(timeout=PATIENCE) == send("work.plain", (name,)).get(timeout=5),
            timeout=PATIENCE,
            message="a cached value",
        )


# -- one process, two apps ----------------------------------------------------------------------------------------


def test_each_app_of_a_process_invalidates_its_own_cache(servers: RedisServers, name: str) -> None:
    server = servers.shared()
    with Deployment(server) as first, Deployment(server) as second:
        tasks = [each.task("work.plain") for each in (first, second)]
        assert [task(name) for task in tasks] == [f"{name}#1", f"{name}#2"]

        second.app.tasks["celery_cachetiers.invalidate_tag"](f"name:{name}")

        assert [task(name) for task in tasks] == [f"{name}#1", f"{name}#3"]
