"""The verdict on a call, from what was observed of it: each case once, and which of two goes first."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from celery_cachetiers.explaining import Finding, State, explain
from celery_cachetiers.inspected import Server
from celery_cachetiers.policy import Policy
from celery_cachetiers.why import Why, WhyEntry, WhyL1, WhyLease, WhyOutcome, WhyTag, WhyWrite

NOW = 1000.0
IMPLICIT = (WhyTag("", "namespace", "current", 90.0), WhyTag("task", "task", "current", 90.0))
FRESH = WhyEntry(
    state="fresh", size=200, seconds_left=55.0, wire_version=1, age=5.0, computed_at=NOW - 5, fresh_for=55.0,
    usable_for=55.0, compute_seconds=0.5, content_type="application/json", compression="", signed=False,
)  # fmt: skip
STALE = replace(FRESH, state="stale", fresh_for=-3.0, usable_for=7.0)
EXPIRED = replace(FRESH, state="expired", fresh_for=-9.0, usable_for=-4.0)
LEASE = WhyLease("t1", "t1:n", "computing", 8.0, True, 2)
IN_L1 = WhyL1(True, True, there=True, live=True, seconds_left=20.0, size=500, same=True)
WRITE = WhyWrite("rows", 5, False, NOW)


def state(**changes: Any) -> State:
    given: dict[str, Any] = {"policy": Policy(), "now": NOW, "l1": WhyL1(True, True), "tags": IMPLICIT, **changes}
    return State(**given)


def tagged(*states: str, kind: str = "arguments", at: int = 2) -> tuple[WhyTag, ...]:
    tags = [*IMPLICIT, *(WhyTag(f"user:{number}", kind, each) for number, each in enumerate(states))]
    return tuple(tags)


def gone(kind: str) -> tuple[WhyTag, ...]:
    return tuple(replace(tag, state="no version") if tag.kind == kind else tag for tag in IMPLICIT)


CASES: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "off": ({"off": "because", "l1": IN_L1, "mode": "bypass"}, ("off", "off")),
    "bypass": ({"mode": "bypass", "entry": FRESH}, ("bypassed", "bypass")),
    "refresh": ({"mode": "refresh", "entry": FRESH}, ("bypassed", "refresh")),
    "no key": ({"no_key": Finding("uncacheable", "argument", "x")}, ("uncacheable", "argument")),
    "no key, bypassed": ({"no_key": Finding("uncacheable", "argument", "x"), "mode": "bypass"}, ("bypassed", "bypass")),
    "in L1": ({"l1": IN_L1, "entry": FRESH}, ("hit", "fresh in L1")),
    "in L1, Redis away": ({"l1": IN_L1, "redis": "refused"}, ("hit", "fresh in L1")),
    "in L1, not trusted": ({"l1": replace(IN_L1, trusted=False), "entry": FRESH}, ("hit", "fresh in L2")),
    "in L1, touched": ({"l1": replace(IN_L1, live=False), "entry": FRESH}, ("hit", "fresh in L2")),
    "in L1, not the task's way": ({"l1": replace(IN_L1, used=False), "entry": FRESH}, ("hit", "fresh in L2")),
    "in L1, strict": ({"l1": IN_L1, "policy": Policy(consistency="strict")}, ("hit", "fresh in L1")),
    "in L1, strict, another": (
        {"l1": replace(IN_L1, same=False), "policy": Policy(consistency="strict"), "entry": FRESH},
        ("hit", "fresh in L2"),
    ),
    "in L1, strict, Redis away": (
        {"l1": IN_L1, "policy": Policy(consistency="strict"), "redis": "refused"},
        ("uncached", "Redis away"),
    ),
    "in L1, strict, no Redis": (
        {"l1": IN_L1, "policy": Policy(consistency="strict"), "redis": "none"},
        ("hit", "fresh in L1"),
    ),
    "in L2": ({"entry": FRESH}, ("hit", "fresh in L2")),
    "in L2, and somebody computes": ({"entry": FRESH, "lease": LEASE}, ("hit", "fresh in L2")),
    "stale": ({"entry": STALE}, ("stale hit", "stale")),
    "stale, and somebody computes": ({"entry": STALE, "lease": LEASE}, ("stale hit", "stale")),
    "expired": ({"entry": EXPIRED}, ("miss", "expired")),
    "expired and invalidated": ({"entry": EXPIRED, "tags": tagged("invalidated since")}, ("miss", "invalidated")),
    "nothing": ({}, ("miss", "no entry")),
    "nothing was stored": ({"outcome": WhyOutcome(True, "t1", 5.0)}, ("miss", "not stored")),
    "invalidated": ({"entry": FRESH, "tags": tagged("current", "invalidated since")}, ("miss", "invalidated")),
    "invalidated by its result": (
        {"entry": FRESH, "tags": tagged("invalidated since", kind="result")},
        ("miss", "invalidated"),
    ),
    "no version": ({"entry": FRESH, "tags": tagged("no version")}, ("miss", "no version")),
    "no version, nothing evicted": (
        {"entry": FRESH, "tags": tagged("no version"), "server": Server(evicted=0)},
        ("miss", "invalidated"),
    ),
    "no version, some evicted": (
        {"entry": FRESH, "tags": tagged("no version"), "server": Server(evicted=3)},
        ("miss", "no version"),
    ),
    "namespace cleared": ({"entry": FRESH, "tags": gone("namespace")}, ("miss", "cleared")),
    "task cleared": ({"entry": FRESH, "tags": gone("task")}, ("miss", "cleared")),
    "server restarted": (
        {"entry": FRESH, "tags": gone("namespace"), "server": Server(uptime=2.0)},
        ("miss", "restarted"),
    ),
    "server started before": (
        {"entry": FRESH, "tags": gone("namespace"), "server": Server(uptime=5.0)},
        ("miss", "cleared"),
    ),
    "other tags": ({"entry": FRESH, "tags": tagged("not in the entry", "only in the entry")}, ("miss", "other tags")),
    "unreadable": (
        {"entry": WhyEntry(state="unusable", size=3, seconds_left=1.0, unusable="foreign")},
        ("miss", "foreign"),
    ),
    "unreadable, and a tag without a version": (
        {
            "entry": WhyEntry(state="unusable", size=3, seconds_left=1.0, unusable="foreign"),
            "tags": tagged("no version"),
        },
        ("miss", "foreign"),
    ),
    "forged": ({"entry": replace(FRESH, unusable="forged")}, ("miss", "forged")),
    "forged and expired": ({"entry": replace(EXPIRED, unusable="forged")}, ("miss", "expired")),
    "Redis away": ({"redis": "refused"}, ("uncached", "Redis away")),
    "Redis left alone": ({"redis": "left alone", "entry": FRESH}, ("uncached", "Redis left alone")),
    "Redis away, and a value waits for its sink": (
        {"redis": "refused", "write": WRITE},
        ("hit", "waits for its sink"),
    ),
    "Redis away, and this process computes": ({"redis": "refused", "flying": True}, ("held", "computing")),
    "Redis left alone, and somebody computes": (
        {"redis": "left alone", "lease": LEASE},
        ("uncached", "Redis left alone"),
    ),
    "no Redis": ({"redis": "none"}, ("miss", "no entry")),
    "no Redis, in L1": ({"redis": "none", "l1": replace(IN_L1, same=None)}, ("hit", "fresh in L1")),
    "no Redis, past its time": ({"redis": "none", "l1": replace(IN_L1, live=False)}, ("miss", "gone from L1")),
    "no Redis, computing": ({"redis": "none", "flying": True}, ("held", "computing")),
    "no Redis, computing, not coalesced": (
        {"redis": "none", "flying": True, "policy": Policy(coalesce=False)},
        ("miss", "not coalesced"),
    ),
    "held": ({"lease": LEASE}, ("held", "computing")),
    "held after an invalidation": (
        {"lease": LEASE, "entry": FRESH, "tags": tagged("invalidated since")},
        ("held", "computing"),
    ),
    "handed over": ({"lease": replace(LEASE, state="handed over", token="t1")}, ("held", "handed over")),
    "doomed": ({"lease": replace(LEASE, current=False)}, ("miss", "doomed leader")),
    "not coalesced": ({"lease": LEASE, "policy": Policy(coalesce=False)}, ("miss", "not coalesced")),
    "not coalesced, and a value waits for its sink": (
        {"lease": LEASE, "policy": Policy(coalesce=False), "write": WRITE},
        ("hit", "waits for its sink"),
    ),
    "waits for its sink": ({"write": WRITE}, ("hit", "waits for its sink")),
    "waits for its sink, held": ({"write": WRITE, "lease": LEASE}, ("held", "computing")),
    "waits for its sink, doomed": (
        {"write": WRITE, "lease": replace(LEASE, current=False)},
        ("hit", "waits for its sink"),
    ),
    "waits for its sink, fresh": ({"write": WRITE, "entry": FRESH}, ("hit", "fresh in L2")),
    "deletion waits for its sink": ({"write": replace(WRITE, deleted=True)}, ("miss", "no entry")),
    "only, fresh": ({"mode": "only", "entry": FRESH}, ("hit", "fresh in L2")),
    "only, stale": ({"mode": "only", "entry": STALE}, ("stale hit", "stale")),
    "only, held": ({"mode": "only", "lease": LEASE}, ("miss", "no entry")),
    "only, waits for its sink": ({"mode": "only", "write": WRITE}, ("hit", "waits for its sink")),
    "only, waits for its sink, held": (
        {"mode": "only", "write": WRITE, "lease": LEASE},
        ("hit", "waits for its sink"),
    ),
    "only, deletion waits for its sink": (
        {"mode": "only", "write": replace(WRITE, deleted=True)},
        ("miss", "no entry"),
    ),
    "only, no key": (
        {"mode": "only", "no_key": Finding("uncacheable", "argument", "x")},
        ("uncacheable", "argument"),
    ),
    "only, Redis away": ({"mode": "only", "redis": "refused"}, ("miss", "Redis away")),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case_has_its_verdict_and_its_cause(name: str) -> None:
    changes, expected = CASES[name]
    found = explain(state(**changes))

    assert (found.verdict, found.cause) == expected
    assert found.reason
    assert found.reason[-1] in ".x" or name == "off"


def test_every_reason_of_an_unusable_entry_says_what_to_do() -> None:
    for reason in ("foreign", "newer", "unsigned", "forged", "refused", "oversize", "bomb", "undecodable", "truncated"):
        found = explain(state(entry=replace(FRESH, unusable=reason)))

        assert (found.verdict, found.cause) == ("miss", reason)
        assert found.remedy


def test_only_raises_where_nothing_answers_and_says_so() -> None:
    for nothing in ({}, {"no_key": Finding("uncacheable", "argument", "x")}):
        assert "NotCached" in " ".join(explain(state(mode="only", **nothing)).notes)
    assert "NotCached" not in " ".join(explain(state(mode="only", entry=FRESH)).notes)


def test_a_stale_hit_says_who_refreshes_it() -> None:
    assert explain(state(entry=STALE, lease=LEASE)).notes == ("Somebody computes it already.",)
    for lease in (None, replace(LEASE, current=False)):
        assert "one refresh" in explain(state(entry=STALE, lease=lease)).notes[0]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["not in the entry"], "than the call has now: only the call has the tag 'user:0'."),
        (["only in the entry"], "than the call has now: only the entry has the tag 'user:0'."),
        (
            ["not in the entry", "only in the entry"],
            "now: only the call has the tag 'user:0', only the entry has the tag 'user:1'.",
        ),
    ],
)
def test_tags_that_differ_are_named_on_the_side_that_has_them(states: list[str], said: str) -> None:
    found = explain(state(entry=FRESH, tags=tagged(*states)))

    assert found.cause == "other tags"
    assert found.reason.endswith(said)


@pytest.mark.parametrize(("kind", "where"), [("arguments", "from the arguments"), ("result", "from its result")])
def test_an_invalidated_tag_is_told_with_where_it_comes_from(kind: str, where: str) -> None:
    found = explain(state(entry=FRESH, tags=tagged("invalidated since", kind=kind)))

    assert where in found.reason


@pytest.mark.parametrize("kind", ["namespace", "task"])
@pytest.mark.parametrize(("evicted", "said"), [(0, False), (3, True), (None, True)])
def test_a_clear_is_sure_only_where_nothing_was_evicted(kind: str, evicted: int | None, said: bool) -> None:
    found = explain(state(entry=FRESH, tags=gone(kind), server=Server(evicted=evicted)))

    assert found.cause == "cleared"
    assert ("evicted" in found.reason) is said


def test_another_version_is_thought_of_where_the_task_has_one() -> None:
    assert "'2'" in " ".join(explain(state(policy=Policy(version="2"))).notes)
    assert explain(state()).notes == ()


def test_what_was_evicted_and_what_never_was_are_told_apart_only_where_nothing_was_evicted() -> None:
    unknown, none, some = (explain(state(server=Server(evicted=count))).reason for count in (None, 0, 7))

    assert "evicted" in unknown
    assert "evicted" not in none
    assert "evicted" in some


def test_a_tag_without_a_version_tells_when_there_is_no_entry() -> None:
    found = explain(state(tags=tagged("no version"), policy=Policy(ttl=50.0, lease_ttl=10.0)))

    assert "'user:0'" in found.reason
    assert "60 s" in found.reason


def test_a_copy_in_memory_that_redis_has_no_more_says_how_long_it_goes_on() -> None:
    found = explain(state(l1=replace(IN_L1, same=False), entry=FRESH))

    assert "20 s" in " ".join(found.notes)


def test_a_hit_past_refresh_ahead_says_that_a_refresh_is_sent() -> None:
    policy = Policy(refresh_ahead=0.5)

    assert "refresh_ahead=0.5" in " ".join(explain(state(entry=FRESH, policy=policy, due=True)).notes)
    assert explain(state(entry=FRESH, policy=policy)).notes == ()


def test_a_held_call_says_who_computes_for_how_long_and_why_it_cannot_be_answered() -> None:
    found = explain(state(lease=LEASE, entry=EXPIRED, policy=Policy(wait_limit=30.0)))

    assert "t1" in found.reason
    assert "8 s" in found.reason
    assert "30 s" in found.reason
    assert "expired" in found.notes[0]


# ---- the answer as it is printed -------------------------------------------------------------------------------------


def why(**changes: Any) -> Why:
    given: dict[str, Any] = {"verdict": "miss", "cause": "expired", "reason": "It has expired.", "task": "task"}
    return Why(**{**given, **changes})


def test_it_prints_as_a_few_lines_in_plain_words() -> None:
    lines = str(
        why(
            key="00ff",
            arguments={"a": 1, "r": 2},
            made_of={"a": 1},
            ignored=("r",),
            tags=tagged("invalidated since"),
            l1=WhyL1(True, False),
            redis="answers",
            entry=EXPIRED,
            lease=LEASE,
            notes=("A note.",),
            remedy="A remedy.",
            mode="only",
            version="2",
        )
    ).splitlines()

    assert lines == [
        "task(a=1, r=2) with cache_mode='only': miss (expired)",
        "It has expired.",
        "A remedy.",
        "A note.",
        "  key      00ff of task version='2'",
        "  made of  a=1; ignored: r",
        "  tags     the namespace: current",
        "           the task: current",
        "           user:0: invalidated since",
        "  L1       not in this process (not trusted now: no backplane)",
        "  Redis    computed 5 s ago in 500 ms, expired since 4 s; 200 bytes, 55 s left in Redis; "
        "application/json, not signed, wire version 1",
        "  lease    computing, task t1, 8 s left, current; 2 processes wait to be woken",
    ]


def test_a_value_that_is_long_is_cut_in_print_and_whole_for_programs() -> None:
    long = why(arguments={"a": "x" * 1000})

    assert len(str(long).splitlines()[0]) < 250
    assert long.as_dict()["arguments"] == {"a": "x" * 1000}


def test_as_dict_has_every_field_and_nothing_but_plain_values() -> None:
    found = why(tags=IMPLICIT, l1=IN_L1, entry=FRESH, lease=LEASE, write=WRITE, outcome=WhyOutcome(False, "", 1.0))
    given = found.as_dict()

    assert list(given) == [each.name for each in dataclasses.fields(Why)]
    assert given["tags"][0] == {"name": "", "kind": "namespace", "state": "current", "seconds_left": 90.0}
    assert given["entry"]["size"] == 200
    assert given["lease"]["task_id"] == "t1"
    assert given["write"]["sink"] == "rows"
