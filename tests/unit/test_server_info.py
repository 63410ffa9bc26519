"""What is read from ``INFO``, and what two readings tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_cachetiers.server_info import COUNTED, ServerInfo, Traffic, server_info, traffic

BEFORE = ServerInfo(run_id="a", keyspace_hits=10, keyspace_misses=4, evicted_keys=2, expired_keys=1)


def test_lines_that_are_unknown_or_no_number_are_passed_over() -> None:
    text = "# Stats\r\nkeyspace_hits:12\r\nkeyspace_misses:many\r\nnew_in_redis_9:1\r\nno colon\r\nrun_id:abc\r\n\r\n"

    assert server_info(text) == ServerInfo(run_id="abc", keyspace_hits=12)


def test_an_empty_answer_is_a_reading_of_nothing() -> None:
    assert server_info("") == ServerInfo()


def test_traffic_is_the_difference_within_one_run_of_the_server() -> None:
    after = replace(BEFORE, keyspace_hits=19, keyspace_misses=5, evicted_keys=2, expired_keys=8)

    assert traffic(BEFORE, after) == Traffic(9, 1, 0, 7, complete=True)
    assert traffic(BEFORE, after).hit_ratio == pytest.approx(0.9)


def test_after_a_restart_it_is_what_was_counted_since() -> None:
    after = replace(BEFORE, run_id="b", keyspace_hits=30)

    assert traffic(BEFORE, after) == Traffic(30, 4, 2, 1, complete=False)


@pytest.mark.parametrize("name", COUNTED)
def test_a_counter_that_went_back_was_reset(name: str) -> None:
    after = replace(BEFORE, **{name: 0})

    seen = traffic(BEFORE, after)

    assert not seen.complete
    assert seen.keyspace_hits == after.keyspace_hits


def test_there_is_no_ratio_without_lookups() -> None:
    assert traffic(BEFORE, BEFORE).hit_ratio is None
