"""What becomes of held requests when their leader, their worker, their broker or their cache comes to an end."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError

from tests.integration.apps.worker_setup import (
    Deployment,
    Led,
    Start,
    assert_ends,
    leading_here,
    new_name,
    room,
    runs,
    starter,
)
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.rabbit import RabbitServer
from tests.servers import RedisServer, RedisServers
from tests.workers import Worker

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

PATIENCE = 20
"""Seconds after which a result counts as one that never comes."""
PROMPTLY = 5
"""Seconds within which a follower goes on: a twelfth of the lease that would have to run out otherwise."""

NOTICED = 10 + PROMPTLY
"""The same after a child was killed: Celery gives a result that may be under way ten seconds to arrive."""


@pytest.fixture(scope="module")
def deployment(servers: RedisServers) -> Iterator[Deployment]:
    with Deployment(servers()) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def worker(deployment: Deployment) -> Iterator[Worker]:
    """Four children, which tests may kill."""
    with deployment.worker(concurrency=4) as worker:
        yield worker
        print(f"---- log of {worker!r}\n{worker.log_tail(200)}")


@pytest.fixture
def name(deployment: Deployment) -> Iterator[str]:
    """A key of the test's own. Whoever is still held at its gate when the test ends is let go."""
    name = new_name()
    yield name
    deployment.book.open_gate(name)


# -- the leader's body --------------------------------------------------------------------------------------------


