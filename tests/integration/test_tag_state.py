"""What a tag costs in Redis: one key, one round trip to invalidate it, and nothing that stays behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import Count, cached_app, closing, wait_listening
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers

SOON = 15.0


@pytest.fixture
def server(redis_factory: RedisServers) -> RedisServer:
    return redis_factory()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[RedisProxy]:
    with RedisProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client(socket_timeout=60.0) as client:
        yield client


@pytest.fixture
def app(namespace: str, proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, proxy.url(), cachetiers_timeout=5.0)) as app:
        yield app


TAGS: dict[str, dict[str, Any]] = {
    "by argument": {"tags": ["row:{row}"]},
    "by result": {"tags_from": lambda result: [f"row:{result[0]}"]},
}


def pager(app: Celery, name: str = "page", tags: str = "by argument", **options: Any) -> Any:
    def page(row: str, view: int) -> list[Any]:
        return [row, view]

    return app.task(page, base=CachedTask, name=name, l1=False, **TAGS[tags], **options)


def kinds(admin: redis.Redis) -> Counter[str]:
    """How many keys there are of each kind: e(ntries), t(ags), l(eases), w(aiters), o(utcomes), inv(alidation log)."""
    return Counter(key.decode().split(":")[2] for key in admin.scan_iter(count=10_000))


def fill(admin: redis.Redis, page: Any, many: int) -> None:
    """So many valid entries under the tag ``row:a``, copied from one that the library made."""
    page.cache.put(("a", 0), ["a", 0])
    key = page.cache.key("a", 0)
    [name] = admin.scan_iter(f"*:e:{key}", count=10_000)
    entry = admin.get(name)
    head = name.decode().removesuffix(key)
    for views in batched_range(many, 10_000):
        with admin.pipeline(transaction=False) as pipeline:
            for view in views:
                pipeline.set(head + page.cache.key("a", view), entry, ex=600)
            pipeline.execute()


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("entries", [10, 10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_invalidating_a_tag_is_one_round_trip_whatever_the_number_of_entries(
    app: Celery, admin: redis.Redis, proxy: RedisProxy, tags: str, entries: int
) -> None:
    page, sample = pager(app, tags=tags), range(0, entries, max(entries // 20, 1))
    wait_listening(app)
    CacheTiers(app).invalidate_tag("row:b")  # what there is to connect, and to make once
    fill(admin, page, entries)
    assert [view for view in sample if page.cache.get("a", view) is MISSING] == []
    keys = admin.dbsize()
    proxy.reset()
    CacheTiers(app).invalidate_tag("row:a")

    [trip] = [trip for trip in proxy.trips if trip != ("PUBLISH",)]  # that is the heartbeat
    assert len(trip) <= 3
    assert admin.dbsize() <= keys
    assert [view for view in sample if page.cache.get("a", view) is not MISSING] == []


@pytest.mark.parametrize("tags", TAGS)
def test_a_tag_is_one_key_however_many_entries_are_under_it(app: Celery, admin: redis.Redis, tags: str) -> None:
    """Tags of results have one key more in common: what was invalidated lately."""
    page, log = pager(app, tags=tags), Counter(inv=tags == "by result")
    for row in "abcde":
        for view in range(20):
            page(row, view)

    assert kinds(admin) - log == {"e": 100, "t": 5 + len(("the task", "the namespace"))}
    assert admin.dbsize() == kinds(admin).total()

    for row in "abcde":
        CacheTiers(app).invalidate_tag(f"row:{row}")
        for view in range(20):
            page(row, view)

    assert kinds(admin) - log == {"e": 100, "t": 5 + 2}
    assert admin.dbsize() == kinds(admin).total()


def test_a_key_that_is_computed_and_waited_for_adds_a_lease_and_a_set_of_inboxes(
    app: Celery, admin: redis.Redis
) -> None:
    gate = Gate("compute")

    @app.task(base=CachedTask, name="page", tags=["row:{row}"])
    def page(row: str) -> str:
        gate.pass_through()
        return row

    with ThreadPoolExecutor(1) as pool:
        led = pool.submit(page, "a")
        gate.wait_reached()
        assert kinds(admin) == {"l": 1, "t": 3}

        page.memoized.cache.watch(page.memoized.call(("a",), {}))
        assert kinds(admin) == {"l": 1, "t": 3, "w": 1}

        gate.open()
        assert led.result(30) == "a"

    assert kinds(admin) == {"e": 1, "t": 3}


def test_nothing_is_left_when_the_times_to_live_are_over(
    namespace: str, server: RedisServer, admin: redis.Redis
) -> None:
    short = {"ttl": 1.0, "lease_ttl": 1.0, "wait_limit": 1.0}
    with closing(cached_app(namespace, server.url(), cachetiers_timeout=5.0)) as app:
        page, shown = pager(app, **short), pager(app, "shown", tags="by result", **short)

        @app.task(base=CachedTask, name="fail", tags=["row:{row}"], **short)
        def fail(row: str) -> None:
            raise ValueError(row)

        wait_listening(app)
        for view in range(5):
            page("a", view)
            shown("a", view)
        page.cache.put(("b", 0), ["b", 0])
        page.memoized.cache.hand_over(page.memoized.call(("b", 1), {}), "task-1", only_if_stale=False)
        page.memoized.cache.watch(page.memoized.call(("b", 1), {}))
        with pytest.raises(ValueError, match="c"):
            fail("c")
        CacheTiers(app).invalidate_tag("row:a")
        page.cache.invalidate("b", 0)
        assert set(kinds(admin)) == {"e", "inv", "l", "o", "t", "w"}

        wait_until(lambda: admin.dbsize() == 0, timeout=SOON, message="an empty server")


@pytest.mark.parametrize("tags", TAGS)
def test_an_entry_can_be_invalidated_after_a_short_lived_sibling_of_its_tag_has_gone(
    app: Celery, admin: redis.Redis, tags: str
) -> None:
    """Where the tag's bookkeeping has the sibling's TTL, the entry is out of reach from then on, or lost with it."""
    count = Count()

    @app.task(base=CachedTask, name="long", l1=False, ttl=600, **TAGS[tags])
    def long(row: str) -> list[Any]:
        return [row, count()]

    short = pager(app, "short", tags, ttl=0.1, lease_ttl=0.1)
    assert long("a") == ["a", 1]
    short("a", 0)
    short.cache.put(("a", 1), ["a", 1])
    entries = [page.cache.key(*args) for page, args in ((short, ("a", 0)), (short, ("a", 1)))]
    wait_until(
        lambda: not any(admin.keys(f"*:e:{key}") for key in entries), timeout=SOON, message="the end of the short-lived"
    )
    versions = [key for key in admin.scan_iter("*:t:*") if b"@task:short" not in key]
    assert [key for key in versions if admin.pttl(key) < 500_000] == []
    assert long("a") == ["a", 1]

    CacheTiers(app).invalidate_tag("row:a")
    assert long("a") == ["a", 2]


def batched_range(many: int, size: int) -> Iterator[range]:
    """The numbers below ``many``, so many at a time."""
    return (range(at, min(at + size, many)) for at in range(0, many, size))
