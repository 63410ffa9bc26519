"""What is decided, as tables: entry and lease, policy and time in, action out."""

from __future__ import annotations

import math

import pytest

from celery_cachetiers.decisions import (
    Action,
    Freshness,
    Waiting,
    after_lease,
    freshness,
    refresh_is_due,
    times_of,
)
from celery_cachetiers.entry import Header, RawEntry, Times, tag_block
from celery_cachetiers.policy import Policy
from celery_cachetiers.ports import Found, Held, Leading, LeaseAnswer

TIMES = Times(computed_at=100.0, fresh_until=200.0, expires_at=300.0, compute_seconds=10.0)
RAW = RawEntry(Header(TIMES, 0, tag_block([]), "application/json", "utf-8"), b"1", b"")


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.0, Freshness.FRESH),
        (199.9, Freshness.FRESH),
        (200.0, Freshness.STALE),
        (299.9, Freshness.STALE),
        (300.0, Freshness.EXPIRED),
        (math.inf, Freshness.EXPIRED),
    ],
)
def test_freshness_ends_at_the_soft_ttl_and_staleness_at_the_hard_one(now: float, expected: Freshness) -> None:
    assert freshness(TIMES, now) is expected


@pytest.mark.parametrize(
    ("refresh_ahead", "beta", "now", "draw", "expected"),
    [
        (None, None, 199.9, 1e-9, False),
        (0.8, None, 179.9, 1e-9, False),
        (0.8, None, 180.0, 1.0, True),
        (1.0, None, 199.9, 1.0, False),
        (None, 1.0, 199.9, 1.0, False),  # a draw of 1 never advances the moment
        (None, 1.0, 199.9, 0.9, True),  # 10 s x -ln 0.9 = 1.05 s
        (None, 1.0, 190.0, 1 / math.e, True),  # 10 s x 1
        (None, 1.0, 189.9, 1 / math.e, False),
        (None, 2.0, 189.9, 1 / math.e, True),
        (0.8, 1.0, 150.0, 1.0, False),
        (0.8, 1.0, 150.0, math.exp(-5), True),
    ],
)
def test_a_refresh_is_due_from_a_share_of_the_ttl_on_or_by_chance_that_grows_with_the_compute_time(
    refresh_ahead: float | None, beta: float | None, now: float, draw: float, expected: bool
) -> None:
    policy = Policy(refresh_ahead=refresh_ahead, beta=beta)

    assert refresh_is_due(TIMES, policy, now, draw) is expected


@pytest.mark.parametrize(
    ("ttl", "grace", "jitter", "draw", "expected"),
    [
        (60.0, 0.0, 0.0, 0.0, Times(100.0, 160.0, 160.0, 2.0)),
        (60.0, 30.0, 0.0, 0.5, Times(100.0, 160.0, 190.0, 2.0)),
        (60.0, 30.0, 10.0, 0.0, Times(100.0, 160.0, 190.0, 2.0)),
        (60.0, 30.0, 10.0, 0.5, Times(100.0, 155.0, 185.0, 2.0)),
        (4.0, 30.0, 10.0, 0.5, Times(100.0, 103.0, 133.0, 2.0)),  # a short ttl_from under a long jitter
    ],
)
def test_times_count_from_the_start_of_the_compute(
    ttl: float, grace: float, jitter: float, draw: float, expected: Times
) -> None:
    assert times_of(Policy(grace=grace, jitter=jitter), ttl, 100.0, 2.0, draw) == expected


HELD, HELD_STALE = Held("leader", 3.0), Held("leader", 3.0, RAW)


@pytest.mark.parametrize(
    ("answer", "waited", "limit", "nested", "action", "bound"),
    [
        (Found(RAW), 0.0, 300.0, False, Action.ANSWER, 0.0),
        (Found(RAW), 999.0, 300.0, True, Action.ANSWER, 0.0),
        (Leading(b""), 0.0, 300.0, False, Action.COMPUTE, 0.0),
        (Leading(b"", RAW), 999.0, 300.0, True, Action.COMPUTE, 0.0),
        (HELD_STALE, 0.0, 300.0, False, Action.ANSWER_STALE, 0.0),
        (HELD_STALE, 999.0, 300.0, False, Action.ANSWER_STALE, 0.0),
        (HELD, 0.0, 300.0, False, Action.WAIT, 3.0),  # not past the lease's end
        (HELD, 299.0, 300.0, False, Action.WAIT, 1.0),  # not past the limit
        (Held("leader", -1.0), 0.0, 300.0, False, Action.WAIT, 0.0),
        (HELD, 300.0, 300.0, False, Action.TAKE_OVER, 0.0),
        (HELD, 301.0, 300.0, False, Action.TAKE_OVER, 0.0),
        (HELD, 9.0, 10.0, True, Action.WAIT, 1.0),
        (HELD, 10.0, 10.0, True, Action.RUN_ALONE, 0.0),
    ],
)
def test_what_follows_the_answer_to_a_lease(
    answer: LeaseAnswer, waited: float, limit: float, nested: bool, action: Action, bound: float
) -> None:
    assert after_lease(answer, Waiting(waited, limit, nested)) == (action, bound)
