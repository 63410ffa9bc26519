"""Stores on real Redis servers: one process' client, backplane and store, as `celery_cachetiers.app` wires them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from celery_cachetiers.backplane.redis import RedisBackplane
from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.testing import RecordingListener
from celery_cachetiers.testing.conformance import StoreUnderTest
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.redis import RedisStore


@dataclass
class RedisProcess:
    """What one process has on one server."""

    store: RedisStore
    client: RedisClient
    backplane: RedisBackplane
    layout: Layout
    heard: RecordingListener
    unusable: list[str] = field(default_factory=list)


@contextmanager
def redis_process(url: str, namespace: str, *, listening: bool = True, timeout: float = 5.0) -> Iterator[RedisProcess]:
    """A process' side of a server, listening to the backplane; the breaker stays closed."""
    clock, layout, heard, unusable = SystemClock(), Layout(namespace), RecordingListener(), list[str]()
    client = RedisClient(url, timeout, Breaker(0.0, clock))
    backplane = RedisBackplane(client, layout, heard, clock)
    store = RedisStore(client, layout, lambda: backplane.inbox, unusable.append)
    if listening:
        backplane.start()
        assert backplane.wait_connected(5.0), "no backplane"
    try:
        yield RedisProcess(store, client, backplane, layout, heard, unusable)
    finally:
        backplane.close()
        client.close()


@contextmanager
def redis_under_test(url: str) -> Iterator[StoreUnderTest]:
    """Two processes on one server, in a namespace of their own."""
    namespace = f"t{uuid.uuid4().hex[:12]}"
    with redis_process(url, namespace) as ours, redis_process(url, namespace) as theirs:
        yield StoreUnderTest(ours.store, theirs.store, ours.heard, theirs.heard)
