"""One compute per key across processes: election, renewal, take-over, fences and wake-ups, in real processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_cachetiers import CacheTiers
from tests.integration.apps.worker_setup import Callers, Deployment, new_name
from tests.processes import wait_until
from tests.proxy import Command, RedisProxy
from tests.servers import RedisServers

PROCESSES = 4
BEHIND_PROXY = 4
"""Number of the caller that reaches L2 through the proxy."""


@pytest.fixture(scope="module")
def deployment(servers: RedisServers) -> Iterator[Deployment]:
    with Deployment(servers()) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def callers(deployment: Deployment) -> Iterator[Callers]:
    callers = Callers(deployment, PROCESSES)
    yield callers
    print(callers.log_text())
    callers.close()


@pytest.fixture(scope="module")
def proxied(deployment: Deployment) -> Iterator[tuple[RedisProxy, Callers]]:
    """A proxy before L2, and the one caller behind it."""
    with RedisProxy(deployment.server.port) as proxy:
        callers = Callers(deployment, 1, cache=proxy.url(3), first=BEHIND_PROXY)
        yield proxy, callers
        print(callers.log_text())
        callers.close()


@pytest.fixture
def name(deployment: Deployment) -> Iterator[str]:
    """A key of the test's own. Whoever is still held at its gate when the test ends is let go."""
    name = new_name()
    yield name
    deployment.book.open_gate(name)


# -- one compute --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["work.plain", "work.remote", "work.strict"])
def test_64_threads_in_4_processes_that_ask_one_cold_key_compute_it_once(
    deployment: Deployment, callers: Callers, name: str, task: str
) -> None:
    start = f"start:{name}"
    calls = [callers.call(each, task, name, threads=16, start=start) for each in range(PROCESSES)]
    for call in calls:
        call.wait_ready()
    deployment.book.open_gate(name, "unused")
    deployment.book.client.rpush(start, "go")

    answers = [answer for call in calls for answer in call.answers(60)]

    assert answers == [f"{name}#1"] * 64
    assert deployment.book.computes(name) == 1


