"""Who waits for whom in a worker's main process, and what becomes of them: every rule of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from celery_cachetiers.call import Call
from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.ports import Free, Held
from celery_cachetiers.room import Action, Give, Guest, Hold, Look, LookLater, PutBack, Room, Send
from celery_cachetiers.testing import FakeClock, InMemoryProcess

VALUE = Shared(copy=lambda: "value")
STALE = Shared(copy=lambda: "old", stale=True)
FAILURE = Shared(error=lambda: ValueError("no"))


class House:
    """A room with a clock, requests that are plain objects, and a pool that begins with them when the test says so."""

    def __init__(self, capacity: int = 100) -> None:
        self.clock, self.process = FakeClock(), InMemoryProcess()
        self.began: dict[object, float] = {}
        self.room = Room(self.clock.monotonic, self.began.get)
        self.room.capacity = capacity

    def guest(self, task_id: str, key: str = "a", **options: Any) -> Guest:
        call: Call = self.process.call(key, **options)
        return Guest(f"request {task_id}", task_id, call, self.clock.monotonic())

    def arrive(self, *task_ids: str, **options: Any) -> list[Guest]:
        """Requests that come one after the other; what is done with them is left to `kinds`."""
        guests = [self.guest(task_id, **options) for task_id in task_ids]
        for guest in guests:
            self.room.arrive(guest)
        return guests

    def begin(self, guest: Guest) -> None:
        self.began[guest.request] = self.clock.monotonic()

    def led(self, *followers: str, **options: Any) -> list[Guest]:
        """A leader whose body runs, and its followers."""
        leader, *others = self.arrive("leader", *followers, **options)
        self.begin(leader)
        return [leader, *others]

    def end(self, guest: Guest, *, lost: bool = False) -> Look:
        (look,) = self.room.ended(guest, lost=lost)
        assert isinstance(look, Look)
        return look

    def ids(self) -> list[str]:
        return [guest.task_id for guest in self.room.guests()]


@pytest.fixture
def house() -> House:
    return House()


def kinds(actions: Sequence[Action]) -> list[tuple[str, str]]:
    return [(type(action).__name__, getattr(getattr(action, "guest", None), "task_id", "")) for action in actions]


def test_the_first_is_sent_and_the_others_are_held_in_the_order_in_which_they_came(house: House) -> None:
    actions = [action for each in "abc" for action in house.room.arrive(house.guest(each))]

    assert kinds(actions)[0] == ("Send", "a")
    assert [each for each in kinds(actions) if each[0] == "Hold"] == [("Hold", "b"), ("Hold", "c")]
    assert house.ids() == ["b", "c"]
    assert house.room.held == 2


def test_another_key_is_another_table(house: House) -> None:
    house.arrive("a")

    assert kinds(house.room.arrive(house.guest("b", key="other"))) == [("Send", "b")]


def test_the_lease_of_a_leader_in_this_worker_is_looked_at_once_when_it_might_have_ended(house: House) -> None:
    actions = [action for each in "abc" for action in house.room.arrive(house.guest(each, lease_ttl=7.0))]

    assert [action.seconds for action in actions if isinstance(action, LookLater)] == [7.0]


def test_when_the_leader_has_ended_the_key_is_looked_at_once_for_all(house: House) -> None:
    leader, *_ = house.led("b", "c")
    look = house.end(leader)

    assert look.waits_for == leader.token
    assert kinds(house.room.looked(look, VALUE)) == [("Give", "b"), ("Give", "c")]
    assert list(house.room) == []


def test_the_end_of_a_request_that_nobody_waits_for_needs_no_look(house: House) -> None:
    (alone,) = house.arrive("a")

    assert house.room.ended_alone(alone) is True
    assert list(house.room) == []
    leader, _ = house.led("b")
    assert house.room.ended_alone(leader) is False


def test_a_look_does_not_answer_whoever_came_after_it_began(house: House) -> None:
    leader, _ = house.led("b")
    look = house.end(leader)
    house.clock.advance(0.001)
    late = house.guest("late")
    house.room.arrive(late)
    actions = house.room.looked(look, VALUE)

    assert kinds(actions) == [("Give", "b"), ("Look", "")]
    again = actions[1]
    assert isinstance(again, Look)
    assert kinds(house.room.looked(again, VALUE)) == [("Give", "late")]


def test_a_failure_is_for_those_who_waited_for_that_leader_and_another_computes_for_the_rest(house: House) -> None:
    leader, follower = house.led("b")
    look = house.end(leader)
    newcomer = house.guest("c")
    house.room.arrive(newcomer)
    newcomer.waits_for = ""  # as of one that came when nobody was known to lead
    actions = house.room.looked(look, FAILURE)

    assert kinds(actions) == [("Give", "b"), ("Look", "")]
    second = actions[1]
    assert isinstance(second, Look)
    assert second.waits_for == ""
    assert kinds(house.room.looked(second, Free())) == [("Send", "c")]
    assert follower.waits_for == leader.token


def test_whoever_comes_after_a_failure_was_seen_leads_although_the_leaders_end_was_not_told_yet(house: House) -> None:
    house.led("b")
    (look,) = house.room.woken(house.guest("b").call.digest)
    assert isinstance(look, Look)
    house.room.looked(look, FAILURE)

    assert kinds(house.room.arrive(house.guest("retry of b"))) == [("Send", "retry of b")]


def test_where_nothing_is_found_exactly_one_is_sent(house: House) -> None:
    leader, *_ = house.led("b", "c")
    look = house.end(leader)

    assert kinds(house.room.looked(look, Free())) == [("Send", "b")]
    assert house.ids() == ["c"]


def test_nobody_else_is_sent_while_one_is_on_its_way_to_the_pool(house: House) -> None:
    leader, *_ = house.arrive("leader", "b")
    (look,) = house.room.woken(leader.call.digest)
    assert isinstance(look, Look)
    house.clock.advance(20.0)

    assert kinds(house.room.looked(look, Free())) == [("LookLater", "")]
    house.begin(leader)
    (look,) = house.room.woken(leader.call.digest)
    assert isinstance(look, Look)
    assert kinds(house.room.looked(look, Free())) == [("Send", "b")]  # it runs, and has lost its lease


def test_where_redis_cannot_be_asked_everybody_runs(house: House) -> None:
    leader, *_ = house.led("b", "c")

    assert kinds(house.room.looked(house.end(leader), None)) == [("Send", "b"), ("Send", "c")]
    assert house.room.held == 0


def test_a_request_that_gives_its_slot_back_is_held_and_the_key_is_looked_at(house: House) -> None:
    (first,) = house.arrive("a")
    hold, look = house.room.given_back(first, "elsewhere:1")

    assert kinds([hold]) == [("Hold", "a")]
    assert isinstance(look, Look)
    assert look.waits_for == first.waits_for == "elsewhere:1"
    assert kinds(house.room.looked(look, Held("elsewhere:1", 8.0))) == [("LookLater", "")]
    assert kinds(house.room.arrive(house.guest("b")))[0] == ("Hold", "b")


def test_however_often_the_key_is_looked_at_one_look_is_due_when_the_lease_ends(house: House) -> None:
    (first,) = house.arrive("a")
    _, look = house.room.given_back(first, "elsewhere:1")
    assert isinstance(look, Look)
    later = [house.room.looked(look, Held("elsewhere:1", 8.0))]
    for _ in range(3):
        house.clock.advance(0.5)
        (look,) = house.room.woken(first.call.digest)
        assert isinstance(look, Look)
        later.append(house.room.looked(look, Held("elsewhere:1", 8.0 - 0.5)))

    assert [kinds(actions) for actions in later] == [[("LookLater", "")], [], [], []]


def test_who_was_handed_the_lease_is_sent_when_it_comes_and_when_it_is_held(house: House) -> None:
    (first,) = house.arrive("a")
    _, look = house.room.given_back(first, "retry")
    assert isinstance(look, Look)
    house.room.looked(look, Held("retry", 5.0))
    assert kinds(house.room.arrive(house.guest("retry"))) == [("Send", "retry")]

    other = House()
    (first,) = other.arrive("a")
    _, look = other.room.given_back(first, "b:1")
    assert isinstance(look, Look)
    other.room.arrive(other.guest("retry"))
    assert kinds(other.room.looked(look, Held("retry", 5.0)))[0] == ("Send", "retry")


def test_past_the_wait_limit_one_replaces_the_leader_and_the_others_wait_for_that_one(house: House) -> None:
    leader, *_ = house.led("b", "c", "d", wait_limit=10.0)
    house.clock.advance(9.9)
    assert house.room.overdue() == []
    house.clock.advance(0.2)
    (sent,) = house.room.overdue()

    assert isinstance(sent, Send)
    assert (sent.guest.task_id, sent.take_over) == ("b", leader.token)
    assert house.room.overdue() == []
    house.begin(sent.guest)
    house.clock.advance(9.9)
    assert house.room.overdue() == []
    house.clock.advance(0.2)
    (second,) = house.room.overdue()
    assert isinstance(second, Send)
    assert (second.guest.task_id, second.take_over) == ("c", sent.guest.token)


def test_the_wait_limit_counts_from_when_the_pool_begins_with_the_leader(house: House) -> None:
    leader, _ = house.arrive("leader", "b", wait_limit=10.0)
    house.clock.advance(50.0)
    assert house.room.overdue() == []
    house.begin(leader)
    house.clock.advance(10.0)

    assert kinds(house.room.overdue()) == [("Send", "b")]


def test_the_waiting_starts_over_with_another_leader(house: House) -> None:
    (first,) = house.arrive("a", wait_limit=10.0)
    _, look = house.room.given_back(first, "one:1")
    assert isinstance(look, Look)
    house.room.looked(look, Held("one:1", 30.0))
    house.clock.advance(9.0)
    (look,) = house.room.woken(first.call.digest)
    assert isinstance(look, Look)
    house.room.looked(look, Held("two:1", 30.0))
    house.clock.advance(9.0)
    assert house.room.overdue() == []
    house.clock.advance(1.0)

    (sent,) = house.room.overdue()
    assert isinstance(sent, Send)
    assert sent.take_over == "two:1"


def test_where_a_stale_value_may_answer_followers_go_and_see_until_it_is_known_that_there_is_none(house: House) -> None:
    leader, follower = house.led("b", grace=60.0)
    assert house.ids() == []
    assert kinds(house.room.given_back(follower, leader.token)) == [("Hold", "b"), ("Look", "")]

    assert kinds(house.room.arrive(house.guest("c", grace=60.0)))[0] == ("Hold", "c")


def test_a_stale_value_answers_at_once_and_the_leader_goes_on(house: House) -> None:
    leader, _ = house.led("b")
    (look,) = house.room.woken(leader.call.digest)
    assert isinstance(look, Look)

    assert kinds(house.room.looked(look, STALE)) == [("Give", "b")]
    assert house.room.running() == [leader]


def test_a_full_room_puts_back(house: House) -> None:
    house.room.capacity = 1
    house.led("b")

    assert kinds(house.room.arrive(house.guest("c")))[0] == ("PutBack", "c")
    assert house.room.held == 1


def test_the_lease_of_one_who_cannot_free_it_is_freed_before_the_look(house: House) -> None:
    leader, *_ = house.led("b")
    assert house.end(leader, lost=True).gone == (leader.token,)

    alone = House()
    (guest,) = alone.arrive("a")
    assert alone.end(guest, lost=True).gone == (guest.token,)


def test_an_invalidation_sends_those_who_wait_under_its_names_to_look(house: House) -> None:
    house.led("b", tags=["user:1"])
    house.arrive("other", "waits", key="x", tags=["user:2"])

    (look,) = house.room.invalidated(["user:1", "user:9"])
    assert isinstance(look, Look)
    assert look.call.digest == house.guest("b").call.digest
    assert house.room.invalidated(["user:9"]) == []


def test_after_a_gap_every_key_is_looked_at(house: House) -> None:
    house.led("b")
    house.arrive("other", "waits", key="x")

    assert kinds(house.room.woken_all()) == [("Look", "")] * 2


def test_what_happens_during_a_look_leads_to_one_more(house: House) -> None:
    leader, *_ = house.led("b")
    (look,) = house.room.woken(leader.call.digest)
    assert isinstance(look, Look)
    assert house.room.woken(leader.call.digest) == []
    assert house.room.woken(leader.call.digest) == []

    assert ("Look", "") in kinds(house.room.looked(look, Held(leader.token, 5.0)))


def test_who_leaves_is_forgotten_once(house: House) -> None:
    _, follower = house.led("b")

    assert [house.room.leave(follower), house.room.leave(follower)] == [True, False]
    assert house.room.held == 0


def test_clearing_empties_the_room_and_keeps_who_runs(house: House) -> None:
    leader, *_ = house.led("b", "c")

    assert [guest.task_id for guest in house.room.clear()] == ["b", "c"]
    assert house.room.running() == [leader]
    assert house.room.held == 0


# -- all at random -----------------------------------------------------------------------------------------------------


class RandomHouse(RuleBasedStateMachine):
    """Any order of events; an owner that does what the room returns."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(capacity=5)
        self.fate: dict[str, str] = {}
        self.number = 0
        self.due = 0

    def do(self, actions: list[Action]) -> tuple[list[Guest], list[Look]]:
        sent, looks = [], []
        for action in actions:
            match action:
                case Hold(guest):
                    self.fate[guest.task_id] = "held"
                case Send(guest):
                    self.fate[guest.task_id] = "sent"
                    sent.append(guest)
                case Give(guest):
                    self.fate[guest.task_id] = "answered"
                case PutBack(guest):
                    self.fate[guest.task_id] = "put back"
                case Look():
                    looks.append(action)
                case LookLater():
                    self.due += 1
        self.pending_looks = getattr(self, "pending_looks", 0) + len(looks)
        self._sent.extend(sent)
        self._looks.extend(looks)
        return sent, looks

    @property
    def _sent(self) -> list[Guest]:
        return self.__dict__.setdefault("sent_guests", [])  # type: ignore[no-any-return]

    @property
    def _looks(self) -> list[Look]:
        return self.__dict__.setdefault("open_looks", [])  # type: ignore[no-any-return]

    @rule(key=st.sampled_from("ab"), grace=st.sampled_from([0.0, 30.0]))
    def arrive(self, key: str, grace: float) -> None:
        self.number += 1
        self.do(self.house.room.arrive(self.house.guest(f"t{self.number}", key=key, grace=grace, wait_limit=20.0)))

    @rule(at=st.integers(0, 9))
    def begin(self, at: int) -> None:
        if at < len(self._sent):
            self.house.begin(self._sent[at])

    @rule(at=st.integers(0, 9), lost=st.booleans())
    def end(self, at: int, lost: bool) -> None:
        if at < len(self._sent):
            guest = self._sent.pop(at)
            self.fate[guest.task_id] = "ended"
            if lost or not self.house.room.ended_alone(guest):
                self.do(self.house.room.ended(guest, lost=lost))

    @rule(at=st.integers(0, 9), holder=st.sampled_from(["x:1", "y:1"]))
    def give_back(self, at: int, holder: str) -> None:
        if at < len(self._sent):
            guest = self._sent.pop(at)
            self.house.began.pop(guest.request, None)
            self.do(self.house.room.given_back(guest, holder))

    @rule(at=st.integers(0, 9), seen=st.sampled_from([None, VALUE, STALE, FAILURE, Free(), Held("x:1", 5.0)]))
    def look(self, at: int, seen: Watched | None) -> None:
        if at < len(self._looks):
            self.do(self.house.room.looked(self._looks.pop(at), seen))

    @rule(seconds=st.floats(0.0, 15.0))
    def pass_time(self, seconds: float) -> None:
        self.house.clock.advance(seconds)
        self.do(self.house.room.overdue())

    @rule()
    def wake(self) -> None:
        self.do(self.house.room.woken_all())

    @rule(at=st.integers(0, 9))
    def leave(self, at: int) -> None:
        guests = self.house.room.guests()
        if at < len(guests) and self.house.room.leave(guests[at]):
            self.fate[guests[at].task_id] = "left"

    @invariant()
    def nobody_is_lost(self) -> None:
        held = sorted(guest.task_id for guest in self.house.room.guests())
        assert held == sorted(task_id for task_id, fate in self.fate.items() if fate == "held")
        assert len(held) == self.house.room.held <= self.house.room.capacity
        sent = sorted(guest.task_id for guest in self._sent)
        assert sent == sorted(task_id for task_id, fate in self.fate.items() if fate == "sent")

    @invariant()
    def nobody_is_stranded(self) -> None:
        for table in self.house.room:
            assert table.looking or not table.gone, "a lease that is to be freed"
            if table.held:
                assert table.runs is not None or table.looking or table.due > 0.0, table

    def teardown(self) -> None:
        """Whatever has happened: when all have ended and every look finds nothing, everybody has had their turn."""
        for _ in range(200):
            while self._sent:
                self.house.begin(self._sent[0])
                self.end(0, False)
            while self._looks:
                self.look(0, Free())
            if not self.house.room.held:
                break
            self.house.clock.advance(60.0)
            self.wake()
        assert self.house.room.held == 0
        while self._sent:
            self.end(0, False)
        while self._looks:
            self.look(0, Free())
        assert list(self.house.room) == []


TestRandomHouse = RandomHouse.TestCase
TestRandomHouse.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
