"""Signals across the seams and between processes, on a real Redis and with a real worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, TierUnavailable
from celery_cachetiers.client import Script
from celery_cachetiers.events import Event
from celery_cachetiers.signals import cache_hit, cache_miss, cache_stored, tag_invalidated
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import cached_app, closing, wait_listening, worker_of
from tests.proxy import RedisProxy
from tests.servers import RedisServer

PATIENCE = 20


class Heard:
    """A receiver that keeps what it was told, and can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.told: list[dict[str, Any]] = []

    def __call__(self, sender: Any, **kwargs: Any) -> None:
        with self._changed:
            self.told.append({"sender": sender, **kwargs})
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.told) >= number, PATIENCE)

    def each(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(told[name] for name in names) for told in self.told]


@pytest.fixture(autouse=True)
def _nobody_connected() -> Iterator[None]:
    yield
    for signal in (cache_hit, cache_miss, cache_stored, tag_invalidated):
        signal.receivers.clear()
        signal.settle()


@pytest.fixture
def app(namespace: str, redis_server: RedisServer) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_server.url())) as app:
        wait_listening(app)
        yield app


@pytest.fixture
def beside(app: Celery, namespace: str, redis_server: RedisServer) -> Iterator[Celery]:
    """Another process of the same deployment, as far as the cache can tell."""
    with closing(cached_app(namespace, redis_server.url())) as beside:
        wait_listening(beside)
        yield beside


def pager(app: Celery, **options: Any) -> Any:
    def page(user: str) -> str:
        return f"page of {user}"

    return app.task(page, **{"base": CachedTask, "name": "page", "tags": ["user:{user}"], **options})


def test_a_hit_in_redis_is_heard_in_the_process_that_asks(app: Celery, beside: Celery) -> None:
    page, same = pager(app), pager(beside)
    page("a")
    here, there = Heard(), Heard()
    cache_hit.connect(here, sender=page)
    cache_hit.connect(there, sender=same)

    assert same.delay("a").get(timeout=PATIENCE) == "page of a"
    assert same("a") == "page of a"
    assert there.each("tier", "stale", "key") == [(tier, False, page.cache.key("a")) for tier in ("l2", "l1")]
    assert here.told == []


def test_a_stale_hit_says_so(app: Celery) -> None:
    page, heard = pager(app, ttl=0.001, grace=60, l1=False), Heard()
    page("a")
    page.cache.put(("a",), "old", ttl=0.0001)
    cache_hit.connect(heard)

    assert page.cache.get("a") == "old"
    assert heard.each("tier", "stale") == [("l2", True)]


def test_what_redis_has_taken_is_stored_with_its_size(app: Celery) -> None:
    page, heard = pager(app), Heard()
    cache_stored.connect(heard, sender=page)
    page("a")
    page.cache.put(("a",), "x" * 1000)

    (computed, put) = heard.each("key", "size")
    assert computed[0] == put[0] == page.cache.key("a")
    assert computed[1] < 1000 < put[1]


def test_a_worker_that_answers_from_its_memory_without_a_slot_says_so(app: Celery) -> None:
    page, heard, missed = pager(app, publish_hits=False), Heard(), Heard()
    cache_hit.connect(heard, sender=page)
    cache_miss.connect(missed, sender=page)
    with worker_of(app, pool="threads", concurrency=2):
        for _ in range(3):
            assert page.delay("a").get(timeout=PATIENCE) == "page of a"

    assert missed.each("key") == [(page.cache.key("a"),)]
    assert heard.each("tier") == [("l1",), ("l1",)]


def test_requests_that_wait_without_a_slot_are_answered_by_their_leader(app: Celery) -> None:
    gate, heard, held = Gate("compute"), Heard(), threading.Semaphore(0)

    def page(user: str) -> str:
        gate.pass_through(PATIENCE)
        return f"page of {user}"

    slow = app.task(page, base=CachedTask, name="page")
    cache_hit.connect(heard, sender=slow)

    def note(event: Event, task: str, details: dict[str, object]) -> None:
        held.release()

    CacheTiers(app).events.subscribe(note, Event.HELD)
    with worker_of(app, pool="threads", concurrency=2):
        results = [slow.delay("a") for _ in range(3)]
        for _ in range(2):
            assert held.acquire(timeout=PATIENCE)
        gate.open()
        assert [result.get(timeout=PATIENCE) for result in results] == ["page of a"] * 3

    assert heard.each("tier", "stale") == [("leader", False)] * 2


def test_an_invalidation_is_told_where_it_is_made_and_where_it_is_heard_of(
    app: Celery, beside: Celery, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:  # else it is announced again, once the server knows the script
        client.script_load(Script("invalidate").source)
    here, there = Heard(), Heard()
    tag_invalidated.connect(here, sender=app)
    tag_invalidated.connect(there, sender=beside)
    CacheTiers(app).invalidate_tags(["user:a", "@mine"])
    there.wait_for(2)

    assert here.each("tag", "heard") == [("user:a", False), ("@mine", False)]
    assert there.each("tag", "heard") == [("user:a", True), ("@mine", True)]


def test_a_receiver_that_fails_in_the_backplanes_thread_does_not_end_it(app: Celery, beside: Celery) -> None:
    there = Heard()

    def fail(**kwargs: Any) -> None:
        raise RuntimeError("broken receiver")

    tag_invalidated.connect(fail, sender=beside)
    tag_invalidated.connect(there, sender=beside)
    for tag in ("user:a", "user:b"):
        CacheTiers(app).invalidate_tag(tag)
    there.wait_for(2)

    backplane = CacheTiers(beside).cache.parts.backplane
    assert backplane is not None
    assert backplane.connected()


def test_an_invalidation_that_did_not_reach_redis_is_not_told(namespace: str, redis_proxy: RedisProxy) -> None:
    heard = Heard()
    tag_invalidated.connect(heard)
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        redis_proxy.refuse()
        with pytest.raises(TierUnavailable):
            CacheTiers(app).invalidate_tag("user:a")

    assert heard.told == []


def test_hits_of_many_threads_are_all_heard(app: Celery) -> None:
    page, heard = pager(app), Heard()
    page("a")
    cache_hit.connect(heard, sender=page)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: page("a"), range(400)))

    assert heard.each("tier") == [("l1",)] * 400
