"""The waiting room's table of state: who is sent, who is held, and what becomes of those who wait. No I/O, no time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celery_cachetiers.call import Call, Memo
from celery_cachetiers.codec import Codec
from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.policy import Policy
from celery_cachetiers.ports import Free, Held
from celery_cachetiers.room import Action, Give, Guest, Hold, Look, LookLater, PutBack, Room, Send
from celery_cachetiers.testing import FakeClock

VALUE = Shared(copy=lambda: "value")
STALE = Shared(copy=lambda: "old", stale=True)
ERROR = Shared(error=lambda: ValueError("the leader's own"))
LEASE_TTL, WAIT_LIMIT = 10.0, 300.0
INSTANT = 2.0**-20
"""Seconds; times are sums of powers of two, so that they add up exactly."""


def call_of(key: str = "a", *, tags: Sequence[str] = (), **options: Any) -> Call:
    policy = Policy(**{"lease_ttl": LEASE_TTL, "wait_limit": WAIT_LIMIT, **options})
    return Call(Memo("task", policy, Codec("json", ["json"]), Tally()), key, lambda: tuple(tags))


class Desk:
    """A room, a clock, and a pool that begins with a request when a test says so."""

    def __init__(self, capacity: int = 100) -> None:
        self.clock, self.begun = FakeClock(), dict[object, float]()
        self.room = Room(self.clock.monotonic, self.begun.get)
        self.room.capacity = capacity
        self._ids = itertools.count(1)

    def guest(self, key: str = "a", *, task_id: str = "", call: Call | None = None, **options: Any) -> Guest:
        name = task_id or f"task-{next(self._ids)}"
        return Guest(object(), name, call or call_of(key, **options), self.clock.monotonic())

    def arrive(self, count: int = 1, **how: Any) -> list[Guest]:
        """So many come, one after the other; what is to be done with them is left to the test."""
        guests = []
        for _ in range(count):
            guests.append(self.guest(**how))
            self.room.arrive(guests[-1])
            self.clock.advance(INSTANT)
        return guests

    def begin(self, guest: Guest) -> None:
        """The pool begins with its request."""
        self.begun[guest.request] = self.clock.monotonic()

    def look(self, actions: Sequence[Action]) -> Look:
        """The one look among the actions."""
        [look] = [action for action in actions if isinstance(action, Look)]
        return look

    def end(self, guest: Guest, seen: Watched | None = None, *, lost: bool = False) -> list[Action]:
        """A request ends, and the look that follows finds something."""
        return self.room.looked(self.look(self.room.ended(guest, lost=lost)), seen)

    def lead_elsewhere(self, followers: int = 0, holder: str = "elsewhere:1", **how: Any) -> list[Guest]:
        """So many wait for a leader in another process, and one more than that."""
        first, *others = guests = self.arrive(followers + 1, **how)
        self.begin(first)
        self.room.looked(self.look(self.room.given_back(first, holder)), Held(holder, 5.0))
        assert guests == [guest for guest in self.room.guests() if guest.call.digest == first.call.digest]
        return [first, *others]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def sent(actions: Sequence[Action]) -> list[Guest]:
    return [action.guest for action in actions if isinstance(action, Send)]


def given(actions: Sequence[Action]) -> list[Guest]:
    return [action.guest for action in actions if isinstance(action, Give)]


def held(actions: Sequence[Action]) -> list[Guest]:
    return [action.guest for action in actions if isinstance(action, Hold)]


def looks(actions: Sequence[Action]) -> int:
    return sum(isinstance(action, Look) for action in actions)


def later(actions: Sequence[Action]) -> list[float]:
    return [action.seconds for action in actions if isinstance(action, LookLater)]


# -- arrivals ----------------------------------------------------------------------------------------------------------


def test_the_first_of_a_key_is_sent_and_the_others_are_held_in_the_order_in_which_they_came(desk: Desk) -> None:
    guests = [desk.guest() for _ in range(4)]
    actions = [desk.room.arrive(guest) for guest in guests]

    assert actions[0] == [Send(guests[0])]
    assert [held(each) for each in actions[1:]] == [[guest] for guest in guests[1:]]
    assert desk.room.guests() == guests[1:]
    assert desk.room.running() == guests[:1]
    assert repr(desk.room) == "<Room: 3 of at most 100 held, 1 keys>"


def test_keys_do_not_wait_for_each_other(desk: Desk) -> None:
    first, second = desk.guest("a"), desk.guest("b")

    assert sent(desk.room.arrive(first)) == [first]
    assert sent(desk.room.arrive(second)) == [second]
    assert desk.room.running() == [first, second]


def test_however_many_come_one_later_look_is_asked_for(desk: Desk) -> None:
    desk.arrive()
    asked = [later(desk.room.arrive(desk.guest())) for _ in range(3)]
    desk.clock.advance(LEASE_TTL + 0.01)
    asked.append(later(desk.room.arrive(desk.guest())))

    assert asked == [[LEASE_TTL], [], [], [LEASE_TTL]]


def test_each_time_that_it_is_sent_a_request_has_a_nonce_of_its_own(desk: Desk) -> None:
    [first] = desk.arrive()
    nonces = {first.nonce}
    for _ in range(3):
        look = desk.look(desk.room.given_back(first, "elsewhere:1"))
        assert sent(desk.room.looked(look, Free())) == [first]
        nonces.add(first.nonce)

    assert len(nonces) == 4
    assert first.token == f"task-1:{first.nonce}"


def test_with_a_grace_nobody_is_held_until_the_table_is_dry(desk: Desk) -> None:
    leader, stale = desk.guest(grace=10.0), desk.guest(grace=10.0)
    assert sent(desk.room.arrive(leader)) == [leader]
    assert sent(desk.room.arrive(stale)) == [stale]
    assert desk.room.running() == [leader]

    assert held(desk.room.given_back(stale, leader.token)) == [stale]
    newcomer = desk.guest(grace=10.0)
    assert held(desk.room.arrive(newcomer)) == [newcomer]


def test_a_stale_value_that_is_not_there_makes_the_table_dry_until_another_leads(desk: Desk) -> None:
    leader, dry = desk.arrive(2, grace=10.0)
    desk.room.given_back(dry, leader.token)
    desk.room.looked(Look(leader.call, leader.token, desk.clock.monotonic()), Held(leader.token, 5.0))
    assert sent(desk.end(leader, Free())) == [dry]
    newcomer = desk.guest(grace=10.0)

    assert sent(desk.room.arrive(newcomer)) == [newcomer]


def test_the_end_of_one_that_was_sent_for_a_stale_value_is_not_the_leaders_end(desk: Desk) -> None:
    leader, stale = desk.arrive(2, grace=10.0)

    assert desk.room.ended(stale, lost=False) == []
    assert desk.room.running() == [leader]


def test_whoever_was_sent_for_a_stale_value_is_given_back_while_the_leader_goes_on(desk: Desk) -> None:
    leader, stale = desk.arrive(2, grace=10.0)
    desk.room.given_back(stale, leader.token)

    assert desk.room.running() == [leader]
    assert desk.room.guests() == [stale]


def test_a_look_that_finds_a_leader_makes_the_table_dry(desk: Desk) -> None:
    leader, dry, waiting = desk.arrive(3, grace=10.0)
    for guest in (dry, waiting):
        desk.room.looked(desk.look(desk.room.given_back(guest, leader.token)), Held(leader.token, 5.0))
    assert sent(desk.end(leader, Free())) == [dry]
    desk.room.looked(desk.look(desk.room.woken("a")), Held(dry.token, 5.0))
    newcomer = desk.guest(grace=10.0)

    assert held(desk.room.arrive(newcomer)) == [newcomer]


# -- given back --------------------------------------------------------------------------------------------------------


def test_a_request_that_was_given_back_is_held_and_the_key_is_looked_at(desk: Desk) -> None:
    [first] = desk.arrive()
    desk.clock.advance(1)
    actions = desk.room.given_back(first, "elsewhere:1")

    assert actions == [Hold(first), Look(first.call, "elsewhere:1", desk.clock.monotonic())]
    assert desk.room.running() == []
    assert first.waits_for == "elsewhere:1"


def test_whoever_is_given_back_tells_the_others_whom_they_wait_for(desk: Desk) -> None:
    first, *others = desk.arrive(3)
    desk.room.given_back(first, "elsewhere:1")

    assert {guest.waits_for for guest in others} == {"elsewhere:1"}


def test_a_leader_whose_name_is_not_known_is_looked_for(desk: Desk) -> None:
    first, second = desk.arrive(2)
    before = second.waits_for
    actions = desk.room.given_back(first, "")

    assert desk.look(actions).waits_for == before == first.token
    assert first.waits_for == ""


def test_a_request_that_is_given_back_after_its_table_was_cleared_away_is_held_too(desk: Desk) -> None:
    leader, stale = desk.arrive(2, grace=10.0)
    desk.room.ended(leader, lost=False)
    assert list(desk.room) == []

    assert held(desk.room.given_back(stale, "elsewhere:1")) == [stale]
    assert desk.room.guests() == [stale]


def test_whoever_is_given_back_keeps_its_place_before_those_who_came_later(desk: Desk) -> None:
    guests = desk.arrive(4)
    desk.room.given_back(guests[0], "elsewhere:1")

    assert desk.room.guests() == guests


# -- what a look finds -------------------------------------------------------------------------------------------------


def test_when_l2_cannot_be_asked_everybody_runs(desk: Desk) -> None:
    leader, *others = desk.arrive(4)

    assert sent(desk.end(leader, None)) == others
    assert desk.room.held == 0


def test_when_l2_cannot_be_asked_those_run_too_who_came_during_the_look(desk: Desk) -> None:
    leader, waiting = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    desk.clock.advance(INSTANT)
    [newcomer] = desk.arrive()

    assert sent(desk.room.looked(look, None)) == [waiting, newcomer]


def test_a_stale_value_answers_and_its_leader_still_leads(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    assert given(desk.room.looked(desk.look(desk.room.woken("a")), STALE)) == [second]
    [newcomer] = desk.arrive()

    assert desk.room.running() == [leader]
    assert newcomer.waits_for == leader.token


def test_a_value_is_for_all_who_wait(desk: Desk) -> None:
    leader, *others = desk.arrive(4)
    actions = desk.end(leader, VALUE)

    assert actions == [Give(guest, VALUE) for guest in others]
    assert list(desk.room) == []
    assert desk.room.held == 0


def test_a_value_is_for_those_too_who_waited_for_another_leader(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    second.waits_for = "another:1"

    assert given(desk.end(leader, VALUE)) == [second]


def test_an_exception_is_for_those_who_waited_for_its_leader_and_one_of_the_others_is_sent(desk: Desk) -> None:
    leader, *others = desk.arrive(4)
    others[1].waits_for = others[2].waits_for = "another:1"
    actions = desk.end(leader, ERROR)

    assert given(actions) == [others[0]]
    assert desk.room.guests() == others[1:]
    again = desk.look(actions)
    assert again.waits_for == ""
    assert sent(desk.room.looked(again, Free())) == [others[1]]


def test_who_waited_for_another_leader_goes_on_waiting_for_that_one_after_an_exception(desk: Desk) -> None:
    leader, second, third = desk.arrive(3)
    third.waits_for = "another:1"

    assert given(desk.end(leader, ERROR)) == [second]
    assert third.waits_for == "another:1"


def test_who_comes_during_a_look_is_not_answered_by_it_and_a_new_one_follows(desk: Desk) -> None:
    leader, waiting = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    desk.clock.advance(INSTANT)
    [newcomer] = desk.arrive()
    actions = desk.room.looked(look, VALUE)

    assert given(actions) == [waiting]
    assert desk.room.guests() == [newcomer]
    assert given(desk.room.looked(desk.look(actions), VALUE)) == [newcomer]
    assert list(desk.room) == []


@pytest.mark.parametrize("found", [VALUE, ERROR], ids=["value", "error"])
def test_who_comes_after_the_leaders_end_does_not_ask_for_what_it_left(desk: Desk, found: Shared) -> None:
    """What is left is for those who waited: a newcomer computes, also in the pool, which is told whom it waited for."""
    leader, _ = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    desk.clock.advance(INSTANT)
    [newcomer] = desk.arrive()
    again = desk.look(desk.room.looked(look, found))

    assert again.waits_for == ""
    assert sent(desk.room.looked(again, Free())) == [newcomer]
    assert newcomer.waits_for == ""


def test_what_a_leader_left_does_not_make_the_room_forget_the_one_that_leads_by_then(desk: Desk) -> None:
    leader, second, third = desk.arrive(3, wait_limit=30.0)
    desk.begin(leader)
    desk.clock.advance(30)
    look = desk.look(desk.room.woken("a"))
    assert sent(desk.room.overdue()) == [second]
    actions = desk.room.looked(look, ERROR)

    assert desk.look(actions).waits_for == second.token
    assert desk.room.guests() == [third]
    assert desk.room.running() == [second]


@pytest.mark.parametrize("holder", ["elsewhere:1", "leader"])
def test_while_somebody_computes_all_go_on_waiting_for_that_one(desk: Desk, holder: str) -> None:
    leader, *others = desk.arrive(4)
    actions = desk.end(leader, Held(holder, 5.0))

    assert actions == [LookLater("a", 5.0)]
    assert desk.room.guests() == others
    assert {guest.waits_for for guest in others} == {holder}


def test_a_newcomer_waits_for_the_leader_that_the_others_wait_for(desk: Desk) -> None:
    desk.lead_elsewhere()
    [newcomer] = desk.arrive()

    assert newcomer.waits_for == "elsewhere:1"


def test_however_often_a_lease_is_seen_one_later_look_is_asked_for_until_it_ends(desk: Desk) -> None:
    desk.lead_elsewhere()  # a look in five seconds is due
    asked = []
    for left, passes in ((5.0, 1.0), (9.0, 1.0), (2.0, 3.0), (4.0, 0.0)):
        asked.append(later(desk.room.looked(desk.look(desk.room.woken("a")), Held("elsewhere:1", left))))
        desk.clock.advance(passes)

    assert asked == [[], [], [2.0], [4.0]]


def test_waiting_starts_over_with_another_leader_and_not_with_the_same(desk: Desk) -> None:
    [guest] = desk.lead_elsewhere()
    began = guest.began
    desk.clock.advance(3)
    desk.room.looked(desk.look(desk.room.woken("a")), Held("elsewhere:1", 5.0))
    assert guest.began == began
    desk.room.looked(desk.look(desk.room.woken("a")), Held("elsewhere:2", 5.0))

    assert guest.began == desk.clock.monotonic() > began


def test_waiting_does_not_start_over_when_the_leaders_name_is_learned(desk: Desk) -> None:
    [first] = desk.arrive()
    desk.clock.advance(3)
    look = desk.look(desk.room.given_back(first, ""))
    desk.room.looked(look, Held("elsewhere:1", 5.0))

    assert first.waits_for == "elsewhere:1"
    assert first.began == first.arrived


def test_whose_task_id_a_lease_was_handed_to_is_sent_and_the_others_wait_for_it(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    [retry] = desk.arrive(task_id="task-1")  # it was sent again while the room looked
    actions = desk.room.looked(look, Held("task-1", 5.0))

    assert sent(actions) == [retry]
    assert desk.room.guests() == [second]
    assert desk.room.running() == [retry]


def test_only_one_of_those_with_the_same_task_id_is_sent(desk: Desk) -> None:
    leader, *_ = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    twice = desk.arrive(2, task_id="task-1")

    assert sent(desk.room.looked(look, Held("task-1", 5.0))) == twice[:1]


def test_whose_task_id_a_lease_is_kept_for_passes_those_who_wait(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    desk.end(leader, Held("task-1", 5.0))
    retry = desk.guest(task_id="task-1")

    assert desk.room.arrive(retry) == [Send(retry)]
    assert desk.room.running() == [retry]
    assert desk.room.guests() == [second]


def test_where_nobody_computes_the_first_is_sent_and_the_others_wait_for_it(desk: Desk) -> None:
    leader, *others = desk.arrive(4)

    assert sent(desk.end(leader, Free())) == others[:1]
    assert desk.room.guests() == others[1:]
    assert {guest.waits_for for guest in others[1:]} == {others[0].token}


def test_the_failure_of_one_that_was_sent_from_the_room_is_shared_with_those_whom_it_left_there(desk: Desk) -> None:
    leader, second, *others = desk.arrive(4)
    assert sent(desk.end(leader, Free(), lost=True)) == [second]
    desk.begin(second)

    assert given(desk.end(second, ERROR)) == others
    assert list(desk.room) == []


def test_nobody_is_sent_while_another_is_on_its_way_to_the_pool(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    look = desk.look(desk.room.woken("a"))
    desk.clock.advance(LEASE_TTL + 1)
    actions = desk.room.looked(look, Free())

    assert sent(actions) == []
    assert later(actions) == [LEASE_TTL]
    desk.begin(leader)
    assert sent(desk.room.looked(desk.look(desk.room.woken("a")), Free())) == [second]


def test_a_look_that_finds_nothing_after_everybody_has_left_sends_nobody(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    desk.room.leave(second)

    for seen in (Free(), VALUE, ERROR, None, Held("elsewhere:1", 5.0)):
        assert desk.room.looked(look, seen) == []
        assert list(desk.room) == []


@pytest.mark.parametrize("seen", [VALUE, Held("elsewhere:1", 5.0), Free()], ids=["value", "held", "free"])
def test_what_happens_during_a_look_makes_the_key_be_looked_at_once_more(desk: Desk, seen: Watched) -> None:
    desk.lead_elsewhere(2)
    look = desk.look(desk.room.woken("a"))
    desk.clock.advance(INSTANT)
    desk.arrive()
    assert desk.room.woken("a") == []
    assert desk.room.woken("a") == []

    actions = desk.room.looked(look, seen)
    assert looks(actions) == 1
    assert looks(desk.room.looked(desk.look(actions), Held("elsewhere:1", 5.0))) == 0


def test_a_look_tells_the_instant_before_it(desk: Desk) -> None:
    desk.lead_elsewhere()
    desk.clock.advance(7)

    assert desk.look(desk.room.woken("a")).at == desk.clock.monotonic()


# -- wake-ups ----------------------------------------------------------------------------------------------------------


def test_a_wake_up_of_a_key_that_nobody_waits_for_is_nothing(desk: Desk) -> None:
    desk.arrive()

    assert desk.room.woken("a") == []
    assert desk.room.woken("of another process") == []
    assert desk.room.woken_all() == []


def test_when_wake_ups_may_have_been_lost_every_key_is_looked_at_that_somebody_waits_for(desk: Desk) -> None:
    for key in ("a", "b"):
        desk.lead_elsewhere(2, key=key)
    desk.arrive(key="nobody waits")

    assert [action.call.digest for action in desk.room.woken_all() if isinstance(action, Look)] == ["a", "b"]


def test_an_invalidation_sends_those_to_look_who_wait_for_a_value_under_the_tag(desk: Desk) -> None:
    desk.lead_elsewhere(key="a", tags=["user:1", "task"])
    desk.lead_elsewhere(key="b", tags=["user:2", "task"])
    desk.arrive(key="nobody waits", tags=["user:1"])

    def invalidated(*names: str) -> list[str]:
        actions = desk.room.invalidated(names)
        digests = [action.call.digest for action in actions if isinstance(action, Look)]
        for action in actions:
            assert isinstance(action, Look)
            desk.room.looked(action, Held("elsewhere:1", 5.0))
        return digests

    assert invalidated("user:1") == ["a"]
    assert invalidated("user:2", "user:3") == ["b"]
    assert invalidated("task") == ["a", "b"]
    assert invalidated("user:3") == []
    assert invalidated(*next(iter(desk.room)).call.names[-1:]) == ["a"]  # the key's own name


# -- ends --------------------------------------------------------------------------------------------------------------


def test_nothing_is_looked_for_when_nobody_waits(desk: Desk) -> None:
    [leader] = desk.arrive()

    assert desk.room.ended(leader, lost=False) == []
    assert list(desk.room) == []


def test_the_end_in_short_is_only_for_the_one_that_runs(desk: Desk) -> None:
    leader, stale = desk.arrive(2, grace=10.0)

    assert desk.room.ended_alone(stale) is False
    assert desk.room.running() == [leader]
    assert desk.room.ended_alone(leader) is True
    assert list(desk.room) == []
    assert desk.room.ended_alone(leader) is False


def test_the_end_in_short_is_not_for_a_key_that_is_being_looked_at(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    look = desk.look(desk.room.woken("a"))
    desk.room.leave(second)

    assert desk.room.ended_alone(leader) is False
    assert desk.room.ended(leader, lost=False) == []
    desk.room.looked(look, Free())
    assert list(desk.room) == []


def test_an_end_that_is_told_twice_is_one(desk: Desk) -> None:
    [leader] = desk.arrive()
    for _ in range(2):
        assert desk.room.ended(leader, lost=False) == []

    [next_one] = desk.arrive()
    assert desk.room.running() == [next_one]


def test_the_end_of_an_older_request_is_not_the_end_of_the_one_that_runs(desk: Desk) -> None:
    leader, second, third = desk.arrive(3, wait_limit=30.0)
    desk.begin(leader)
    desk.clock.advance(30)
    assert sent(desk.room.overdue()) == [second]
    desk.end(leader, Held(second.token, 5.0))

    assert desk.room.running() == [second]
    assert desk.room.guests() == [third]


def test_the_lease_of_a_lost_attempt_is_freed_by_the_look_whether_somebody_waits_or_not(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    for lost, waits in ((leader, 1), (second, 0)):
        assert desk.room.held == waits
        look = desk.look(desk.room.ended(lost, lost=True))
        assert look.gone == (lost.token,)
        desk.room.looked(look, Free())

    assert list(desk.room) == []


@pytest.mark.parametrize("waiting", [0, 1])
def test_an_attempt_that_is_lost_during_a_look_is_freed_by_the_next(desk: Desk, waiting: int) -> None:
    """A hard time limit is told twice: as a time-out, and as the failure that it ends in."""
    leader, *others = desk.arrive(1 + waiting)
    look = desk.look(desk.room.ended(leader, lost=True))
    assert desk.room.ended(leader, lost=True) == []
    actions = desk.room.looked(look, Free())

    assert sent(actions) == others
    again = desk.look(actions)
    assert again.gone == (leader.token,)
    desk.room.looked(again, Free())
    for other in others:
        desk.room.ended(other, lost=False)
    assert list(desk.room) == []


def test_an_attempt_that_is_lost_after_its_table_was_cleared_away_is_freed_all_the_same(desk: Desk) -> None:
    leader, stale = desk.arrive(2, grace=10.0)
    desk.room.ended(leader, lost=False)
    assert list(desk.room) == []
    look = desk.look(desk.room.ended(stale, lost=True))

    assert look.gone == (stale.token,)
    desk.room.looked(look, Free())
    assert list(desk.room) == []


# -- the limit ---------------------------------------------------------------------------------------------------------


def test_past_the_limit_exactly_one_replaces_the_leader_and_the_others_wait_for_that_one(desk: Desk) -> None:
    leader, *others = desk.arrive(4, wait_limit=30.0)
    desk.begin(leader)
    desk.clock.advance(29.875)
    assert desk.room.overdue() == []
    desk.clock.advance(0.125)

    assert desk.room.overdue() == [Send(others[0], take_over=leader.token)]
    desk.clock.advance(100)
    assert desk.room.overdue() == []  # it has not begun
    desk.begin(others[0])
    desk.clock.advance(29.875)
    assert desk.room.overdue() == []
    desk.clock.advance(0.125)
    assert desk.room.overdue() == [Send(others[1], take_over=others[0].token)]


def test_the_limit_counts_from_the_moment_when_the_pool_began_with_the_leader(desk: Desk) -> None:
    leader, second = desk.arrive(2, wait_limit=30.0)
    desk.clock.advance(1000)
    assert desk.room.overdue() == []
    desk.begin(leader)
    assert desk.room.overdue() == []
    desk.clock.advance(30)

    assert sent(desk.room.overdue()) == [second]


def test_the_limit_of_one_that_came_later_ends_later(desk: Desk) -> None:
    leader, second = desk.arrive(2, wait_limit=30.0)
    desk.begin(leader)
    desk.clock.advance(20)
    desk.arrive(wait_limit=30.0)
    desk.clock.advance(10)
    assert sent(desk.room.overdue()) == [second]
    desk.begin(second)
    desk.clock.advance(29.875)

    assert desk.room.overdue() == []


def test_the_limit_counts_for_each_leader(desk: Desk) -> None:
    [guest] = desk.lead_elsewhere(wait_limit=30.0)
    desk.clock.advance(29)
    desk.room.looked(desk.look(desk.room.woken("a")), Held("elsewhere:2", 5.0))
    desk.clock.advance(29.875)
    assert desk.room.overdue() == []
    desk.clock.advance(0.125)

    assert desk.room.overdue() == [Send(guest, take_over="elsewhere:2")]


def test_a_leader_that_is_not_known_is_replaced_whoever_it_is(desk: Desk) -> None:
    first, *_ = desk.arrive(2, wait_limit=30.0)
    first.waits_for = "another:1"
    actions = desk.room.looked(desk.look(desk.room.given_back(first, "")), ERROR)
    desk.clock.advance(30)
    [send] = [action for action in desk.room.overdue() if isinstance(action, Send)]

    assert looks(actions) == 1
    assert send.take_over == "*"


def test_the_limits_of_keys_are_their_own(desk: Desk) -> None:
    short = desk.lead_elsewhere(key="short", wait_limit=30.0)
    desk.lead_elsewhere(key="long", wait_limit=60.0)
    desk.clock.advance(30)

    assert sent(desk.room.overdue()) == short


# -- room for how many -------------------------------------------------------------------------------------------------


def test_past_its_capacity_a_request_goes_back_to_the_broker(desk: Desk) -> None:
    desk.room.capacity = 2
    desk.arrive(3)
    late = desk.guest()

    assert desk.room.arrive(late) == [PutBack(late)]
    assert desk.room.held == 2
    other = desk.guest("b")
    assert sent(desk.room.arrive(other)) == [other]
    assert desk.room.given_back(other, "elsewhere:1") == [PutBack(other)]
    assert [table.call.digest for table in desk.room] == ["a"]


def test_a_room_without_capacity_holds_nobody_and_leaves_no_table_behind(desk: Desk) -> None:
    desk.room.capacity = 0
    leader, second = desk.guest(), desk.guest()
    assert sent(desk.room.arrive(leader)) == [leader]

    assert desk.room.arrive(second) == [PutBack(second)]
    assert desk.room.given_back(leader, "elsewhere:1") == [PutBack(leader)]
    assert list(desk.room) == []


def test_whoever_leaves_makes_room(desk: Desk) -> None:
    desk.room.capacity = 1
    _, second = desk.arrive(2)
    assert desk.room.leave(second) is True
    third = desk.guest()

    assert held(desk.room.arrive(third)) == [third]


# -- who goes ----------------------------------------------------------------------------------------------------------


def test_who_is_not_in_the_room_cannot_leave_it(desk: Desk) -> None:
    leader, second = desk.arrive(2)

    assert desk.room.leave(leader) is False
    assert desk.room.leave(desk.guest("b")) is False
    assert desk.room.leave(second) is True
    assert desk.room.leave(second) is False
    assert desk.room.held == 0


def test_the_last_one_who_leaves_takes_the_table_along(desk: Desk) -> None:
    first, second = desk.lead_elsewhere(1)
    desk.room.leave(first)
    assert len(list(desk.room)) == 1
    desk.room.leave(second)

    assert list(desk.room) == []


def test_a_table_that_is_being_looked_at_stays_for_a_newcomer_when_the_last_one_leaves(desk: Desk) -> None:
    leader, second = desk.arrive(2)
    look = desk.look(desk.room.ended(leader, lost=False))
    desk.room.leave(second)
    newcomer = desk.guest()

    assert held(desk.room.arrive(newcomer)) == [newcomer]
    assert sent(desk.room.looked(look, Free())) == [newcomer]


def test_clearing_empties_the_room_and_keeps_the_tables_of_those_that_run(desk: Desk) -> None:
    leader, *others = desk.arrive(3)
    elsewhere = desk.lead_elsewhere(1, key="b")

    assert desk.room.clear() == [*others, *elsewhere]
    assert desk.room.held == 0
    assert desk.room.guests() == []
    assert [table.runs for table in desk.room] == [leader]
    assert desk.room.ended(leader, lost=False) == []
    assert list(desk.room) == []


def test_after_the_room_was_cleared_a_later_look_is_asked_for_anew(desk: Desk) -> None:
    """With the connection to the broker go the worker's timers."""
    desk.arrive(2)
    desk.room.clear()

    assert later(desk.room.arrive(desk.guest())) == [LEASE_TTL]


