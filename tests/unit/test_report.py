"""What the hit-ratio report makes of two readings: differences, ratios, and the reasons that the numbers give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_cachetiers.metrics.interval import Moment, interval, traffic_of_all
from celery_cachetiers.metrics.report import LEAST, Report, line, report
from celery_cachetiers.metrics.report_json import (
    BUSIEST,
    packed_moment,
    packed_report,
    report_as_dict,
    unpacked_moment,
    unpacked_report,
)
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.server_info import ServerInfo
from celery_cachetiers.stats_port import Numbers, Sums

NOTHING = Moment(0.0, Sums({}, {}, {}))
SERVER = ServerInfo("a", used_memory=3 * 2**20, maxmemory_policy="noeviction", connected_clients=7)


def moment(at: float = 60.0, servers: tuple[ServerInfo, ...] = (), untold: str = "", **tasks: Numbers) -> Moment:
    return Moment(at, Sums(tasks, {}, {}), servers, untold)


def told(round_trip: float | None = None, servers: tuple[ServerInfo, ...] = (), **tasks: Numbers) -> Report:
    """The report of an interval in which tasks have done so much."""
    before = replace(NOTHING, servers=(ServerInfo("a"),) if servers else ())
    return report(before, moment(servers=servers, **tasks), 0.9, round_trip)


def missed(calls: int = 100, hits: int = 0, **numbers: Any) -> Numbers:
    """A task whose computes were all stored."""
    return {"l2_hits": hits, "misses": calls, "computes": calls, "stores": calls, "compute_seconds": calls, **numbers}


def names(made: Report) -> list[str]:
    return [reason.name for reason in made.reasons]


# ---- what happened in between ----------------------------------------------------------------------------------------


def test_a_report_has_what_was_counted_since_the_last_one() -> None:
    before = moment(100.0, a={"l1_hits": 5, "misses": 5, "compute_seconds": 1.5}, b={"misses": 1})
    now = moment(160.0, a={"l1_hits": 35, "misses": 15, "compute_seconds": 2.0}, b={"misses": 1}, c={"coalesced": 2})
    made = report(before, now, 0.9)

    assert made.tasks == {"a": Tally(l1_hits=30, misses=10, compute_seconds=0.5), "c": Tally(coalesced=2)}
    assert (made.ratio, made.requests, made.total.coalesced) == (0.75, 40, 2)
    assert (made.since, made.at, made.seconds, made.complete) == (100.0, 160.0, 60.0, True)


def test_the_first_report_has_all_that_was_counted_so_far() -> None:
    made = report(None, moment(a={"l1_hits": 3, "misses": 1}), 0.9)

    assert (made.ratio, made.since, made.seconds, made.traffic) == (0.75, None, None, None)
    assert "hit ratio 75.0 % of 4 requests so far; there is no earlier reading to compare with" in line(made)
    assert "no earlier reading" not in line(told(a={"l1_hits": 3}))


def test_without_requests_there_is_no_ratio() -> None:
    same = {"l1_hits": 5, "misses": 5}
    made = report(moment(0.0, a=same), moment(60.0, a={**same, "coalesced": 3}), 0.9)

    assert (made.ratio, made.below, made.reasons) == (None, False, ())
    assert "hit ratio: none, as there were no requests in 60 s" in line(made)


@pytest.mark.parametrize(
    ("before", "now", "counted"),
    [
        ({"a": {"l1_hits": 50, "misses": 9}}, {"a": {"l1_hits": 3, "misses": 1}}, Tally(l1_hits=3, misses=1)),
        ({"a": {"l1_hits": 2, "misses": 9}}, {"a": {"l1_hits": 3, "misses": 1}}, Tally(l1_hits=3, misses=1)),
        ({"a": {"misses": 9}, "b": {"misses": 1}}, {"a": {"misses": 10}}, Tally(misses=1)),
        ({"a": {"misses": 9, "gone": 1}}, {"a": {"misses": 9}}, Tally(misses=9)),
    ],
)
def test_counters_that_began_anew_are_recognised_and_what_is_there_was_counted_since(
    before: dict[str, Numbers], now: dict[str, Numbers], counted: Tally
) -> None:
    made = report(moment(0.0, **before), moment(60.0, **now), 0.9)

    assert (made.total, made.complete) == (counted, False)
    assert "the counters began anew meanwhile" in line(made)


def test_a_call_that_was_taken_back_is_no_new_beginning() -> None:
    made = report(moment(0.0, a={"coalesced": 3, "misses": 1}), moment(60.0, a={"coalesced": 2, "misses": 2}), 0.9)

    assert (made.total, made.complete) == (Tally(misses=1), True)


numbers = st.dictionaries(st.sampled_from(["l1_hits", "misses", "stores"]), st.integers(0, 1000))
sums = st.dictionaries(st.sampled_from("abc"), numbers)


@given(sums, sums)
def test_what_two_intervals_have_counted_is_what_one_over_both_has(
    first: dict[str, Numbers], second: dict[str, Numbers]
) -> None:
    def plus(one: dict[str, Numbers], other: dict[str, Numbers]) -> dict[str, Numbers]:
        return {
            task: {
                name: one.get(task, {}).get(name, 0) + other.get(task, {}).get(name, 0)
                for name in {*one.get(task, {}), *other.get(task, {})}
            }
            for task in {*one, *other}
        }

    start, middle, end = NOTHING, moment(1.0, **first), moment(2.0, **plus(first, second))
    parts = [interval(start, middle), interval(middle, end)]
    whole = interval(start, end)

    assert all(part.complete for part in (*parts, whole))
    for name in ("l1_hits", "misses", "stores"):
        together = sum(getattr(part.counted.total, name) for part in parts)
        assert together == getattr(whole.counted.total, name)


@given(sums, sums)
def test_nothing_is_ever_negative(before: dict[str, Numbers], now: dict[str, Numbers]) -> None:
    made = report(moment(0.0, **before), moment(60.0, **now), 0.9)

    assert min(made.total.hits, made.total.misses, made.total.stores) >= 0
    assert made.ratio is None or 0 <= made.ratio <= 1


# ---- servers ---------------------------------------------------------------------------------------------------------


def test_what_all_nodes_have_counted_is_added_up_and_each_is_known_by_its_run() -> None:
    before = (ServerInfo("a", keyspace_hits=10), ServerInfo("b", keyspace_misses=1))
    now = (ServerInfo("b", keyspace_misses=3), ServerInfo("a", keyspace_hits=15, evicted_keys=2))
    seen = traffic_of_all(before, now)

    assert seen is not None
    assert (seen.keyspace_hits, seen.keyspace_misses, seen.evicted_keys, seen.complete) == (5, 2, 2, True)
    assert seen.hit_ratio == 5 / 7


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (ServerInfo("a", keyspace_hits=10), ServerInfo("b", keyspace_hits=4)),
        (ServerInfo("a", keyspace_hits=10), ServerInfo("a", keyspace_hits=4)),
        (ServerInfo("a", keyspace_hits=2, keyspace_misses=9), ServerInfo("a", keyspace_hits=4)),
    ],
)
def test_a_server_that_has_started_anew_or_was_reset_has_counted_since(before: ServerInfo, now: ServerInfo) -> None:
    made = report(replace(NOTHING, servers=(before,)), moment(servers=(now,)), 0.9)

    assert made.traffic is not None
    assert (made.traffic.keyspace_hits, made.traffic.complete) == (4, False)
    assert "counted since it started or was reset" in line(made)


@pytest.mark.parametrize(("before", "now"), [((), (SERVER,)), ((SERVER,), ()), ((), ())])
def test_what_one_reading_does_not_know_of_the_servers_is_not_known_of_the_interval(
    before: tuple[ServerInfo, ...], now: tuple[ServerInfo, ...]
) -> None:
    assert interval(moment(0.0, before), moment(60.0, now)).traffic is None


def test_a_node_that_has_gone_makes_it_incomplete() -> None:
    seen = traffic_of_all((ServerInfo("a"), ServerInfo("b")), (ServerInfo("a"),))

    assert seen is not None
    assert seen.complete is False


def test_without_lookups_the_server_has_no_ratio_and_without_a_server_the_line_says_why() -> None:
    made = told(servers=(SERVER,), a={"l1_hits": 1})
    unknown = report(NOTHING, moment(untold="INFO: no permission", a={"l1_hits": 1}), 0.9)

    assert (made.server_ratio, unknown.server_ratio, unknown.ratio) == (None, None, 1.0)
    assert "no lookups" in line(made)
    assert "nothing is known of the Redis server: INFO: no permission" in line(unknown)


def test_the_line_says_which_ratio_is_whose() -> None:
    full = replace(SERVER, keyspace_hits=30, keyspace_misses=10, maxmemory=4 * 2**20, evicted_keys=5, expired_keys=6)
    made = told(servers=(full,), a={"l1_hits": 9, "misses": 1, "coalesced": 2, "other_seconds_saved": 1.25})

    assert (
        line(made)
        == str(made)
        == (
            "hit ratio 90.0 % of 10 requests in 60 s; 9 hits, 1 misses, 2 coalesced, 1.2 s saved; "
            "all that uses this Redis server, broker and results included: 75.0 % of 40 lookups found, 5 evicted, "
            "6 expired, 3.0 MiB of 4.0 MiB used (noeviction), 7 clients"
        )
    )


# ---- the target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "misses", "below"),
    [(90, 10, False), (89, 11, True), (0, LEAST - 1, False), (0, LEAST, True), (1000, 0, False)],
)
def test_it_is_below_the_target_only_with_enough_requests(hits: int, misses: int, below: bool) -> None:
    made = told(a=missed(misses, hits, first_misses=misses))

    assert made.below is below
    assert names(made) == (["distinct_keys"] if below else [])
    assert ("below the target of 90.0 %" in line(made)) is below
    assert ("why: " in line(made)) is below


def test_a_ratio_is_never_rounded_up_to_its_target() -> None:
    assert "hit ratio 89.9 % of 100000 requests in 60 s, below" in line(told(a=missed(10_001, 89_999)))


def test_where_no_number_tells_why_it_says_so() -> None:
    made = told(a=missed())

    assert (made.below, made.reasons) == (True, ())
    assert "why: no reason stands out" in line(made)


# ---- why -------------------------------------------------------------------------------------------------------------


def test_too_many_distinct_keys() -> None:
    made = told(a=missed(100, first_misses=95, repeated_misses=5))

    [reason] = made.reasons
    assert (reason.name, reason.calls, reason.of, reason.tasks) == ("distinct_keys", 95, 100, ("a",))
    assert (
        "About 95 of 100 misses (a) were of keys that had not missed for a day, as far as a sample of the keys tells"
        in line(made)
    )


@pytest.mark.parametrize(
    ("first", "repeated", "calls"),
    [
        (500, 0, {"distinct_keys": 6000}), (300, 100, {"distinct_keys": 4500, "ttl": 1500}),
        (5, 5, {"distinct_keys": 3000, "ttl": 3000}), (9, 0, {}),
    ],
)  # fmt: skip
def test_the_misses_whose_keys_are_known_stand_for_all(first: int, repeated: int, calls: dict[str, int]) -> None:
    made = told(a=missed(6000, first_misses=first, repeated_misses=repeated))

    assert {reason.name: reason.calls for reason in made.reasons} == calls


def test_invalidated_too_often_and_by_which_tags() -> None:
    before = Moment(0.0, Sums({}, {}, {}, {"user:*": 10}))
    tasks: dict[str, Numbers] = {"a": missed(100, outdated=90, repeated_misses=95), "b": missed(10, outdated=2)}
    now = Moment(60.0, Sums(tasks, {}, {}, {"user:*": 70, "@all": 20, "top10": 12, "@task:a": 1}))
    made = report(before, now, 0.9)

    [reason] = made.reasons
    assert (reason.name, reason.calls, reason.of, reason.tasks) == ("invalidated", 92, 110, ("a", "b"))
    assert reason.numbers == {"user:*": 60, "@all": 20, "top10": 12}
    assert "had been invalidated, by user:* (60), clear() (20), top10 (12). Invalidate less" in reason.text


def test_entries_that_were_removed_one_by_one_are_invalidated_too() -> None:
    [reason] = told(a=missed(100, repeated_misses=100, invalidations=100)).reasons

    assert (reason.name, reason.calls) == ("invalidated", 100)
    assert "had been invalidated. Invalidate less" in reason.text


@pytest.mark.parametrize(
    ("invalidated", "of_task", "calls"),
    [
        ({"@key:*": 150}, 0, {"invalidated": 100}),
        ({"@key:*": 40}, 0, {"invalidated": 40, "ttl": 60}),
        ({"@key:*": 40, "@task:a": 3}, 43, {"invalidated": 43, "ttl": 57}),
        ({"@key:*": 50, "@task:a": 3}, 43, {"invalidated": 53, "ttl": 47}),
        ({"user:*": 40}, 0, {"ttl": 100}),
    ],
)
def test_entries_that_were_removed_by_key_are_invalidated_too_and_count_once(
    invalidated: Numbers, of_task: int, calls: dict[str, int]
) -> None:
    tasks = {"a": missed(100, repeated_misses=100, invalidations=of_task)}
    made = report(NOTHING, Moment(60.0, Sums(tasks, {}, invalidated)), 0.9)

    assert {reason.name: reason.calls for reason in made.reasons} == calls


def test_a_ttl_that_is_too_short() -> None:
    [reason] = told(a=missed(100, first_misses=5, repeated_misses=95, outdated=5)).reasons

    assert (reason.name, reason.calls, reason.of) == ("ttl", 90, 100)
    assert "A longer ttl" in reason.text


def test_evicted_by_a_server_that_is_full() -> None:
    full = replace(SERVER, evicted_keys=80)
    made = told(servers=(full,), a=missed(50, repeated_misses=50), b=missed(50, repeated_misses=50))

    evicted, ttl = made.reasons
    assert (evicted.name, evicted.calls, evicted.tasks) == ("evicted", 80, ("a", "b"))
    assert evicted.numbers == {"evicted_keys": 80}
    assert (ttl.name, ttl.calls) == ("ttl", 20)


def test_evictions_explain_no_more_than_the_entries_that_are_gone() -> None:
    full = replace(SERVER, evicted_keys=100_000)
    made = told(servers=(full,), a=missed(100, first_misses=60, repeated_misses=40))

    assert [(reason.name, reason.calls) for reason in made.reasons] == [("distinct_keys", 60), ("evicted", 40)]


def test_where_redis_evicts_and_has_lost_the_last_reading_no_other_reason_is_told() -> None:
    tasks = {"a": missed(100, first_misses=60, repeated_misses=40), "b": missed(20, outdated=20)}
    made = report(None, moment(servers=(replace(SERVER, evicted_keys=7),), **tasks), 0.9)

    [reason] = made.reasons
    assert (reason.name, reason.calls, reason.of, reason.tasks) == ("no_reading", 120, 120, ("a", "b"))
    assert reason.numbers == {"evicted_keys": 7}
    assert "no earlier reading to compare with, and Redis has evicted 7 keys since it started" in line(made)


def test_a_first_report_of_a_server_that_has_evicted_nothing_says_why() -> None:
    made = report(None, moment(servers=(SERVER,), a=missed(100, first_misses=50, repeated_misses=50)), 0.9)

    assert names(made) == ["distinct_keys", "ttl"]
    assert all("evicted" not in reason.text for reason in made.reasons)


def test_where_evictions_are_not_known_entries_that_are_gone_may_have_been_evicted() -> None:
    [reason] = told(a=missed(100, repeated_misses=100)).reasons

    assert (reason.name, "or Redis has evicted them: that is not known here" in reason.text) == ("ttl", True)


def test_keys_that_seem_new_may_be_forgotten_ones_where_redis_evicts() -> None:
    made = told(servers=(replace(SERVER, evicted_keys=9),), a=missed(100, first_misses=100))

    assert names(made) == ["distinct_keys"]
    assert "or Redis has forgotten them, as it evicted 9 keys meanwhile" in line(made)


def test_computes_that_leave_nothing_stored() -> None:
    [reason] = told(a=missed(100, repeated_misses=100, stores=5, computes=95, refused=3)).reasons

    assert (reason.name, reason.calls) == ("not_stored", 95)
    assert reason.numbers == {"computes": 95, "stores": 5, "refused": 3, "unusable": 0}


def test_calls_that_ran_without_redis() -> None:
    made = told(a=missed(100, repeated_misses=100, failed_open=90, stores=10))

    assert [(reason.name, reason.calls) for reason in made.reasons] == [("unreachable", 90), ("not_stored", 10)]


def test_arguments_that_cannot_be_cached() -> None:
    made = told(a=missed(100), b={"uncacheable": 100})

    [reason] = made.reasons
    assert (reason.name, reason.calls, reason.of, reason.tasks) == ("uncacheable", 100, 200, ("b",))


def test_computes_that_are_cheaper_than_a_look_in_redis() -> None:
    cheap = missed(200, compute_seconds=0.002)
    made = told(0.0003, a=cheap, b=missed(100, compute_seconds=10.0))

    [reason] = made.reasons
    assert (reason.name, reason.calls, reason.of, reason.tasks) == ("cheap", 200, 300, ("a",))
    assert reason.numbers == {"compute_seconds": 0.00001, "round_trip_seconds": 0.0003}
    assert "compute in 0.01 ms or less on average, and a look in Redis takes 0.3 ms" in reason.text


@pytest.mark.parametrize(
    ("round_trip", "numbers"),
    [(None, {}), (0.00001, {}), (0.00002, {}), (0.0003, {"computes": 9}), (0.0003, {"computes": 0})],
)
def test_what_is_not_known_to_be_cheap_is_not_called_so(round_trip: float | None, numbers: dict[str, int]) -> None:
    assert told(round_trip, a=missed(100, **{"compute_seconds": 0.002, **numbers})).reasons == ()


def test_from_ten_computes_on_their_mean_is_believed() -> None:
    assert names(told(0.0003, a=missed(100, compute_seconds=0.002, computes=10))) == ["cheap"]


def test_the_reason_for_the_larger_share_comes_first_though_another_has_more_calls() -> None:
    made = told(a=missed(100, hits=890, repeated_misses=100, uncacheable=300))

    assert [(reason.name, reason.calls, reason.of) for reason in made.reasons] == [
        ("ttl", 100, 100), ("uncacheable", 300, 1290),
    ]  # fmt: skip


def test_a_reason_is_told_from_a_tenth_of_the_misses_on() -> None:
    assert names(told(a=missed(100, first_misses=91, repeated_misses=9))) == ["distinct_keys"]
    assert names(told(a=missed(100, first_misses=90, repeated_misses=10))) == ["distinct_keys", "ttl"]
    assert names(told(a=missed(100, first_misses=10, repeated_misses=90))) == ["ttl", "distinct_keys"]


def test_the_most_affected_tasks_are_named_and_no_more_than_three() -> None:
    tasks = {name: missed(at, first_misses=at) for name, at in (("a", 50), ("b", 80), ("c", 10), ("d", 60), ("e", 1))}

    assert told(**tasks).reasons[0].tasks == ("b", "d", "a")


counts = st.integers(0, 500)


@given(st.lists(st.tuples(*[counts] * 8), min_size=1, max_size=3), counts)
def test_the_misses_are_parted_and_none_is_told_of_twice(rows: list[tuple[int, ...]], evicted: int) -> None:
    fields = ("l2_hits", "first_misses", "repeated_misses", "stores", "invalidations", "failed_open")
    tasks = {}
    for at, (*values, outdated, more) in enumerate(rows):
        numbers = dict(zip(fields, values, strict=True))
        misses = numbers["first_misses"] + numbers["repeated_misses"] + more
        tasks[str(at)] = {**numbers, "misses": misses, "outdated": min(outdated, numbers["repeated_misses"])}
    made = told(servers=(replace(SERVER, evicted_keys=evicted),), **tasks)

    parted = [reason.calls for reason in made.reasons if reason.of == made.total.misses]
    assert sum(parted) <= made.total.misses
    assert all(calls > 0 for calls in parted)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def some_report() -> Report:
    full = replace(SERVER, keyspace_hits=3, evicted_keys=80)
    return told(0.0003, servers=(full,), a=missed(150, 10, repeated_misses=90, first_misses=60), b={"coalesced": 1})


def test_a_report_of_the_history_is_the_one_that_was_made() -> None:
    made = some_report()

    assert made.reasons
    assert unpacked_report(packed_report(made)) == made


def test_the_history_has_the_busiest_tasks_and_the_sum_of_the_others() -> None:
    tasks: dict[str, Numbers] = {f"task{at}": {"l1_hits": at} for at in range(1, BUSIEST + 4)}
    made = told(**tasks)
    kept = unpacked_report(packed_report(made))

    assert kept is not None
    assert set(kept.tasks) == {f"task{at}" for at in range(4, BUSIEST + 4)}
    assert (kept.others, kept.total) == (Tally(l1_hits=6), made.total)
    assert unpacked_report(packed_report(kept)) == kept


@pytest.mark.parametrize("counter", ["l1_hits", "misses", "coalesced"])
def test_a_task_is_busy_whatever_becomes_of_its_calls(counter: str) -> None:
    tasks: dict[str, Numbers] = {f"task{at}": {"l2_hits": 5} for at in range(BUSIEST)}
    kept = unpacked_report(packed_report(told(busy={counter: 6}, **tasks)))

    assert kept is not None
    assert "busy" in kept.tasks


def test_what_a_later_version_adds_is_ignored_and_what_is_no_report_is_none() -> None:
    text = packed_report(some_report())

    assert unpacked_report(text.replace('"expired_keys"', '"more":1,"expired_keys"')) == some_report()
    assert unpacked_report(text.replace('"version":1', '"version":2')) is None
    for broken in ("", "{}", "[]", "1", '{"version":1}', text.replace('"tasks":{', '"tasks":[{', 1), text[:-9]):
        assert unpacked_report(broken) is None


def test_a_reading_is_what_it_was_and_what_is_none_is_none() -> None:
    tasks: dict[str, Numbers] = {"a": {"misses": 3, "compute_seconds": 0.125}}
    sums = Sums(tasks, {"gaps": 1}, {"user:*": 2}, {"user:*": 1}, {"forged": 1})
    made = Moment(12.5, sums, (SERVER,))

    assert unpacked_moment(packed_moment(made)) == made
    for broken in ("", "{}", "3", packed_moment(made).replace("0.125", '"many"')):
        assert unpacked_moment(broken) is None


def test_programs_get_all_of_it_and_what_follows_from_it() -> None:
    made = some_report()
    given = report_as_dict(made)

    assert (given["ratio"], given["below"], given["requests"]) == (made.ratio, True, 160)
    assert given["tasks"]["a"]["misses"] == 150
    assert given["total"]["seconds_saved"] == 0
    assert [reason["name"] for reason in given["reasons"]] == names(made)
    assert given["traffic"]["evicted_keys"] == 80


def test_calls_without_a_key_are_told_though_they_are_in_no_ratio() -> None:
    good, nothing_else, few = (
        told(a={"l2_hits": hits}, b={"uncacheable": calls}) for hits, calls in ((150, 200), (0, 100), (0, 99))
    )

    assert [names(made) for made in (good, nothing_else, few)] == [["uncacheable"], ["uncacheable"], []]
    assert [made.below for made in (good, nothing_else, few)] == [False, False, False]
    assert "100 of 100 calls (b) have no key" in line(nothing_else)
    assert "why" not in line(few)
