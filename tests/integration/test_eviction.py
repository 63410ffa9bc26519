"""Redis is smaller than what is cached: whatever it evicts or refuses, nothing that was invalidated is served (P4)."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, TierUnavailable
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import cached_app, closing
from tests.servers import RedisServer, RedisServers

POLICIES = (
    "noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random",
    "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
)  # fmt: skip
ROWS, VIEWS, PADDING = 10, 40, 8_000
ROOM = 1_000_000
"""Bytes for what would take three times as much."""

THREADS, STEPS = 4, 400


@pytest.fixture
def server(redis_factory: RedisServers) -> RedisServer:
    return redis_factory()


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def app(namespace: str, server: RedisServer) -> Iterator[Celery]:
    with closing(cached_app(namespace, server.url(), cachetiers_timeout=5.0, cachetiers_breaker_window=0.0)) as app:
        yield app


def limit(admin: redis.Redis, policy: str, room: int) -> None:
    """From now on the server has room for so many bytes."""
    admin.config_set("maxmemory-policy", policy)
    admin.config_set("maxmemory", str(int(admin.info("memory")["used_memory"]) + room))
    admin.config_resetstat()


TAGS: dict[str, dict[str, Any]] = {
    "by argument": {"tags": ["row:{row}"]},
    "by result": {"tags_from": lambda result: [f"row:{result[0]}"]},
}


class Book:
    """Rows with a version each, and tasks that show one of them; every thread has rows of its own to write."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._written, self._invalidated = [0] * ROWS, [0] * ROWS
        self.seen: Counter[str] = Counter()
        self.stale: list[str] = []
        self.tasks = [app.task(self._page, base=CachedTask, name=name, ttl=60, l1=False, **TAGS[name]) for name in TAGS]

    def _page(self, row: int, view: int) -> list[Any]:
        version = self._written[row]
        time.sleep(0.002 * random.random())  # the length of a compute is the input here, not a rendezvous
        return [row, version, os.urandom(PADDING // 2).hex()]

    def count(self, what: str) -> int:
        """What `task.cache.info()` says, of all tasks."""
        return sum(getattr(task.cache.info(), what) for task in self.tasks)

    def act(self, thread: int, seed: int) -> None:
        """Reads all rows and writes its own, at random."""
        draw = random.Random(f"{seed}:{thread}")
        for _ in range(STEPS):
            if draw.random() < 0.06:
                self._write(draw.randrange(thread, ROWS, THREADS))
            else:
                view = int(VIEWS * draw.random() ** 3)  # some are asked for often
                self._read(draw.choice(self.tasks), draw.randrange(ROWS), view)

    def _write(self, row: int) -> None:
        self._written[row] += 1
        try:
            CacheTiers(self._app).invalidate_tag(f"row:{row}")
        except TierUnavailable:
            self.seen["raised"] += 1
        else:
            self._invalidated[row] = self._written[row]

    def _read(self, task: Any, row: int, view: int) -> None:
        least = self._invalidated[row]
        _, version, _ = task(row, view)
        if version < least:
            self.stale.append(f"{task.name} {row}: read {version} after {least} was invalidated")


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_invalidated_is_served_whatever_a_small_server_evicts(
    app: Celery, admin: redis.Redis, policy: str
) -> None:
    seed = int(os.environ.get("EVICTION_SEED", random.randrange(2**32)))
    print(f"EVICTION_SEED={seed}")
    book = Book(app)
    for task in book.tasks:
        task(0, 0)
    limit(admin, policy, ROOM)
    with ThreadPoolExecutor(THREADS) as pool:
        acting = [pool.submit(book.act, thread, seed) for thread in range(THREADS)]
        for each in acting:
            each.result(100)

    evicted = int(admin.info("stats")["evicted_keys"])
    print(f"{evicted} evicted, {book.seen['raised']} invalidations raised, {book.count('l2_hits')} hits")
    assert book.stale == []
    assert book.count("l2_hits") > 50
    assert book.count("stores") > 50
    if policy == "noeviction":
        assert evicted == 0
        assert book.count("failed_open") + book.count("refused") > 50
    else:
        assert evicted > 50
        assert book.seen["raised"] == 0


@pytest.mark.parametrize("tags", TAGS)
def test_an_invalidation_on_a_full_server_completes_or_raises_and_is_never_lost(
    app: Celery, admin: redis.Redis, tags: str
) -> None:
    """An entry that is there, and one that is computed meanwhile: neither outlives an invalidation that returned."""
    gate, versions = Gate("compute"), Counter[str]()

    @app.task(base=CachedTask, name="page", l1=False, **TAGS[tags])
    def page(row: str, view: str) -> list[Any]:
        version = versions[row]
        if view == "computing" and not version:
            gate.pass_through()
        return [row, version]

    assert page("a", "stored") == ["a", 0]
    with ThreadPoolExecutor(1) as pool:
        led = pool.submit(page, "a", "computing")
        gate.wait_reached()
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            admin.set("one more", "x" * 1000)
        versions["a"] += 1
        completed = _completed(app, "row:a")
        gate.open()
        assert led.result(30) == ["a", 0]

    if completed:
        assert [page("a", view) for view in ("stored", "computing")] == [["a", 1]] * 2
    else:
        CacheTiers(app).invalidate_tag("row:a")
    admin.config_set("maxmemory", "0")
    assert [page("a", view) for view in ("stored", "computing")] == [["a", 1]] * 2
    assert [page.cache.get("a", view) for view in ("stored", "computing")] == [["a", 1]] * 2


def _completed(app: Celery, tag: str) -> bool:
    try:
        CacheTiers(app).invalidate_tag(tag)
    except TierUnavailable:
        return False
    return True