# -- any order of events -----------------------------------------------------------------------------------------------

KEYS = ("a", "b")
CAPACITY = 4


class AnyOrder(RuleBasedStateMachine):
    """A worker, its broker and the other processes, which do anything in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(CAPACITY)
        self.room = self.desk.room
        self.calls = {"a": call_of("a", wait_limit=30.0), "b": call_of("b", wait_limit=30.0, grace=10.0)}
        self.all: list[Guest] = []
        self.held: list[Guest] = []
        self.sent: list[Guest] = []
        self.gone: list[Guest] = []  # answered, put back, left, ended
        self.looks: list[Look] = []
        self.lost: set[str] = set()  # tokens whose leases no look has freed yet
        self.timers: list[tuple[float, str]] = []

    # What the worker does.

    def do(self, actions: Sequence[Action], *, sends_anybody: bool = False) -> None:
        for action in actions:
            match action:
                case Hold(guest):
                    assert self.is_new(guest)
                    self.held.append(guest)
                    assert len(self.held) <= CAPACITY
                case Send(guest, take_over):
                    leads = any(table.runs is guest for table in self.room)
                    if leads and not sends_anybody:
                        self.check_that_nobody_else_is_on_the_way(guest)
                    if guest in self.held:
                        self.held.remove(guest)
                    else:
                        assert self.is_new(guest)
                        assert not take_over
                    self.sent.append(guest)
                case Give(guest, _) | PutBack(guest):
                    if guest in self.held:
                        self.held.remove(guest)
                    else:
                        assert isinstance(action, PutBack)
                        assert self.is_new(guest)
                        assert len(self.held) == CAPACITY
                    self.gone.append(guest)
                case Look(call):
                    assert all(look.call.digest != call.digest for look in self.looks), "two looks at one key"
                    self.looks.append(action)
                    self.lost -= {*action.gone}
                case LookLater(digest, seconds):
                    self.timers.append((self.desk.clock.monotonic() + seconds, digest))

    def is_new(self, guest: Guest) -> bool:
        return not any(guest in where for where in (self.held, self.sent, self.gone))

    def check_that_nobody_else_is_on_the_way(self, guest: Guest) -> None:
        for other in self.sent:
            if other is not guest and other.call is guest.call and other.request not in self.desk.begun:
                assert other in self.aside, "two are on their way"

    # Requests that were sent for a stale value, with a claim, or when L2 could not be asked: they lead by no promise.
    @property
    def aside(self) -> list[Guest]:
        leads = [table.runs for table in self.room]
        return [guest for guest in self.sent if guest not in leads]

    # What happens.

    @rule(key=st.sampled_from(KEYS), claims=st.booleans())
    def arrives(self, key: str, claims: bool) -> None:
        leaders = [table.leader for table in self.room if table.call.digest == key and ":" not in table.leader]
        task_id = leaders[0] if claims and leaders and leaders[0] else ""
        self.desk.clock.advance(1e-6)  # no two arrive at once
        guest = self.desk.guest(call=self.calls[key], task_id=task_id)
        self.all.append(guest)
        self.do(self.room.arrive(guest), sends_anybody=bool(task_id))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def the_pool_begins(self, data: st.DataObject) -> None:
        self.desk.begun.setdefault(data.draw(st.sampled_from(self.sent)).request, self.desk.clock.monotonic())

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), holder=st.sampled_from(["", "elsewhere:1", "elsewhere:2"]))
    def is_given_back(self, data: st.DataObject, holder: str) -> None:
        guest = data.draw(st.sampled_from(self.sent))
        self.sent.remove(guest)
        self.desk.begun.pop(guest.request, None)
        self.do(self.room.given_back(guest, holder))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), lost=st.booleans(), twice=st.booleans())
    def ends(self, data: st.DataObject, lost: bool, twice: bool) -> None:
        guest = data.draw(st.sampled_from(self.sent))
        self.sent.remove(guest)
        self.gone.append(guest)
        for _ in range(1 + twice):
            self.lost |= {guest.token} if lost else set()
            self.do(self.room.ended(guest, lost=lost))

    @precondition(lambda self: self.looks)
    @rule(data=st.data(), seen=st.sampled_from([None, VALUE, STALE, ERROR, Free(), "held", "handed"]))
    def a_look_finds(self, data: st.DataObject, seen: Any) -> None:
        look = data.draw(st.sampled_from(self.looks))
        self.looks.remove(look)
        if seen == "held":
            seen = Held(data.draw(st.sampled_from(["elsewhere:1", "elsewhere:2"])), 5.0)
        elif seen == "handed":
            seen = Held(data.draw(st.sampled_from([guest.task_id for guest in self.all])), 5.0)
        at_table = [guest for guest in self.held if guest.call is look.call]
        waited_for = {guest: guest.waits_for for guest in at_table}
        actions = self.room.looked(look, seen)
        for guest in given(actions):
            assert guest.arrived <= look.at
            assert seen is not ERROR or waited_for[guest] == look.waits_for
        if seen is None:
            assert sent(actions) == sorted(at_table, key=lambda guest: guest.arrived)
        self.do(actions, sends_anybody=seen is None or isinstance(seen, Held))

    @rule(key=st.sampled_from(KEYS))
    def is_woken(self, key: str) -> None:
        self.do(self.room.woken(key))

    @rule()
    def wake_ups_may_be_lost(self) -> None:
        self.do(self.room.woken_all())

    @rule(key=st.sampled_from(KEYS))
    def is_invalidated(self, key: str) -> None:
        self.do(self.room.invalidated(self.calls[key].names))

    @rule(seconds=st.sampled_from([INSTANT, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)
        now = self.desk.clock.monotonic()
        due, self.timers = [t for t in self.timers if t[0] <= now], [t for t in self.timers if t[0] > now]
        for _, digest in due:
            self.do(self.room.woken(digest))
        self.do(self.room.overdue())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.held))
        assert self.room.leave(guest) is True
        self.held.remove(guest)
        self.gone.append(guest)

    @rule()
    def the_connection_is_lost(self) -> None:
        assert set(self.room.clear()) == set(self.held)
        self.gone += self.held
        self.held.clear()
        self.timers.clear()

    # What is true after each.

    @invariant()
    def everybody_is_somewhere(self) -> None:
        assert len(self.held) + len(self.sent) + len(self.gone) == len(self.all)
        assert set(self.held) == set(self.room.guests())
        assert self.room.held == len(self.held) <= CAPACITY

    @invariant()
    def those_who_are_held_are_in_the_order_in_which_they_came(self) -> None:
        for table in self.room:
            assert table.held == sorted(table.held, key=lambda guest: guest.arrived)

    @invariant()
    def what_runs_has_been_sent_and_has_not_ended(self) -> None:
        assert set(self.room.running()) <= set(self.sent)

    @invariant()
    def whoever_is_held_has_something_to_wait_for(self) -> None:
        looked_at = {look.call.digest for look in self.looks}
        timed = {digest for _, digest in self.timers}
        for table in self.room:
            if table.held:
                assert table.runs is not None or table.call.digest in looked_at | timed, "stranded"

    @invariant()
    def the_lease_of_a_lost_attempt_is_freed_by_a_look_that_is_still_to_come(self) -> None:
        assert self.lost == {token for table in self.room if table.looking for token in table.gone}

    @invariant()
    def no_table_is_left_behind(self) -> None:
        looked_at = {look.call.digest for look in self.looks}
        for table in self.room:
            assert table.held or table.runs is not None or table.call.digest in looked_at

    def teardown(self) -> None:
        """When the pool goes on and L2 answers, everybody comes to an end, and nothing is left."""
        for _ in range(200):
            if not (self.held or self.sent or self.looks):
                break
            for look in list(self.looks):
                self.looks.remove(look)
                self.do(self.room.looked(look, Free()), sends_anybody=True)
            for guest in list(self.sent):
                self.sent.remove(guest)
                self.gone.append(guest)
                self.do(self.room.ended(guest, lost=False), sends_anybody=True)
            self.time_passes(LEASE_TTL)
        assert (self.held, self.sent, self.looks) == ([], [], [])
        assert list(self.room) == []


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
