"""Reports in Redis, on both servers that tests run against; time to live, foreign keys and size besides."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis

from celery_cachetiers.testing.conformance import ReportsConformance, ReportsUnderTest
from celery_cachetiers.tiers import redis_reports
from celery_cachetiers.tiers.redis_reports import KEPT, RedisReports
from tests.servers import RedisServer

Reports = Callable[[str], RedisReports]


@pytest.fixture
def reports_at(adapter: Callable[..., Any]) -> Reports:
    return partial(adapter, RedisReports)


class TestRedisReports(ReportsConformance):
    @pytest.fixture
    def reports(self, every_redis_server: RedisServer, reports_at: Reports) -> ReportsUnderTest:
        url = every_redis_server.url()
        return ReportsUnderTest(reports_at(url), reports_at(url))


@pytest.fixture
def here(redis_server: RedisServer, reports_at: Reports) -> ReportsUnderTest:
    store = reports_at(redis_server.url())
    return ReportsUnderTest(store, store)


def test_both_keys_live_for_a_week_after_the_last_report(
    here: ReportsUnderTest, client: redis.Redis, namespace: str
) -> None:
    here.next("one")

    left = {key.decode().partition(":stats:")[2]: client.ttl(key) for key in client.keys(f"{namespace}:*")}
    assert left.keys() == {"@report", "@history"}
    assert all(KEPT - 10 < seconds <= KEPT for seconds in left.values())


def test_reports_that_are_a_week_old_go(here: ReportsUnderTest, client: redis.Redis, namespace: str) -> None:
    for number in range(250):  # Redis drops whole parts of a stream, of a hundred entries mostly
        here.next("old", number - KEPT - 1000.0)
    here.next("new")

    assert client.xlen(f"{namespace}:stats:@history") <= 101
    assert here.ours.history(here.now - KEPT, 1000) == ["new"]


def test_there_are_so_many_reports_at_most(
    here: ReportsUnderTest, client: redis.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reports, "REPORTS", 100)
    for number in range(350):
        here.next(str(number), float(number))

    assert 100 <= client.xlen(f"{namespace}:stats:@history") <= 200
    assert here.ours.history(0.0, 1000)[-1] == "349"


def test_foreign_keys_give_way(here: ReportsUnderTest, client: redis.Redis, namespace: str) -> None:
    client.set(f"{namespace}:stats:@report", "not ours")
    client.set(f"{namespace}:stats:@history", "not ours")
    assert here.ours.add("", "moment", "report", time.time()) is True

    last = here.ours.last()
    assert last is not None
    assert (last.moment, here.ours.history(0.0, 10)) == ("moment", ["report"])


def test_a_report_whose_answer_was_lost_is_kept_when_it_is_sent_again(
    here: ReportsUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reports.os, "urandom", bytes)

    assert [here.ours.add("", "moment", "report", here.now) for _ in range(2)] == [True, True]
    assert here.ours.history(0.0, 10) == ["report"]
