"""What the conformance tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.tiers.layout import Layout

pytest.register_assert_rewrite("celery_cachetiers.testing.conformance")


@pytest.fixture
def process(namespace: str) -> Iterator[Callable[..., Any]]:
    """``process(url, **options)`` gives a process' side of a server, in the test's namespace; see `redis_process`."""
    from tests.conformance.redis_process import redis_process  # after the suites were registered, which it imports

    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(redis_process(url, namespace, **options))


@pytest.fixture
def adapter(namespace: str) -> Iterator[Callable[..., Any]]:
    """``adapter(kind, url)`` gives what a client and a layout make, in the test's namespace; closed after the test."""
    with ExitStack() as stack:

        def make(kind: Callable[[RedisClient, Layout], Any], url: str) -> Any:
            made = kind(RedisClient(url, 5.0, Breaker(0.0, SystemClock())), Layout(namespace))
            stack.callback(made.close)
            return made

        yield make
