"""The store in Redis, on both servers that tests run against, over TCP and over a unix socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_cachetiers.testing.conformance import StoreConformance, StoreUnderTest
from tests.conformance.redis_process import redis_under_test
from tests.servers import RedisServer


class TestOverTcp(StoreConformance):
    @pytest.fixture
    def store(self, every_redis_server: RedisServer, namespace: str) -> Iterator[StoreUnderTest]:
        with redis_under_test(every_redis_server.url(), namespace) as store:
            yield store


class TestOverUnixSocket(StoreConformance):
    @pytest.fixture
    def store(self, redis_server: RedisServer, namespace: str) -> Iterator[StoreUnderTest]:
        with redis_under_test(redis_server.unix_url(), namespace) as store:
            yield store
