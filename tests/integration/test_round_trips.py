"""What each path costs in round trips to Redis and in messages to the broker, counted by the proxy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers, Write, sink
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import Count, cached_app, close, closing, published, run_published, wait_listening
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers

BACKGROUND = {"PUBLISH"}
"""The backplane's heartbeat: one PUBLISH every two seconds and process, whatever the calls do."""


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        yield app


def warm(app: Celery, proxy: RedisProxy) -> None:
    """Opens the connections and loads the scripts, then counts from zero."""

    @app.task(base=CachedTask, name="warm", tags=["warm"])
    def warm_up(number: int) -> int:
        return number

    wait_listening(app)
    warm_up(1)
    warm_up.cache.put((2,), 2)
    CacheTiers(app).invalidate_tag("nothing")
    proxy.reset()


def trips(proxy: RedisProxy) -> list[tuple[str, ...]]:
    return [trip for trip in proxy.trips if not set(trip) <= BACKGROUND]


def adder(app: Celery, **options: Any) -> Any:
    @app.task(base=CachedTask, name="add", **options)
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def test_an_l1_hit_sends_no_command(app: Celery, redis_proxy: RedisProxy) -> None:
    add = adder(app, tags=["sum:{x}"])
    warm(app, redis_proxy)
    add(1, 2)
    redis_proxy.reset()

    assert [add(1, 2) for _ in range(10)] == [3] * 10
    assert add.delay(1, y=2).get() == 3
    assert add.cache.get(1, 2) == 3
    assert trips(redis_proxy) == []
    assert add.cache.info().l1_hits == 12


@pytest.mark.parametrize("tags", [0, 1, 5])
@pytest.mark.parametrize("seam", ["call", "publish", "get"])
def test_an_l2_hit_is_one_mget_whatever_the_number_of_tags(
    app: Celery, redis_proxy: RedisProxy, tags: int, seam: str
) -> None:
    add = adder(app, tags=[f"tag{number}:{{x}}" for number in range(tags)], l1=False)
    warm(app, redis_proxy)
    add(1, 2)
    redis_proxy.reset()

    value = {"call": lambda: add(1, 2), "publish": lambda: add.delay(1, 2).get(), "get": lambda: add.cache.get(1, 2)}
    assert value[seam]() == 3
    assert trips(redis_proxy) == [("MGET",)]
    assert add.cache.info().l2_hits == 1


@pytest.mark.parametrize("seam", ["call", "publish", "get"])
def test_tags_of_the_result_cost_a_second_mget_where_the_process_has_forgotten_them(
    app: Celery, redis_proxy: RedisProxy, seam: str
) -> None:
    rows = adder(
        app, tags=["sum:{x}"], tags_from=lambda result: [f"row:{number}" for number in range(result)], l1=False
    )
    warm(app, redis_proxy)
    assert rows(1, 2) == 3
    value = {
        "call": lambda: rows(1, 2),
        "publish": lambda: rows.delay(1, 2).get(),
        "get": lambda: rows.cache.get(1, 2),
    }
    redis_proxy.reset()
    assert value[seam]() == 3
    assert trips(redis_proxy) == [("MGET",)]
    CacheTiers(app).seen_tags.reset_after_fork()  # as in any other process
    redis_proxy.reset()

    assert [value[seam]() for _ in range(3)] == [3] * 3
    assert trips(redis_proxy) == [("MGET",)] * 4


def test_a_miss_with_tags_of_the_result_is_three_round_trips(app: Celery, redis_proxy: RedisProxy) -> None:
    rows = adder(app, tags_from=lambda result: [f"row:{number}" for number in range(result)])
    warm(app, redis_proxy)
    rows(1)
    redis_proxy.reset()

    assert rows(1, 2) == 3
    assert trips(redis_proxy) == [("MGET",), ("EVALSHA",), ("EVALSHA",)]


@pytest.mark.parametrize("tags", [0, 1, 5])
def test_a_miss_with_its_commit_is_three_round_trips(app: Celery, redis_proxy: RedisProxy, tags: int) -> None:
    add = adder(app, tags=[f"tag{number}:{{x}}" for number in range(tags)])
    warm(app, redis_proxy)

    assert add(1, 2) == 3
    assert trips(redis_proxy) == [("MGET",), ("EVALSHA",), ("EVALSHA",)]
    assert add.cache.info().stores == 1


def test_a_miss_is_two_round_trips_in_a_worker_whose_caller_has_just_looked(
    app: Celery, redis_proxy: RedisProxy
) -> None:
    add = adder(app, tags=["sum:{x}"])
    warm(app, redis_proxy)
    add.delay(1, 2)
    assert trips(redis_proxy) == [("MGET",)]
    redis_proxy.reset()

    [result] = run_published(app)

    assert result.get() == 3
    assert trips(redis_proxy) == [("EVALSHA",), ("EVALSHA",)]
    assert add.cache.info().stores == 1