def test_64_threads_in_4_processes_that_come_while_the_leader_computes_wait_for_it(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    deployment.book.put_up_gate(name)
    leader = callers.call(0, "work.plain", name)
    deployment.book.started(name)
    followers = [callers.call(each, "work.plain", name, threads=16) for each in range(PROCESSES)]
    for call in followers:
        call.wait_ready()
    deployment.wait_for_waiters(PROCESSES - 1, "work.plain", name)
    deployment.book.open_gate(name)

    answers = [answer for call in [leader, *followers] for answer in call.answers(60)]

    assert answers == [f"{name}#1"] * 65
    assert deployment.book.computes(name) == 1


def test_after_a_failed_leader_neither_its_followers_nor_a_newcomer_compute_at_once(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    leader = callers.call(0, "work.unshared", name)
    book.started(name)
    followers = [callers.call(each, "work.unshared", name, threads=4) for each in range(PROCESSES)]
    for call in followers:
        call.wait_ready()
    deployment.wait_for_waiters(PROCESSES - 1, "work.unshared", name)

    book.open_gate(name, 1, "fail")
    book.started(name)
    newcomers = [callers.call(each, "work.unshared", name, threads=4) for each in range(PROCESSES)]
    for call in newcomers:
        call.wait_ready()
    book.open_gate(name, 2, "fail")
    book.started(name)
    book.open_gate(name, 3)

    (failed,) = leader.outcomes()
    outcomes = [outcome for call in [*followers, *newcomers] for outcome in call.outcomes()]
    assert failed == {"error": f"ValueError('{name}#1')"}
    assert sorted(map(str, outcomes)) == sorted(
        [str({"error": f"ValueError('{name}#2')"})] + [str({"value": f"{name}#3"})] * 31
    )
    assert book.computes(name) == 3
    assert book.overlaps(name) == 0


# -- the life of a lease ------------------------------------------------------------------------------------------


def test_a_compute_that_outlasts_its_lease_ttl_is_renewed_and_not_taken_over(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    book, lease = deployment.book, deployment.lease_key("work.short", name)
    book.put_up_gate(name)
    leader = callers.call(0, "work.short", name)
    book.started(name)
    follower = callers.call(1, "work.short", name)
    with deployment.server.client(3) as client:
        for _ in range(6):  # six times the lease is seen to grow older, then younger
            wait_until(lambda: 0 < client.pttl(lease) < 350, timeout=5, message="an older lease")
            wait_until(lambda: client.pttl(lease) > 400, timeout=5, message="a renewed lease")
    book.open_gate(name)

    assert (leader.answer(), follower.answer()) == (f"{name}#1", f"{name}#1")
    assert book.computes(name) == 1


@pytest.mark.parametrize("end", ["go", "fail"])
def test_a_lost_lease_never_costs_the_caller_its_value_and_frees_nobody_elses_lease(
    deployment: Deployment, callers: Callers, name: str, end: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    leader = callers.call(0, "work.plain", name)
    book.started(name)
    with deployment.server.client(3) as client:
        assert client.delete(deployment.lease_key("work.plain", name)) == 1
    newcomer = callers.call(1, "work.plain", name)
    book.started(name)

    book.open_gate(name, 1, end)
    expected = {"value": f"{name}#1"} if end == "go" else {"error": f"ValueError('{name}#1')"}
    assert leader.outcomes() == [expected]
    follower = callers.call(2, "work.plain", name)
    deployment.wait_for_waiters(1, "work.plain", name)  # the commit was refused, and the second leader still leads
    book.open_gate(name, 2)

    assert (newcomer.answer(), follower.answer()) == (f"{name}#2", f"{name}#2")
    assert callers.call(0, "work.plain", name).answer() == f"{name}#2"
    assert book.computes(name) == 2


def test_when_the_wait_limit_has_passed_exactly_one_follower_takes_over(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    leader = callers.call(0, "work.limited", name)
    book.started(name)
    followers = []
    for each in range(1, PROCESSES):  # one after the other, so that their limits pass one after the other
        followers.append(callers.call(each, "work.limited", name))
        deployment.wait_for_waiters(each, "work.limited", name)
    assert book.started(name)[0] == 2
    # Two thirds of the replacement's own limit: every follower's first limit has passed by then, its second has not.
    with pytest.raises(TimeoutError):
        book.started(name, timeout=0.7)
    book.open_gate(name, 2)
    answers = [follower.answer() for follower in followers]
    book.open_gate(name, 1)

    assert answers == [f"{name}#2"] * 3
    assert leader.answer() == f"{name}#1"
    assert callers.call(0, "work.limited", name).answer() == f"{name}#2"
    assert book.computes(name) == 2


def test_when_the_wait_limit_has_passed_exactly_one_thread_of_a_process_takes_over(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    book, start = deployment.book, f"start:{name}"
    book.put_up_gate(name)
    leader = callers.call(0, "work.limited", name)
    book.started(name)
    followers = callers.call(1, "work.limited", name, threads=8, start=start)
    followers.wait_ready()
    book.client.rpush(start, "go")
    assert book.started(name)[0] == 2
    with pytest.raises(TimeoutError):
        book.started(name, timeout=0.7)
    book.open_gate(name)

    assert followers.answers() == [f"{name}#2"] * 8
    assert leader.answer() == f"{name}#1"
    assert book.computes(name) == 2


# -- calls inside computes ----------------------------------------------------------------------------------------


def test_a_body_that_calls_its_own_key_runs_through(deployment: Deployment, callers: Callers, name: str) -> None:
    assert callers.call(0, "nested.own", name).answer() == "outer of inner"
    assert deployment.book.computes(name) == 2
    assert callers.call(1, "nested.own", name).answer() == "outer of inner"
    assert deployment.book.computes(name) == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_two_bodies_that_wait_for_each_other_finish(
    deployment: Deployment, callers: Callers, name: str, processes: int
) -> None:
    left = callers.call(0, "nested.left", name)
    right = callers.call(processes - 1, "nested.right", name)

    values = {left.answer(), right.answer()}

    assert values <= {"Lr", "Rl", "LRl", "RLr"}
    assert len(values) == 2
    assert deployment.book.computes(f"left {name}") <= 2
    assert deployment.book.computes(f"right {name}") <= 2


# -- wake-ups -----------------------------------------------------------------------------------------------------


def test_followers_are_woken_by_the_commit_long_before_the_lease_would_end(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    deployment.book.put_up_gate(name)
    leader = callers.call(0, "work.long", name)
    deployment.book.started(name)
    followers = [callers.call(each, "work.long", name, threads=4) for each in range(1, PROCESSES)]
    for follower in followers:
        follower.wait_ready()
    deployment.wait_for_waiters(3, "work.long", name)
    deployment.book.open_gate(name)

    answers = [answer for follower in followers for answer in follower.answers(10)]

    assert answers == [leader.answer()] * 12
    assert deployment.book.computes(name) == 1


def test_a_follower_is_woken_by_a_failing_leader_long_before_the_lease_would_end(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    deployment.book.put_up_gate(name)
    leader = callers.call(0, "work.unshared", name)
    deployment.book.started(name)
    follower = callers.call(1, "work.unshared", name)
    deployment.wait_for_waiters(1, "work.unshared", name)
    deployment.book.open_gate(name, 2)
    deployment.book.open_gate(name, 1, "fail")

    assert follower.answer(10) == f"{name}#2"
    assert leader.outcomes() == [{"error": f"ValueError('{name}#1')"}]


def test_a_follower_whose_connections_are_cut_while_it_waits_still_gets_the_value(
    deployment: Deployment, callers: Callers, proxied: tuple[RedisProxy, Callers], name: str
) -> None:
    proxy, behind = proxied
    deployment.book.put_up_gate(name)
    leader = callers.call(0, "work.long", name)
    deployment.book.started(name)
    follower = behind.call(BEHIND_PROXY, "work.long", name)
    deployment.wait_for_waiters(1, "work.long", name)
    with _subscriptions_counted(proxy) as subscribed:
        proxy.cut()
        assert subscribed.acquire(timeout=10)
    deployment.book.open_gate(name)

    assert follower.answer(10) == leader.answer() == f"{name}#1"
    assert deployment.book.computes(name) == 1


def test_a_follower_whose_wake_up_is_lost_with_its_backplane_still_gets_the_value(
    deployment: Deployment, callers: Callers, proxied: tuple[RedisProxy, Callers], name: str
) -> None:
    proxy, behind = proxied
    deployment.book.put_up_gate(name)
    leader = callers.call(0, "work.long", name)
    deployment.book.started(name)
    follower = behind.call(BEHIND_PROXY, "work.long", name)
    deployment.wait_for_waiters(1, "work.long", name)
    proxy.reset()
    with _no_subscription(proxy):
        proxy.cut()
        wait_until(lambda: ("EVALSHA",) in proxy.trips, timeout=10, message="the follower to ask again")
        deployment.book.open_gate(name)
        leader.answer()

        assert follower.answer(10) == f"{name}#1"
    assert deployment.book.computes(name) == 1


@contextmanager
def _subscriptions_counted(proxy: RedisProxy) -> Iterator[threading.Semaphore]:
    """A semaphore that every SUBSCRIBE releases."""
    seen = threading.Semaphore(0)
    proxy.on_command = lambda command: seen.release() if command[0] == b"SUBSCRIBE" else None
    try:
        yield seen
    finally:
        proxy.on_command = None


@contextmanager
def _no_subscription(proxy: RedisProxy) -> Iterator[None]:
    """Commands pass, and no SUBSCRIBE does: the data path lives, the backplane does not."""
    over = threading.Event()

    def hold(command: Command) -> None:
        if command[0] == b"SUBSCRIBE":
            over.wait(30)

    proxy.on_command = hold
    try:
        yield
    finally:
        proxy.on_command = None
        over.set()


# -- fences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["is missing", "has a new version"])
@pytest.mark.parametrize("newcomer", [1, 0], ids=["another process", "the leader's process"])
def test_after_an_invalidation_nobody_waits_for_the_doomed_leader_or_gets_its_value(
    deployment: Deployment, callers: Callers, name: str, newcomer: int, tag: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    leader = callers.call(0, "work.long", name)
    book.started(name)

    deployment.tiers.invalidate_tag(f"name:{name}")
    if tag == "has a new version":  # as another task under the same tag has run
        book.client.delete(f"gated:{name}")
        callers.call(3, "work.strict", name).answer()
        book.put_up_gate(name)
        book.started(name)
    follower = callers.call(newcomer, "work.long", name)
    second, _ = book.started(name, timeout=5)  # at once, not after the leader
    book.open_gate(name, 1)
    assert leader.answer() == f"{name}#1"
    third = callers.call(2, "work.long", name)
    deployment.wait_for_waiters(1, "work.long", name)  # the old value was not stored
    book.open_gate(name, second)

    assert (follower.answer(), third.answer()) == (f"{name}#{second}", f"{name}#{second}")


def test_what_was_invalidated_during_its_compute_reaches_its_caller_and_is_not_stored(
    deployment: Deployment, callers: Callers, name: str
) -> None:
    book = deployment.book
    book.put_up_gate(name)
    leader = callers.call(0, "work.long", name)
    book.started(name)
    deployment.tiers.invalidate_tag(f"name:{name}")
    book.client.delete(f"gated:{name}")
    callers.call(3, "work.strict", name).answer()  # gives the tag a new version
    book.open_gate(name, 1)

    assert leader.answer() == f"{name}#1"
    assert [callers.call(each, "work.long", name).answer() for each in range(2)] == [f"{name}#3"] * 2


@pytest.mark.parametrize("fence", ["invalidate", "put", "invalidate_key", "clear"])
def test_a_writer_fences_the_leader_that_computes_from_an_older_state(
    deployment: Deployment, callers: Callers, name: str, fence: str
) -> None:
    book, task = deployment.book, deployment.task("work.long")
    book.put_up_gate(name)
    leader = callers.call(0, "work.long", name)
    book.started(name)
    waiting = callers.call(1, "work.long", name)
    deployment.wait_for_waiters(1, "work.long", name)

    if fence == "put":
        task.cache.put((name,), "put")
        expected, computes = "put", 1
    else:
        acts = {
            "invalidate": lambda: task.cache.invalidate(name),
            "invalidate_key": lambda: CacheTiers(deployment.app).invalidate_key(task.cache.key(name)),
            "clear": lambda: CacheTiers(deployment.app).clear("work.long"),
        }
        acts[fence]()
        expected, computes = f"{name}#2", 2
        if fence == "clear":  # who waited already came before the clearing; the next one leads
            newcomer = callers.call(2, "work.long", name)
        book.started(name, timeout=5)
        book.open_gate(name, 2)
        if fence == "clear":
            assert newcomer.answer(10) == expected
    assert waiting.answer(10) == expected
    book.open_gate(name, 1)

    assert leader.answer() == f"{name}#1"
    assert [callers.call(each, "work.long", name).answer() for each in range(PROCESSES)] == [expected] * PROCESSES
    assert book.computes(name) == computes


def test_a_strict_read_does_not_serve_a_key_that_was_invalidated_before_it(deployment: Deployment, name: str) -> None:
    """The backplane's delay is stretched without end: a strict read must not lean on it."""
    with Deployment(deployment.server, cachetiers_namespace=deployment.namespace) as other:
        task = other.task("work.strict")
        other.tiers.cache.parts.backplane.start()
        assert other.tiers.cache.parts.backplane.wait_connected(10)
        other.tiers.cache.parts.backplane._listener.invalidated = lambda names: None
        assert [task(name), task(name)] == [f"{name}#1"] * 2

        deployment.task("work.strict").cache.invalidate(name)
        after_invalidate = task(name)
        deployment.task("work.strict").cache.put((name,), "put")
        after_put = task(name)
        deployment.tiers.invalidate_tag(f"name:{name}")
        after_tag = task(name)

    assert (after_invalidate, after_put, after_tag) == (f"{name}#2", "put", f"{name}#3")
