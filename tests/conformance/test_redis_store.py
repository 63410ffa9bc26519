"""The store in Redis, on both servers that tests run against, over TCP and over a unix socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_cachetiers.testing.conformance import StoreConformance, StoreUnderTest
from tests.conformance.redis_process import redis_under_test
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def over_tcp(every_redis_server: RedisServer) -> Iterator[StoreUnderTest]:
    with redis_under_test(every_redis_server.url()) as store:
        yield store


@pytest.fixture(scope="module")
def over_unix_socket(redis_server: RedisServer) -> Iterator[StoreUnderTest]:
    with redis_under_test(redis_server.unix_url()) as store:
        yield store


class TestOverTcp(StoreConformance):
    @pytest.fixture
    def store(self, over_tcp: StoreUnderTest) -> StoreUnderTest:
        return over_tcp


class TestOverUnixSocket(StoreConformance):
    @pytest.fixture
    def store(self, over_unix_socket: StoreUnderTest) -> StoreUnderTest:
        return over_unix_socket
