"""The sums in Redis, on both servers that tests run against; time to live, foreign keys and size besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.stats_port import HALF, Merge, rank
from celery_cachetiers.testing.conformance import StatsConformance, StatsUnderTest
from celery_cachetiers.tiers.redis_stats import (
    COOLED,
    FIELDS,
    HOTTEST,
    KEPT,
    REMEMBERED,
    SEEN_FOR,
    SEEN_KEYS,
    RedisStats,
)
from tests.servers import RedisServer, RedisServers

MISS = {"a": {"misses": 1}}
Stats = Callable[[str], RedisStats]


@pytest.fixture
def stats_at(adapter: Callable[..., Any]) -> Stats:
    return partial(adapter, RedisStats)


class TestRedisStats(StatsConformance):
    @pytest.fixture
    def stats(self, every_redis_server: RedisServer, stats_at: Stats, namespace: str) -> StatsUnderTest:
        def flush() -> None:
            with every_redis_server.client() as client:
                client.unlink(*client.keys(f"{namespace}:*"))

        url = every_redis_server.url()
        return StatsUnderTest(stats_at(url), stats_at(url), flush)


@pytest.fixture
def here(redis_server: RedisServer, stats_at: Stats) -> RedisStats:
    return stats_at(redis_server.url())


def test_counters_live_for_a_week_after_the_last_merge_and_merges_are_remembered_for_less(
    here: RedisStats, client: redis.Redis, namespace: str
) -> None:
    here.add(Merge("s", 1, MISS, {"gaps": 1}, {"user:*": 1}))
    client.expire(f"{namespace}:stats:a", 5)
    here.add(Merge("s", 2, MISS))

    left = {key.decode().partition(":stats:")[2]: client.ttl(key) for key in client.keys(f"{namespace}:*")}
    kept = {name for name, seconds in left.items() if KEPT - 10 < seconds <= KEPT}
    assert kept == {"a", "@tasks", "@process", "@tags"}
    assert REMEMBERED - 10 < left["@merge:s"] <= REMEMBERED


def test_a_task_whose_counters_have_expired_is_named_no_longer(
    here: RedisStats, client: redis.Redis, namespace: str
) -> None:
    here.add(Merge("s", 1, {"old": {"misses": 1}}))
    client.zadd(f"{namespace}:stats:@tasks", {"old": 1.0})
    client.unlink(f"{namespace}:stats:old")
    here.add(Merge("s", 2, MISS))

    assert client.zrange(f"{namespace}:stats:@tasks", 0, -1) == [b"a"]


def test_a_foreign_field_starts_over_and_a_foreign_key_is_left_alone_and_hinders_no_other(
    here: RedisStats, client: redis.Redis, namespace: str
) -> None:
    client.hset(f"{namespace}:stats:a", "misses", "many")
    client.set(f"{namespace}:stats:b", "not ours")
    here.add(Merge("s", 1, {"b": {"misses": 1}, "a": {"misses": 2}, "c": {"misses": 3}}))

    assert here.read("a").tasks == {"a": {"misses": 2}}
    assert here.read("c").tasks == {"c": {"misses": 3}}
    assert client.get(f"{namespace}:stats:b") == b"not ours"


def test_a_hash_takes_so_many_fields_and_the_rest_under_one_name(here: RedisStats) -> None:
    here.add(Merge("s", 1, invalidated={f"tag{number}": 1 for number in range(FIELDS + 3)}))
    here.add(Merge("s", 2, invalidated={"tag0": 1, "another": 1}))

    found = here.read().invalidated
    assert (found["tag0"], found["@others"], len(found)) == (2, 4, FIELDS + 1)


def test_a_full_server_adds_nothing_and_the_same_merge_is_added_once_it_has_room(
    redis_factory: RedisServers, stats_at: Stats
) -> None:
    server = redis_factory("--maxmemory-policy", "noeviction")
    stats = stats_at(server.url())
    stats.add(Merge("s", 1, MISS))
    with server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(TierUnavailable):
            stats.add(Merge("s", 2, MISS))
        assert stats.read("a").tasks == MISS
        client.config_set("maxmemory", 0)

    assert stats.add(Merge("s", 2, MISS)) is True
    assert stats.read("a").tasks == {"a": {"misses": 2}}


# -- hot keys ---------------------------------------------------------------------------------------------------------


def passed(client: redis.Redis, key: str, seconds: float) -> None:
    """So much time has gone by since the last merge, as far as the hot keys know."""
    client.pexpire(key, int(1000 * (COOLED - seconds)))


def test_calls_to_a_hot_key_count_half_after_a_while(here: RedisStats, client: redis.Redis, namespace: str) -> None:
    old, new = ("a", "1" * 32), ("a", "2" * 32)
    here.add(Merge("s", 1, hot={old: 80}))
    passed(client, f"{namespace}:stats:@hot", 2 * HALF)
    here.add(Merge("s", 2, hot={new: 20}))

    hot = here.hot(10)
    assert hot[old] == pytest.approx(hot[new], rel=0.05)


def test_they_count_less_as_time_goes_by_without_a_merge(here: RedisStats, client: redis.Redis, namespace: str) -> None:
    key = ("a", "1" * 32)
    here.add(Merge("s", 1, hot={key: 80}))
    assert here.hot(10)[key] == pytest.approx(80, rel=0.05)
    passed(client, f"{namespace}:stats:@hot", 3 * HALF)

    assert here.hot(10)[key] == pytest.approx(10, rel=0.05)


def test_the_hottest_keys_are_kept_and_they_expire(here: RedisStats, client: redis.Redis, namespace: str) -> None:
    for at in range(3):
        some = {("a", f"{number:032x}"): number + 1 for number in range(100 * at, 100 * at + 100)}
        here.add(Merge("s", at, hot=some))

    assert client.zcard(f"{namespace}:stats:@hot") == HOTTEST
    assert set(here.hot(HOTTEST)) == {("a", f"{number:032x}") for number in range(300 - HOTTEST, 300)}
    assert COOLED - 10 < client.ttl(f"{namespace}:stats:@hot") <= COOLED


def test_a_foreign_key_in_place_of_the_hot_ones_hinders_no_counter(
    here: RedisStats, client: redis.Redis, namespace: str
) -> None:
    client.set(f"{namespace}:stats:@hot", "foreign", ex=5)

    assert here.add(Merge("s", 1, MISS, hot={("a", "1" * 32): 1})) is True
    assert here.read().tasks == MISS


# ---- the filter that tells new keys from old ones --------------------------------------------------------------------


def miss(here: RedisStats, number: int, *keys: str, halvings: int = 0) -> tuple[float, float]:
    """First and repeated misses of all merges after one more."""
    missed = Counter(("a", key) for key in keys if rank(key) >= halvings)
    here.add(Merge("s", number, {"a": {"misses": len(keys)}}, missed=missed, halvings=halvings))
    found = here.read("a").tasks["a"]
    return found.get("first_misses", 0), found.get("repeated_misses", 0)


def test_a_filter_is_in_use_for_a_day_and_looked_at_for_another(
    here: RedisStats, client: redis.Redis, namespace: str
) -> None:
    seen, before = f"{namespace}:stats:@seen", f"{namespace}:stats:@seen:before"
    assert miss(here, 1, "old") == (1, 0)
    assert 2 * SEEN_FOR - 10 < client.ttl(seen) <= 2 * SEEN_FOR
    client.expire(seen, int(SEEN_FOR) - 1)
    assert miss(here, 2, "new", "old") == (2, 1)

    assert SEEN_FOR - 10 < client.ttl(before) < SEEN_FOR
    assert 2 * SEEN_FOR - 10 < client.ttl(seen) <= 2 * SEEN_FOR
    client.unlink(before)
    assert miss(here, 3, "new", "old") == (2, 3)


def test_halvings_are_forgotten_with_the_filters_that_were_filled_with_them(
    here: RedisStats, client: redis.Redis, namespace: str
) -> None:
    low, high = (next(str(n) for n in range(99) if rank(str(n)) == wanted) for wanted in (1, 2))
    seen = f"{namespace}:stats:@seen"
    assert miss(here, 1, low, high, halvings=2) == (2, 0)
    assert miss(here, 2, low, "other " + low) == (2, 0)  # nothing is known of these
    for number in (3, 4):
        client.expire(seen, int(SEEN_FOR) - 1)
        assert miss(here, number, high) == (2, number - 2)
    client.expire(seen, int(SEEN_FOR) - 1)

    assert miss(here, 5, low) == (3, 2)


def test_a_full_filter_gives_way_to_a_new_one(here: RedisStats, client: redis.Redis, namespace: str) -> None:
    seen, count = f"{namespace}:stats:@seen", f"{namespace}:stats:@seen:count"
    miss(here, 1, "old")
    assert client.get(count) == b"1"
    client.set(count, SEEN_KEYS, keepttl=True)
    assert miss(here, 2, "new") == (2, 0)

    assert client.bitcount(seen) == 2
    assert client.bitcount(f"{seen}:before") == 2
    assert client.get(count) == b"1"
    assert 0 < client.ttl(count) <= 2 * SEEN_FOR


def test_a_filter_that_is_no_filter_hinders_no_counter(here: RedisStats, client: redis.Redis, namespace: str) -> None:
    for name in ("@seen", "@seen:before", "@seen:count"):
        client.hset(f"{namespace}:stats:{name}", "not", "ours")

    assert miss(here, 1, "key") == (1, 0)
    assert here.read("a").tasks["a"]["misses"] == 1


def test_of_many_new_keys_nearly_all_are_found_to_be_new(here: RedisStats) -> None:
    for number in range(20):
        first, repeated = miss(here, number, *(f"{number}:{each}" for each in range(1000)))

    assert first + repeated == 20_000
    assert repeated < 20
