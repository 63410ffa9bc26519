"""Subscribers hear of everything, and can harm nothing; the counters are one of them."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery

from celery_cachetiers import CacheTiers
from celery_cachetiers.events import Event, Events
from celery_cachetiers.logs import log
from celery_cachetiers.metrics.tally import PATTERNS, Counters, ProcessTally, Tally
from celery_cachetiers.stats_port import OTHERS


def test_every_subscriber_hears_every_event_in_the_order_they_subscribed() -> None:
    events, heard = Events(), list[object]()
    events.subscribe(lambda *what: heard.append(("first", *what)))
    events.subscribe(lambda *what: heard.append(("second", *what)))
    events.emit(Event.HIT, "task", tier="l2")

    assert heard == [("first", Event.HIT, "task", {"tier": "l2"}), ("second", Event.HIT, "task", {"tier": "l2"})]


def test_a_failing_subscriber_is_logged_and_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    events, heard = Events(), list[Event]()

    def fail(event: Event, task: str, details: dict[str, object]) -> None:
        raise RuntimeError("broken subscriber")

    events.subscribe(fail)
    events.subscribe(lambda event, task, details: heard.append(event))
    with caplog.at_level(logging.ERROR, "celery_cachetiers"):
        events.emit(Event.MISS)

    assert heard == [Event.MISS]
    assert "a subscriber of miss failed" in caplog.text


def test_the_log_is_told_in_one_line_without_a_space_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "celery_cachetiers"):
        log(Event.BREAKER_CLOSED, "", {})
        log(Event.BURIED, "shop.order", {"key": "a"})

    assert [record.getMessage() for record in caplog.records] == [
        "celery-cachetiers: Redis answers again",
        "celery-cachetiers: shop.order: a write was given up and is in the dead-letter {'key': 'a'}",
    ]


def test_only_who_asks_for_them_hears_of_hits_in_l1_that_emit_no_event() -> None:
    events, asked, all_events = Events(), list[object](), list[object]()
    events.subscribe(lambda *what: all_events.append(what))

    def listen(event: Event, task: str, details: dict[str, object]) -> None:
        asked.append((event, task, details))

    assert not events.hears(listen)
    events.subscribe_to_l1_hits(listen)
    assert events.hears(listen)
    events.tell_l1_hit("task", "key")
    events.emit(Event.HIT, "task", tier="l2")
    events.unsubscribe(listen)
    assert not events.hears(listen)

    assert asked == [(Event.HIT, "task", {"tier": "l1", "stale": False, "key": "key"})]
    assert all_events == [(Event.HIT, "task", {"tier": "l2"})]
    assert events.of_l1 == ()


def test_subscribing_from_many_threads_loses_nobody() -> None:
    events = Events()
    barrier = threading.Barrier(8)

    def subscribe(number: int) -> None:
        barrier.wait(10)
        for _ in range(50):
            events.subscribe(lambda event, task, details: None, Event.MISS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(subscribe, range(8)))

    assert len(events._subscribers[Event.MISS]) == 400


def test_whoever_unsubscribes_hears_no_more() -> None:
    events, heard = Events(), list[Event]()

    def listen(event: Event, task: str, details: dict[str, object]) -> None:
        heard.append(event)

    events.subscribe(listen)
    events.unsubscribe(listen)
    events.unsubscribe(listen)
    events.emit(Event.MISS)

    assert heard == []


@pytest.mark.parametrize(
    ("event", "details", "counted"),
    [
        (Event.HIT, {"tier": "l2", "stale": False}, {"l2_hits": 1}),
        (Event.HIT, {"tier": "l2", "stale": True}, {"l2_hits": 1, "stale_hits": 1}),
        (Event.HIT, {"tier": "l1", "stale": False}, {}),  # L1 has counted it
        (Event.MISS, {}, {"misses": 1}),
        (Event.HIT, {"tier": "l2", "stale": False, "saved": 0.5}, {"l2_hits": 1, "other_seconds_saved": 0.5}),
        (Event.HIT, {"tier": "journal", "stale": False}, {"journal_hits": 1}),
        (Event.COALESCED, {}, {"coalesced": 1}),
        (Event.COALESCED, {"saved": 0.5}, {"coalesced": 1, "other_seconds_saved": 0.5}),
        (Event.NOT_COALESCED, {}, {"coalesced": -1}),
        (Event.UNPUBLISHED, {}, {"publish_hits": 1}),
        (Event.HELD, {}, {"held": 1}),
        (Event.WAITED, {"seconds": 0.5}, {"waits": 1, "wait_seconds": 0.5}),
        (Event.COMPUTED, {"seconds": 0.5}, {"computes": 1, "compute_seconds": 0.5}),
        (Event.STORED, {"size": 70}, {"stores": 1, "stored_bytes": 70}),
        (Event.REFUSED, {}, {"refused": 1}),
        (Event.FAILED_OPEN, {}, {"failed_open": 1}),
        (Event.UNUSABLE, {}, {"unusable": 1}),
        (Event.UNCACHEABLE, {}, {"uncacheable": 1}),
        (Event.LEASE_LOST, {}, {"lease_lost": 1}),
        (Event.TAKEN_OVER, {}, {"taken_over": 1}),
        (Event.INVALIDATED, {"names": ("@key:00",)}, {"invalidations": 1}),
        (Event.GAP, {}, {}),
    ],
)
def test_each_event_is_counted_where_it_belongs(
    event: Event, details: dict[str, object], counted: dict[str, object]
) -> None:
    events, counters = Events(), Counters()
    events.subscribe(counters)
    events.emit(event, "task", **details)

    assert counters.of("task") == Tally(**counted)  # type: ignore[arg-type]  # ints and a float by name


@pytest.mark.parametrize(
    ("event", "counted"),
    [
        (Event.GAP, ProcessTally(gaps=1)),
        (Event.BREAKER_OPENED, ProcessTally(breaker_opened=1)),
        (Event.FAILED_OPEN, ProcessTally(failed_open=1)),
        (Event.UNUSABLE, ProcessTally(unusable=1)),
        (Event.HEARD, ProcessTally()),
    ],
)
def test_events_without_a_task_are_counted_for_the_process_alone(event: Event, counted: ProcessTally) -> None:
    counters = Counters()
    counters(event, "", {})

    assert counters.snapshot() == {}
    assert counters.process == counted


def test_invalidations_are_counted_by_the_pattern_of_the_tag_and_for_the_task_that_was_cleared() -> None:
    counters = Counters()
    counters(Event.INVALIDATED, "", {"names": ("user:1", "user:2", "top10")})
    counters(Event.INVALIDATED, "", {"names": ("@task:profile",)})

    assert counters.invalidated() == {"user:*": 2, "top10": 1, "@task:profile": 1}
    assert counters.process == ProcessTally(invalidated=4)
    assert counters.snapshot() == {"profile": Tally(invalidations=1)}


def test_patterns_of_tags_past_the_limit_are_counted_together() -> None:
    counters = Counters()
    counters(Event.INVALIDATED, "", {"names": [f"tag{number}" for number in range(PATTERNS + 5)]})
    counters(Event.INVALIDATED, "", {"names": ["tag0"]})

    assert counters.invalidated()[OTHERS] == 5
    assert counters.invalidated()["tag0"] == 2
    assert len(counters.invalidated()) == PATTERNS + 1


def test_the_first_event_is_told_of_until_somebody_has_heard() -> None:
    counters, heard = Counters(), list[bool]()
    counters.first = lambda: bool(heard.append(True)) or len(heard) == 2
    for _ in range(4):
        counters(Event.MISS, "task", {})

    assert len(heard) == 2


def test_a_tally_that_was_handed_out_starts_over_after_a_fork_and_goes_on_counting() -> None:
    counters = Counters()
    tally = counters.of("task")
    counters(Event.MISS, "task", {})
    counters.reset_after_fork()
    counters(Event.HIT, "task", {"tier": "l2"})

    assert counters.of("task") is tally
    assert tally == Tally(l2_hits=1)


@pytest.mark.parametrize(
    ("tally", "ratio"),
    [
        (Tally(), None),
        (Tally(coalesced=5, computes=5), None),
        (Tally(misses=2), 0.0),
        (Tally(l1_hits=1, l2_hits=2, misses=1, coalesced=9, stale_hits=2), 0.75),
    ],
)
def test_the_hit_ratio_is_none_without_requests_and_leaves_coalesced_calls_out(
    tally: Tally, ratio: float | None
) -> None:
    assert tally.hit_ratio == ratio


@pytest.mark.parametrize(("event", "level"), [(Event.SINK_FAILED, "WARNING"), (Event.BURIED, "ERROR")])
def test_what_befalls_a_sink_is_in_the_log(caplog: pytest.LogCaptureFixture, event: Event, level: str) -> None:
    tiers = CacheTiers(Celery("events", set_as_current=False))
    tiers.events.emit(event, sink="orders", error="why")

    [record] = caplog.records
    assert (record.levelname, "orders" in record.getMessage(), "why" in record.getMessage()) == (level, True, True)