def test_a_caller_that_looked_for_another_key_spares_the_worker_nothing(app: Celery, redis_proxy: RedisProxy) -> None:
    add = adder(app)
    warm(app, redis_proxy)
    add.delay(1, 2)
    [message] = published(app)
    redis_proxy.reset()

    add.apply((7, 8), headers=message.headers)

    assert trips(redis_proxy) == [("MGET",), ("EVALSHA",), ("EVALSHA",)]


def test_an_entry_that_appeared_after_the_caller_looked_is_one_round_trip(app: Celery, redis_proxy: RedisProxy) -> None:
    add = adder(app, l1=False)
    warm(app, redis_proxy)
    add.delay(1, 2)
    add(1, 2)
    redis_proxy.reset()

    [result] = run_published(app)

    assert result.get() == 3
    assert trips(redis_proxy) == [("EVALSHA",)]
    assert add.cache.info().computes == 1


def test_a_strict_l1_hit_is_one_round_trip(app: Celery, redis_proxy: RedisProxy) -> None:
    add = adder(app, consistency="strict", tags=["sum:{x}", "sums"])
    warm(app, redis_proxy)
    add(1, 2)
    redis_proxy.reset()

    assert add(1, 2) == 3
    assert len(trips(redis_proxy)) == 1
    assert add.cache.info().l1_hits == 1


@pytest.mark.parametrize("number", [1, 50])
def test_an_invalidation_is_one_round_trip(app: Celery, redis_proxy: RedisProxy, number: int) -> None:
    add = adder(app, tags=["sum:{x}"])
    warm(app, redis_proxy)
    for x in range(number):
        add(x)
    redis_proxy.reset()

    CacheTiers(app).invalidate_tags([f"sum:{x}" for x in range(number)])

    assert redis_proxy.trips.count(("EVALSHA", "PUBLISH")) == 1
    assert trips(redis_proxy) == [("EVALSHA", "PUBLISH")]
    assert [add.cache.get(x) for x in range(number)] == [MISSING] * number


def test_clear_put_and_invalidate_are_one_round_trip_each(app: Celery, redis_proxy: RedisProxy) -> None:
    add = adder(app, tags=["sum:{x}"])
    warm(app, redis_proxy)

    add.cache.put((1, 2), 3)
    assert trips(redis_proxy) == [("EVALSHA",)]
    add.cache.invalidate(1, 2)
    assert trips(redis_proxy) == [("EVALSHA",)] * 2
    CacheTiers(app).clear()
    assert trips(redis_proxy) == [("EVALSHA",)] * 2 + [("EVALSHA", "PUBLISH")]


# -- write-behind ------------------------------------------------------------------------------------------------------

TOGETHER = ("MULTI", "EVALSHA", "EVALSHA", "EXEC")
"""Journal and entry in one transaction."""


@pytest.fixture
def orders(namespace: str) -> list[list[Write]]:
    """The batches that the sink `namespace` has got; it takes 10 writes in one."""
    batches: list[list[Write]] = []
    sink(namespace, batch_size=10)(batches.append)
    return batches


def behind(app: Celery, proxy: RedisProxy, namespace: str, **options: Any) -> Any:
    """An adder that writes behind, after one write and one flush; no worker is asked to flush."""
    add = adder(app, sink=namespace, write="behind", **options)
    warm(app, proxy)
    add(-1)
    add.cache.put((-2,), 0)
    add.cache.delete(-2)
    CacheTiers(app).writes.flush(namespace)
    proxy.reset()
    return add


def test_a_put_behind_is_one_round_trip_with_its_journal_beside_it(
    app: Celery, redis_proxy: RedisProxy, namespace: str, orders: list[list[Write]]
) -> None:
    add = behind(app, redis_proxy, namespace, tags=["sum:{x}"])

    add.cache.put((1, 2), 3)

    assert trips(redis_proxy) == [TOGETHER]


def test_a_hundred_puts_behind_are_one_round_trip_as_well(
    app: Celery, redis_proxy: RedisProxy, namespace: str, orders: list[list[Write]]
) -> None:
    add = behind(app, redis_proxy, namespace)

    add.cache.put_many([((x,), x) for x in range(100)])

    assert trips(redis_proxy) == [("MULTI", *["EVALSHA"] * 101, "EXEC")]


@pytest.mark.parametrize("number", [1, 100])
def test_puts_behind_are_three_round_trips_where_the_journal_has_a_server_of_its_own(
    namespace: str, redis_factory: RedisServers, redis_proxy: RedisProxy, orders: list[list[Write]], number: int
) -> None:
    with (
        RedisProxy(redis_factory().port) as own,
        closing(cached_app(namespace, redis_proxy.url(), cachetiers_journal_url=own.url())) as app,
    ):
        add = behind(app, redis_proxy, namespace)
        add.cache.put((-3,), 0)  # loads what it looks into the journal with
        redis_proxy.reset()
        own.reset()

        add.cache.put_many([((x,), x) for x in range(number)])

        assert trips(own) == [("EVALSHA",)] * 2  # the write; whether it is still the last
        [entries] = trips(redis_proxy)
        assert entries.count("EVALSHA") == number