def test_a_failure_is_shared_and_every_followers_error_links_run(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book, noted = deployment.book, deployment.task("noted_error")
    led = Led(deployment, "ends", name, 0, link_error=noted.s(name))
    led.hold(3, link_error=noted.s(name))
    book.open_gate(name, 1, "fail")

    for result in (led.leader, *led.followers):
        with pytest.raises(ValueError, match=f"^{name}#1$"):
            result.get(timeout=PATIENCE)
    notes = [book.client.blpop([f"noted:{name}"], timeout=PATIENCE)[1] for _ in range(4)]
    assert notes == [f"ValueError('{name}#1')"] * 4
    assert book.computes(name) == 1


def test_where_failures_are_not_shared_one_follower_computes_and_the_others_wait_for_it(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends.unshared", name, 3)
    book.open_gate(name, 1, "fail")
    assert book.started(name, timeout=PROMPTLY)[0] == 2
    book.open_gate(name, 2)

    assert led.values() == [f"{name}#2"] * 3
    with pytest.raises(ValueError, match=f"^{name}#1$"):
        led.leader.get(timeout=PATIENCE)
    assert book.computes(name) == 2


def test_a_leader_that_retries_keeps_its_lease_and_everybody_ends_with_the_value_of_the_retry(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name)
    book.open_gate(name, 1, "retry")
    assert_ends(led.leader, "RETRY")
    newcomer = deployment.app.send_task("ends", (name,))
    assert book.started(name)[0] == 2
    book.open_gate(name, 2)

    assert [led.leader.get(timeout=PATIENCE), newcomer.get(timeout=PATIENCE), *led.values()] == [f"{name}#2"] * 4
    assert (book.computes(name), book.overlaps(name)) == (2, 0)
    assert _computed_by(deployment, name) == [led.leader.id] * 2


def test_a_retry_that_is_revoked_before_it_is_due_frees_the_lease(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name)
    book.open_gate(name, 1, "retry later")
    assert_ends(led.leader, "RETRY")
    led.leader.revoke()
    assert book.started(name, timeout=2 + PROMPTLY)[0] == 2
    book.open_gate(name, 2)

    assert led.values() == [f"{name}#2"] * 2
    assert_ends(led.leader, "REVOKED")
    assert book.computes(name) == 2


def test_a_follower_that_shares_a_failure_retries_under_its_own_id_as_celery_would_have_it(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    """The leader has tried twice, its last time in front of the follower, which then has one try left."""
    book = deployment.book
    book.put_up_gate(name)
    leader = deployment.app.send_task("ends.autoretried", (name,))
    book.open_gate(name, 1, "fail")
    assert [book.started(name)[0] for _ in range(2)] == [1, 2]
    follower = deployment.app.send_task("ends.autoretried", (name,))
    deployment.wait_for_held(1, "ends.autoretried", name)
    book.open_gate(name, 2, "fail")
    assert book.started(name)[0] == 3
    book.open_gate(name, 3)

    with pytest.raises(ValueError, match=f"^{name}#2$"):
        leader.get(timeout=PATIENCE)
    assert follower.get(timeout=PATIENCE) == f"{name}#3"
    assert (book.computes(name), book.overlaps(name)) == (3, 0)
    assert _computed_by(deployment, name) == [leader.id, leader.id, follower.id]


def test_the_retry_of_a_follower_does_not_share_the_same_failure_again(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    """It comes back before the worker knows that the leader has ended, whose handler takes its time."""
    book, task_id = deployment.book, str(uuid.uuid4())
    book.client.sadd("lingering", task_id)
    book.put_up_gate(name)
    book.open_gate(name, 1, "fail")
    leader = deployment.app.send_task("ends.lingering", (name,), task_id=task_id)
    assert book.started(name)[0] == 1
    follower = deployment.app.send_task("ends.lingering", (name,))
    deployment.wait_for_held(2, "ends.lingering", name)  # the retry of the leader is the other one
    book.client.rpush(f"on_retry:{task_id}", "go")
    assert book.started(name)[0] == 2
    book.open_gate(name, 2, "fail")
    assert book.started(name)[0] == 3  # the retry of the follower
    book.client.rpush(f"on_failure:{task_id}", "go")
    book.open_gate(name, 3)

    assert follower.get(timeout=PATIENCE) == f"{name}#3"
    assert_ends(leader, "FAILURE")
    assert _computed_by(deployment, name) == [leader.id, leader.id, follower.id]


def _computed_by(deployment: Deployment, name: str) -> list[str]:
    """Under which task ids the body has run, in order."""
    return list(deployment.book.client.lrange(f"ids:{name}", 0, -1))


def test_followers_of_a_leader_that_autoretries_share_nothing_before_its_last_failure(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends.autoretried", name)
    book.open_gate(name, 1, "fail")
    assert book.started(name)[0] == 2
    book.open_gate(name, 2)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#2"] * 3
    assert (book.computes(name), book.overlaps(name)) == (2, 0)
    assert _computed_by(deployment, name) == [led.leader.id] * 2


def test_those_who_waited_through_a_lost_leader_share_the_failure_of_the_next(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name, 4)
    worker.kill_child(led.pid)
    assert book.started(name, timeout=NOTICED)[0] == 2
    book.open_gate(name, 2, "fail")

    for each in led.followers:
        with pytest.raises(ValueError, match=f"^{name}#2$"):
            each.get(timeout=PATIENCE)
    assert book.computes(name) == 2


def test_a_message_that_is_delivered_again_while_it_runs_is_a_follower(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name, 1)
    led.hold(task_id=led.leader.id)
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * 3
    assert book.computes(name) == 1


def test_a_body_that_asks_its_own_key_runs_through_and_its_followers_get_its_value(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends.asking", name)
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1 of {name}#2"] * 3
    assert book.computes(name) == 2


@pytest.mark.parametrize(("outcome", "state"), [("ignore", "PENDING"), ("reject", "FAILURE")])
def test_after_an_instruction_to_celery_about_one_message_the_next_in_line_computes(
    deployment: Deployment, worker: Worker, name: str, outcome: str, state: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name)
    book.open_gate(name, 1, outcome)
    assert book.started(name, timeout=PROMPTLY)[0] == 2
    book.open_gate(name, 2)

    assert led.values() == [f"{name}#2"] * 2
    assert_ends(led.leader, state)
    assert book.computes(name) == 2


def test_when_the_leader_replaces_itself_each_follower_does_what_it_would_have_done_alone(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    """A replaced task has no value of its own to share."""
    book = deployment.book
    led = Led(deployment, "ends", name)
    book.open_gate(name, "all", "replace")

    values = [led.leader.get(timeout=PATIENCE), *led.values()]

    assert sorted(values) == [f"replaced {name}#{number}" for number in (1, 2, 3)]
    assert (book.computes(name), book.overlaps(name)) == (3, 0)


# -- revoked, expired, out of time --------------------------------------------------------------------------------


def test_a_leader_that_is_revoked_before_it_has_a_slot_is_followed_by_the_next(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book, others = deployment.book, [f"{name}-{number}" for number in range(4)]
    busy = [Led(deployment, "ends", other, 0) for other in others]
    book.put_up_gate(name)
    leader = deployment.app.send_task("ends", (name,))
    follower = deployment.app.send_task("ends", (name,))
    deployment.wait_for_held(1, "ends", name)
    leader.revoke()
    wait_until(lambda: leader.id in _revoked(deployment, worker), timeout=PATIENCE, message="the revocation")
    for other in others:
        book.open_gate(other)
    assert book.started(name, timeout=PROMPTLY)[0] == 1
    book.open_gate(name)

    assert follower.get(timeout=PATIENCE) == f"{name}#1"
    assert_ends(leader, "REVOKED")
    assert [each.leader.get(timeout=PATIENCE) for each in busy] == [f"{other}#1" for other in others]
    assert book.computes(name) == 1


def _revoked(deployment: Deployment, worker: Worker) -> list[str]:
    found = deployment.app.control.inspect([worker.hostname], timeout=2).revoked() or {}
    return found.get(worker.hostname, [])


@pytest.mark.parametrize("terminate", [False, True], ids=["plainly", "with terminate"])
def test_a_held_request_that_is_revoked_leaves_at_once_and_harms_nobody(
    deployment: Deployment, worker: Worker, name: str, terminate: bool
) -> None:
    book = deployment.book
    children = worker.children()
    led = Led(deployment, "ends", name, 3)
    revoked = led.followers.pop(1)
    revoked.revoke(terminate=terminate, signal="SIGKILL")
    assert_ends(revoked, "REVOKED", timeout=2.5)
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=PATIENCE)
    assert book.computes(name) == 1
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * 3
    assert worker.children() == children
    assert book.computes(name) == 1


def test_a_held_request_that_is_revoked_by_a_stamp_leaves_at_once(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name, 1)
    stamped = deployment.task("ends").s(name)
    stamped.stamp(owner=name)
    revoked = stamped.apply_async()
    deployment.wait_for_held(2, "ends", name)
    deployment.app.control.revoke_by_stamped_headers({"owner": name})
    assert_ends(revoked, "REVOKED", timeout=2.5)
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * 2


def test_when_the_leader_is_terminated_its_lease_is_free_at_once(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name)
    led.leader.revoke(terminate=True, signal="SIGKILL")
    assert book.started(name, timeout=NOTICED)[0] == 2
    book.open_gate(name)

    assert led.values() == [f"{name}#2"] * 2
    assert_ends(led.leader, "REVOKED")
    assert book.computes(name) == 2


def test_a_held_request_that_expires_is_discarded_as_celery_would(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name, 1)
    expiring = deployment.app.send_task("ends", (name,), expires=1.0)
    assert_ends(expiring, "REVOKED", timeout=1.0 + 2.5)
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * 2
    assert book.computes(name) == 1


@pytest.mark.parametrize(
    ("limit", "error"), [("soft_time_limit", SoftTimeLimitExceeded), ("time_limit", TimeLimitExceeded)]
)
def test_a_time_limit_fails_the_leader_alone_and_the_next_computes_promptly(
    deployment: Deployment, worker: Worker, name: str, limit: str, error: type[Exception]
) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name, **{limit: 1})
    assert book.started(name, timeout=1 + PROMPTLY)[0] == 2
    book.open_gate(name)

    assert led.values() == [f"{name}#2"] * 2
    with pytest.raises(error):
        led.leader.get(timeout=PATIENCE)
    assert book.computes(name) == 2


# -- the leader's process -----------------------------------------------------------------------------------------


def test_the_lease_of_a_lost_child_is_freed_by_its_parent(deployment: Deployment, worker: Worker, name: str) -> None:
    book = deployment.book
    led = Led(deployment, "ends", name)
    worker.kill_child(led.pid)
    assert book.started(name, timeout=NOTICED)[0] == 2
    book.open_gate(name)

    assert led.values() == [f"{name}#2"] * 2
    with pytest.raises(WorkerLostError):
        led.leader.get(timeout=PATIENCE)
    assert book.computes(name) == 2


def test_a_leader_that_is_stopped_past_its_lease_is_replaced_by_one_of_those_that_are_held(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "ends.short", name)
    worker.pause_child(led.pid)
    assert book.started(name, timeout=1.0 + PROMPTLY)[0] == 2
    book.open_gate(name, 2)
    values = led.values()
    worker.resume_child(led.pid)
    book.open_gate(name, 1)

    assert values == [f"{name}#2"] * 2
    assert led.leader.get(timeout=PATIENCE) == f"{name}#1"
    assert deployment.task("ends.short").cache.get(name) == f"{name}#2"
    assert book.computes(name) == 2


def test_a_leader_that_outlasts_the_wait_limit_is_replaced_by_one_follower_for_whom_the_others_wait(
    deployment: Deployment, worker: Worker, name: str
) -> None:
    book = deployment.book
    led = Led(deployment, "work.limited", name, 3)
    assert book.started(name, timeout=1.0 + PROMPTLY)[0] == 2
    book.open_gate(name, 2)

    assert led.values() == [f"{name}#2"] * 3
    book.open_gate(name, 1)
    assert led.leader.get(timeout=PATIENCE) == f"{name}#1"
    assert book.computes(name) == 2


# -- the whole worker ---------------------------------------------------------------------------------------------

HELD = 30
"""More than a worker takes from its broker at once."""


@pytest.fixture
def start(servers: RedisServers) -> Iterator[Start]:
    with starter(servers) as start:
        yield start


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> str | None:
    """Its URL; ``None`` for the server that everything else is in."""
    return request.getfixturevalue("rabbit_server").url() if request.param == "rabbitmq" else None


def test_a_warm_shutdown_gives_all_held_requests_to_other_workers_at_once(
    start: Start, broker: str | None, name: str
) -> None:
    deployment, worker = start(broker=broker, settings={"broker_transport_options": {}})
    book = deployment.book
    led = Led(deployment, "ends", name, HELD)
    worker.terminate()
    worker.wait_for_log("Warm shutdown")
    with deployment.worker(concurrency=2):
        # While the leader still computes. Kombu's BRPOP of Redis that is under way may take one of them with it.
        deployment.wait_for_held(2 * HELD - (broker is None), "ends", name)
        book.open_gate(name)

        assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * (HELD + 1)
    wait_until(lambda: not worker.running, timeout=PATIENCE, message="end of the worker")
    assert worker.returncode == 0
    assert "Traceback" not in worker.log_text()
    assert book.computes(name) == 1


def test_a_cold_shutdown_gives_the_leader_and_all_held_requests_back_to_the_broker(
    start: Start, broker: str | None, name: str
) -> None:
    deployment, worker = start(broker=broker, settings={"broker_transport_options": {}})
    book = deployment.book
    led = Led(deployment, "ends", name, HELD)
    worker.quit()
    wait_until(lambda: not worker.running, timeout=PATIENCE, message="end of the worker")
    assert [each.state for each in led.followers] == ["PENDING"] * HELD
    worker.start()
    assert book.started(name, timeout=PROMPTLY)[0] == 2
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#2"] * (HELD + 1)
    assert book.computes(name) == 2


def test_a_child_that_is_lost_during_a_warm_shutdown_leaves_no_lease_behind(start: Start, name: str) -> None:
    deployment, worker = start()
    book = deployment.book
    led = Led(deployment, "ends", name)
    worker.terminate()
    worker.wait_for_log("Warm shutdown")
    worker.kill_child(led.pid)
    wait_until(lambda: not worker.running, timeout=PATIENCE, message="end of the worker")
    worker.start()
    assert book.started(name, timeout=PROMPTLY)[0] == 2
    book.open_gate(name)

    assert led.values() == [f"{name}#2"] * 2
    assert_ends(led.leader, "FAILURE")


@pytest.mark.rabbitmq
def test_after_the_kill_of_a_whole_worker_a_follower_of_another_takes_over_within_the_lease(
    start: Start, rabbit_server: RabbitServer, name: str
) -> None:
    deployment, worker = start(broker=rabbit_server.url())
    book = deployment.book
    led = Led(deployment, "ends.short", name)
    with deployment.worker(concurrency=2, queues=["other"]):
        others = [deployment.app.send_task("ends.short", (name,), queue="other") for _ in range(3)]
        deployment.wait_for_held(2 + 3, "ends.short", name)
        worker.kill()
        assert book.started(name, timeout=1.0 + PROMPTLY)[0] == 2
        worker.start()
        book.open_gate(name)

        assert [each.get(timeout=PATIENCE) for each in others] == [f"{name}#2"] * 3
        assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#2"] * 3
    assert (book.computes(name), len(worker.children())) == (2, 2)


@pytest.mark.slow
def test_what_a_killed_worker_held_comes_back_from_redis_when_its_visibility_timeout_has_passed(
    start: Start, name: str
) -> None:
    transport = {"visibility_timeout": 5, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    deployment, worker = start(settings={"cachetiers_wait_limit": 2.0, "broker_transport_options": transport})
    book = deployment.book
    led = Led(deployment, "ends.short", name, 5)
    worker.kill()
    worker.start()
    assert book.started(name, timeout=5 + 1 + PROMPTLY)[0] == 2
    book.open_gate(name)

    assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#2"] * 6
    assert book.computes(name) == 2


# -- the broker ---------------------------------------------------------------------------------------------------


def test_requests_that_are_held_while_the_connection_to_the_broker_is_lost_all_end(
    start: Start, servers: RedisServers, name: str
) -> None:
    with RedisProxy(servers.shared().port) as proxy:
        deployment, worker = start(conf={"broker_url": proxy.url(1)})
        book = deployment.book
        led = Led(deployment, "ends", name, HELD)
        proxy.cut()
        worker.wait_for_log("onnection to broker lost")
        assert deployment.app.send_task("same", ("on",)).get(timeout=PATIENCE) == "on"
        deployment.wait_for_held(HELD + HELD + 1, "ends", name)  # the leader's message too comes again
        assert room(deployment, worker)["held"] == HELD + 1
        book.open_gate(name)

        assert [led.leader.get(timeout=PATIENCE), *led.values()] == [f"{name}#1"] * (HELD + 1)
    assert [runs(deployment, each.id) for each in led.followers] == [1] * HELD
    assert book.computes(name) == 1


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_requests_that_are_held_while_the_broker_restarts_all_end(start: Start, name: str) -> None:
    with RabbitServer() as rabbit:
        deployment, worker = start(broker=rabbit.url())
        book = deployment.book
        led = Led(deployment, "ends", name, HELD)
        rabbit.stop()
        worker.wait_for_log("onnection to broker lost")
        rabbit.start()
        worker.wait_for_log("Connected to amqp", timeout=60)
        book.open_gate(name)

        assert [led.leader.get(timeout=60), *led.values()] == [f"{name}#1"] * (HELD + 1)
    assert book.computes(name) == 1


# -- the cache ----------------------------------------------------------------------------------------------------

Harm = Callable[[RedisServer], None]


def _flush(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def _nothing(server: RedisServer) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "heal"),
    [
        pytest.param(_flush, _nothing, id="flushed"),
        pytest.param(RedisServer.kill, _nothing, id="killed"),
        pytest.param(RedisServer.restart, _nothing, id="restarted"),
        pytest.param(RedisServer.pause, RedisServer.resume, id="paused"),
    ],
)
def test_whatever_happens_to_the_cache_held_requests_end_right_and_others_are_not_delayed(
    start: Start, redis_factory: RedisServers, name: str, harm: Harm, heal: Harm
) -> None:
    cache = redis_factory()
    deployment, _ = start(
        cache=cache.url(3), settings={"cachetiers_timeout": 0.25, "cachetiers_breaker_window": 1.0}, concurrency=4
    )
    book = deployment.book
    led = Led(deployment, "ends.short", name, 2)
    harm(cache)
    for _ in range(10):
        assert deployment.app.send_task("same", ("on",)).get(timeout=2) == "on"
    book.started(name, timeout=PROMPTLY)  # a follower goes on
    for _ in range(10):
        assert deployment.app.send_task("same", ("on",)).get(timeout=2) == "on"
    heal(cache)
    book.open_gate(name)

    values = [led.leader.get(timeout=PATIENCE), *led.values()]
    numbers = {value.removeprefix(f"{name}#") for value in values}

    assert numbers <= {str(number) for number in range(1, book.computes(name) + 1)}
    assert deployment.app.send_task("same", ("on",)).get(timeout=PATIENCE) == "on"


def test_a_wake_up_that_is_lost_with_the_backplane_is_made_up_for_when_that_is_back(
    start: Start, servers: RedisServers, name: str
) -> None:
    over = threading.Event()
    with RedisProxy(servers.shared().port) as proxy:
        deployment, _ = start(conf={"cachetiers_url": proxy.url(3)})
        with leading_here(deployment, "ends", name):
            follower = deployment.app.send_task("ends", (name,))
            deployment.wait_for_held(1, "ends", name)
            proxy.on_command = lambda command: over.wait(30) and None if command[0] == b"SUBSCRIBE" else None
            proxy.cut()
        assert deployment.task("ends").cache.get(name) == f"{name}#1"  # committed, and nobody heard of it
        proxy.on_command = None
        over.set()

        assert follower.get(timeout=PROMPTLY) == f"{name}#1"
    assert deployment.book.computes(name) == 1


def test_connections_to_the_cache_that_are_cut_at_random_lose_no_wake_up(
    start: Start, servers: RedisServers, name: str
) -> None:
    names, duplicates = [f"{name}-{number}" for number in range(20)], 10
    with RedisProxy(servers.shared().port) as proxy:
        deployment, _ = start(conf={"cachetiers_url": proxy.url(3)}, concurrency=4)
        over, chance, cuts = threading.Event(), random.Random(1), []

        def cut() -> None:
            while not over.wait(chance.uniform(0.01, 0.1)):
                cuts.append(proxy.cut())

        thread = threading.Thread(target=cut)
        thread.start()
        try:
            results = [(each, deployment.app.send_task("ends", (each,))) for _ in range(duplicates) for each in names]
            values = [(each, result.get(timeout=60)) for each, result in results]
        finally:
            over.set()
            thread.join()

    assert all(value in {f"{each}#{n}" for n in range(1, duplicates + 1)} for each, value in values)
    assert len(cuts) > 3
