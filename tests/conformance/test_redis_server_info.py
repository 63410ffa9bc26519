"""A server about itself, on both servers that tests run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient, was_answered
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.server_info import traffic
from celery_cachetiers.tiers.redis_server import RedisServerInfo
from tests.servers import RedisServer


@pytest.fixture
def info(every_redis_server: RedisServer) -> Iterator[RedisServerInfo]:
    found = RedisServerInfo(RedisClient(every_redis_server.url(), 5.0, Breaker(0.0, SystemClock())))
    yield found
    found.close()


def test_everything_is_told(info: RedisServerInfo, every_redis_server: RedisServer) -> None:
    read = info.read()

    with every_redis_server.client() as client:
        theirs = client.info()
    assert (read.run_id, read.redis_version, read.role) == (theirs["run_id"], theirs["redis_version"], "master")
    assert read.maxmemory_policy == theirs["maxmemory_policy"]
    assert read.used_memory > 100_000
    assert read.connected_clients >= 1


def test_lookups_are_counted_between_two_readings(info: RedisServerInfo, namespace: str) -> None:
    key = f"{namespace}:x"
    info.ask_all([("SET", key, "1", "PX", "60000")])
    before = info.read()
    info.ask_all([("GET", key), ("GET", key), ("GET", f"{key}:none")])

    seen = traffic(before, info.read())

    assert seen.keyspace_hits >= 2
    assert seen.keyspace_misses >= 1
    assert seen.complete


def test_a_user_who_may_not_ask_is_told_apart_from_a_server_that_is_gone(
    info: RedisServerInfo, every_redis_server: RedisServer
) -> None:
    with every_redis_server.client() as client:
        client.acl_setuser("blind", enabled=True, nopass=True, categories=["+@all"], commands=["-info"], keys=["*"])
        url = every_redis_server.url().replace("redis://", "redis://blind:x@")
        blind = RedisServerInfo(RedisClient(url, 5.0, Breaker(0.0, SystemClock())))

        with pytest.raises(TierUnavailable, match="permission") as caught:
            blind.read()

        assert was_answered(caught.value)
        blind.close()
        client.acl_deluser("blind")