def test_a_delete_behind_is_two_round_trips(
    app: Celery, redis_proxy: RedisProxy, namespace: str, orders: list[list[Write]]
) -> None:
    add = behind(app, redis_proxy, namespace)

    add.cache.delete(1, 2)

    assert trips(redis_proxy) == [("EVALSHA",)] * 2


def test_a_compute_behind_costs_two_round_trips_over_any_other(
    app: Celery, redis_proxy: RedisProxy, namespace: str, orders: list[list[Write]]
) -> None:
    add = behind(app, redis_proxy, namespace)

    assert add(1, 2) == 3
    # look, lease; what waits in the journal, and a sequence; the write; commit
    assert trips(redis_proxy) == [("MGET",), *[("EVALSHA",)] * 4]


@pytest.mark.parametrize(("records", "batches"), [(1, 1), (10, 1), (25, 3)])
def test_a_flush_is_a_look_two_round_trips_for_each_batch_and_one_to_see_that_there_is_no_more(
    app: Celery, redis_proxy: RedisProxy, namespace: str, orders: list[list[Write]], records: int, batches: int
) -> None:
    add = behind(app, redis_proxy, namespace)
    add.cache.put_many([((x,), x) for x in range(records)])
    orders.clear()
    redis_proxy.reset()

    CacheTiers(app).writes.flush(namespace)

    assert [len(batch) for batch in orders] == [min(10, records - at) for at in range(0, records, 10)]
    assert trips(redis_proxy) == [("INFO",), *[("EVALSHA",)] * (2 * batches + 1)]


def test_a_flush_invalidates_in_one_round_trip_a_batch(
    app: Celery, redis_proxy: RedisProxy, namespace: str, orders: list[list[Write]]
) -> None:
    add = behind(app, redis_proxy, namespace, invalidates=["sum:{x}"])
    add.cache.put_many([((x,), x) for x in range(10)])
    redis_proxy.reset()

    CacheTiers(app).writes.flush(namespace)

    [look, claimed, invalidated, acknowledged, empty] = trips(redis_proxy)
    assert look == ("INFO",)
    assert claimed == acknowledged == empty == ("EVALSHA",)
    assert invalidated == ("EVALSHA", "PUBLISH")


def test_a_failing_body_costs_the_release_instead_of_the_commit(app: Celery, redis_proxy: RedisProxy) -> None:
    @app.task(base=CachedTask, name="fail")
    def fail() -> None:
        raise LookupError("no")

    warm(app, redis_proxy)
    with pytest.raises(LookupError):
        fail()
    redis_proxy.reset()

    with pytest.raises(LookupError):
        fail()
    assert trips(redis_proxy) == [("MGET",), ("EVALSHA",), ("EVALSHA",)]


def test_a_fresh_hit_publishes_nothing_and_a_miss_one_message(
    namespace: str, redis_server: RedisServer, redis_proxy: RedisProxy
) -> None:
    with RedisProxy(redis_server.port) as broker:
        app = cached_app(namespace, redis_proxy.url(), broker_url=broker.url(), result_backend="cache+memory://")
        add = adder(app)
        add(1, 2)
        broker.reset()

        assert [add.delay(1, 2).get() for _ in range(20)] == [3] * 20
        assert broker.commands.total() == 0
        assert broker.connections == 0
        add.delay(3, 4)
        assert broker.commands["LPUSH"] == 1

        close(app)


def test_followers_cost_nothing_while_they_wait(app: Celery, redis_proxy: RedisProxy, namespace: str) -> None:
    gate, count = Gate("compute"), Count()

    def slow(x: int) -> int:
        count(x)
        gate.pass_through()
        return x

    with closing(cached_app(namespace, redis_proxy.url())) as other, ThreadPoolExecutor(9) as pool:
        leader = app.task(slow, base=CachedTask, name="slow", lease_ttl=60.0)
        follower = other.task(slow, base=CachedTask, name="slow", lease_ttl=60.0)
        warm(app, redis_proxy)
        warm(other, redis_proxy)
        led = pool.submit(leader, 1)
        gate.wait_reached()
        followed = [pool.submit(follower, 1) for _ in range(8)]
        waiters = CacheTiers(other).cache.parts.wake_ups
        wait_until(lambda: len(waiters) == 1, timeout=10, message="a registered follower")
        asked = {"MGET": 9, "EVALSHA": 2}
        wait_until(lambda: asked.items() <= redis_proxy.commands.items(), timeout=10, message="all first looks")
        wait_until(lambda: redis_proxy.commands["MGET"] == 9, timeout=10, message="everybody's look")
        redis_proxy.reset()
        threading.Event().wait(1.0)  # nothing is to happen: the one way to see that is to look for a while
        waited = trips(redis_proxy)
        gate.open()
        values = [future.result(30) for future in (led, *followed)]

    assert waited == []
    assert values == [1] * 9
    assert len(count) == 1
